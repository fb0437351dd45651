"""Text: the next character, at every place of a window of text.

Characters are those of UTF-8, one byte each: for English, what one would count as characters. So a trained model fits
every text, no character can be unknown to it, and no vocabulary has to travel with it.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from homeostat.errors import InputError
from homeostat.tasks.base import Batch, ClassificationTask, Split
from homeostat.tasks.random_words import fold, random_words
from homeostat.tasks.split import check_request

_MOST_SIZE = 4_096
_MOST_BYTES = 2**26
_MOST_POSITIONS = 2**24
_TEST_ONE_IN = 10
"""The last one in this many bytes is the test stretch."""


@dataclass(frozen=True)
class Text(ClassificationTask):
    """Windows of a text; the answer at each place is the character (UTF-8 byte) that comes next.

    Inputs `(batch, size)` int64, characters 0 to 255; targets of the same shape, each the character after; outputs
    `(batch, 256, size)` logits. The size is the length of a window, so that an answer is given from 1 to `size`
    characters. The loss is in nats a character: its mean over windows, exponentiated, is the perplexity. `symbols` is
    the share of characters foretold; `correct` asks for a whole window and is hardly ever true.

    The first nine tenths of the text are for training, the last tenth is the test stretch; no window reaches from one
    into the other. They are split by place: what the text itself repeats can be in both. Windows of one seed do not
    overlap (but for the last target, which is the next window's first character) until all of a stretch have come;
    where the first begins, and their order, the seed decides.

    Args:
        file: the user's own text, in UTF-8, of at most 64 MiB. None takes the first five chapters of "Alice's
            Adventures in Wonderland" (Lewis Carroll, 1865), 59,598 characters, which come with the package.

    Raises:
        InputError: a file that is missing, is not text in UTF-8, or is too long or too short.

    Example:
        >>> inputs, targets = Text().sample(8, 2, split="test", seed=0)
        >>> bool((inputs[:, 1:] == targets[:, :-1]).all()), tuple(targets.shape)
        (True, (2, 8))
    """

    file: str | None = None

    name: ClassVar[str] = "text"
    summary: ClassVar[str] = "the next character of a text"
    size_name: ClassVar[str] = "characters"
    sizes: ClassVar[tuple[int, ...]] = (16, 32, 64, 128)
    classes: ClassVar[int] = 256

    def __post_init__(self) -> None:
        if self.file is not None and not (isinstance(self.file, str) and self.file):
            raise InputError(f"file {self.file!r} is not the path of a text")

    def sample(self, size: int, count: int, *, split: Split, seed: int) -> Batch:
        """`count` windows of `size` characters.

        Raises:
            InputError: a size below 1 or above 4,096; a text that cannot be read, or is too short for such windows.
        """
        if not 1 <= size <= _MOST_SIZE:
            raise InputError(f"size {size} is impossible for {self.name}: 1 to {_MOST_SIZE:,} characters")
        check_request(split, count)
        if count * size > _MOST_POSITIONS:
            raise InputError(f"count {count} is too large: {_MOST_POSITIONS:,} characters at once, ask in parts")
        stretch = _stretch(self.file, split)
        if len(stretch) <= size:
            what = "the text of the package" if self.file is None else self.file
            raise InputError(
                f"{what} has a {split} stretch of {len(stretch):,} characters, too short for windows of {size}; "
                f"choose a smaller size or a longer text"
            )
        places = _windows(len(stretch), size, count, seed)[:, None] + np.arange(size + 1)
        windows = torch.from_numpy(stretch[places].astype(np.int64))
        return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())


def _windows(length: int, size: int, count: int, seed: int) -> NDArray[np.int64]:
    """`(count,)` where windows begin: round after round of windows side by side, each from a beginning of its own."""
    found: list[NDArray[np.int64]] = []
    have = number = 0
    while have < count:
        stream = fold(np.array([seed], dtype=np.uint64), np.array([number], dtype=np.uint64))
        most = max(1, length // size - 1)  # one less than could be, so that windows can begin anywhere
        words = random_words(stream, most + 1)[0]
        first = int(words[-1] % np.uint64(length - most * size))
        found.append(first + size * np.argsort(words[:-1], kind="stable"))
        have, number = have + most, number + 1
    return np.concatenate(found)[:count]


@lru_cache(maxsize=8)
def _stretch(file: str | None, split: Split) -> NDArray[np.uint8]:
    data = _read(file)
    border = len(data) - len(data) // _TEST_ONE_IN
    return np.frombuffer(data[:border] if split == "train" else data[border:], dtype=np.uint8)


def _read(file: str | None) -> bytes:
    if file is None:
        return (files("homeostat.tasks") / "texts" / "alice.txt").read_bytes()
    path = Path(file).expanduser()
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > _MOST_BYTES:
        raise InputError(f"{path} has more than {_MOST_BYTES:,} bytes; take a part of it")
    if not data.strip():
        raise InputError(f"{path} is empty: a text is needed")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: byte {error.start + 1} cannot be read") from None
    return data
