"""Where tasks on pictures have them from: scikit-learn's digits, CIFAR-10 in a folder; and how pictures are drawn."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import InputError
from homeostat.tasks.base import Split
from homeostat.tasks.random_words import Words, fold, random_words
from homeostat.tasks.split import instance_hash

MOST_PIXELS = 2**26
"""Most pixels of all channels in one draw, so that memory stays bounded."""

Pictures = tuple[NDArray[np.uint8], NDArray[np.int64]]

_CIFAR_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_CIFAR_RECORD = 1 + 3 * 32 * 32
_CIFAR_LABELS = 10


def bundled_digits(task: str, *, instead: str = "") -> Pictures:
    """Pictures `(1797, 8, 8)` with ink from 0 to 16, and the digits on them, `(1797,)`.

    Args:
        task: which asks for them, for the error.
        instead: what else the user can do when they are not there.

    Raises:
        InputError: scikit-learn is not installed.

    Source:
        Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998), its test
        part, as `sklearn.datasets.load_digits` has it.

    Example:
        >>> pictures, digits = bundled_digits("blurry-digits")
        >>> pictures.shape, int(pictures.max()), digits[:5].tolist()
        ((1797, 8, 8), 16, [0, 1, 2, 3, 4])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            f"the digits of {task} come with scikit-learn, which is not installed: pip install 'homeostat[digits]'"
            + instead
        ) from None
    pixels, labels = load_digits(return_X_y=True)
    return pixels.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.int64)


def cifar_10(folder: str, split: Split) -> Pictures:
    """One split of CIFAR-10 from its binary version: pictures `(n, 3, 32, 32)` of 0 to 255, and their labels.

    A file is a row of records of 3,073 bytes: the label, then 1,024 bytes of red, of green and of blue, row by row.

    Args:
        folder: with `data_batch_1.bin` to `data_batch_5.bin` (train) and `test_batch.bin` (test).

    Raises:
        InputError: a file that is missing, is not a row of such records, or has a label above 9.
    """
    pictures, labels = [], []
    for name in _CIFAR_FILES[split]:
        path = Path(folder).expanduser() / name
        try:
            data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        except OSError as error:
            hint = " (the Python version is there; the binary version is needed)" if _pickled(path) else ""
            raise InputError(f"cannot read {path}: {error.strerror or error}{hint}; nothing is downloaded") from None
        if not len(data) or len(data) % _CIFAR_RECORD:
            raise InputError(
                f"{path} has {len(data):,} bytes; a file of CIFAR-10's binary version has {_CIFAR_RECORD:,} bytes a "
                f"picture"
            )
        records = data.reshape(-1, _CIFAR_RECORD)
        if records[:, 0].max() >= _CIFAR_LABELS:
            row = int(records[:, 0].argmax())
            raise InputError(f"{path}: picture {row + 1} has label {records[row, 0]}; labels are 0 to 9")
        labels.append(records[:, 0].astype(np.int64))
        pictures.append(records[:, 1:].reshape(-1, 3, 32, 32))
    return np.concatenate(pictures), np.concatenate(labels)


def _pickled(path: Path) -> bool:
    return path.with_suffix("").exists()


def picture_hash(pictures: NDArray[np.uint8]) -> Words:
    """`(pictures,)` hashes of their pixels, by which they are split."""
    bits = np.unpackbits(pictures.reshape(len(pictures), -1), axis=1, bitorder="little")
    return instance_hash(bits.view(np.bool_))


def in_rounds(pictures: int, count: int, seed: int) -> NDArray[np.int64]:
    """Which picture is the i-th of `count` instances: one shuffle of all of them after the other.

    Example:
        >>> sorted(in_rounds(4, 8, seed=1)[:4].tolist()), sorted(in_rounds(4, 8, seed=1)[4:].tolist())
        ([0, 1, 2, 3], [0, 1, 2, 3])
    """
    rounds = -(-count // pictures)
    streams = fold(np.array([seed], dtype=np.uint64), np.arange(rounds, dtype=np.uint64))
    words = random_words(streams, pictures)
    return np.argsort(words, axis=1, kind="stable").reshape(-1)[:count]
