"""Prefix sums modulo 2: the running parity of a bit string.

The field's plainest test of "does thinking longer help": every answer depends on every bit before it, so a longer
string needs proportionally more steps, and nothing else about the task changes.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from homeostat.errors import InputError
from homeostat.tasks.base import Batch, Legend, Puzzle, PuzzleTask, Split
from homeostat.tasks.random_words import Words, random_words
from homeostat.tasks.split import TEST_ONE_IN, collect, in_split, instance_hash

_WRAP = 64
"""Cells in a row of a picture; a longer string goes on in the next row."""

_MOST_BITS = 2**24
_BLANK = 4


@dataclass(frozen=True)
class PrefixSums(PuzzleTask):
    """Running parity of bit strings of any length.

    Inputs `(batch, 1, length)`: -0.5 for the bit 0 and 0.5 for the bit 1. Targets `(batch, length)`: the parity of
    all bits up to and including that position.

    Example:
        >>> task = PrefixSums()
        >>> inputs, targets = task.sample(32, 4, split="train", seed=0)
        >>> tuple(inputs.shape), tuple(targets.shape)
        ((4, 1, 32), (4, 32))
        >>> bool((((inputs[:, 0] > 0).cumsum(1) % 2) == targets).all())
        True
        >>> puzzle = task.parse(b"1101", name="stdin")[0]
        >>> task.text(puzzle.inputs, torch.tensor([1, 0, 0, 1]))
        '1001'
    """

    name: ClassVar[str] = "prefix-sums"
    summary: ClassVar[str] = "the running parity of a bit string"
    size_name: ClassVar[str] = "bits"
    sizes: ClassVar[tuple[int, ...]] = (32, 64, 128, 256, 512, 1024)
    spatial_dims: ClassVar[int] = 1
    in_channels: ClassVar[int] = 1
    classes: ClassVar[int] = 2
    legend: ClassVar[Legend] = Legend(
        labels=("0, right", "1, right", "0, wrong", "1, wrong", "no position"),
        colours=("#c6dbef", "#0072b2", "#fdd0a2", "#d55e00", "#ffffff"),
    )

    def sample(self, size: int, count: int, *, split: Split, seed: int) -> Batch:
        """`count` strings of `size` bits, each bit 0 or 1 with equal chance.

        Raises:
            InputError: fewer than 1 bit, more than 2**24, or a length without any string in this split.
        """
        if not 1 <= size <= _MOST_BITS:
            raise InputError(f"size {size} is impossible for {self.name}: 1 to {_MOST_BITS:,} bits")

        def draw(keys: Words) -> tuple[np.ndarray, ...]:
            words = random_words(keys, -(-size // 64)).astype("<u8")
            bits = np.unpackbits(words.view(np.uint8), axis=1, count=size, bitorder="little")
            return (bits[in_split(instance_hash(bits.view(np.bool_)), split)],)

        rate = 1 / TEST_ONE_IN if split == "test" else 1 - 1 / TEST_ONE_IN
        (bits,) = collect(
            draw,
            count,
            size=size,
            split=split,
            seed=seed,
            rate=rate,
            most=max(1, 2**26 // size),
            what=f"string of {size} bit{'s' * (size > 1)}",
        )
        parity = np.bitwise_xor.accumulate(bits, axis=1)
        return Batch(_encode(bits)[:, None], torch.from_numpy(parity).long())

    def in_test_split(self, inputs: Tensor) -> NDArray[np.bool_]:
        """`(batch,)` bool: which of the given instances belong to the test split; `inputs` `(batch, 1, length)`."""
        return in_split(instance_hash((inputs[:, 0] > 0).cpu().numpy()), "test")

    def solves(self, inputs: Tensor, answer: Tensor) -> bool:
        """Whether every bit of the answer is the running parity.

        Example:
            >>> task = PrefixSums()
            >>> bits = task.parse(b"0110", name="stdin")[0].inputs
            >>> task.solves(bits, torch.tensor([0, 1, 0, 0])), task.solves(bits, torch.tensor([0, 1, 1, 0]))
            (True, False)
        """
        return bool(torch.equal((inputs[0] > 0).long().cumsum(0) % 2, answer.to(inputs.device)))

    def span(self, size: int) -> int:
        """The last answer needs the first bit: `size - 1` positions."""
        return size - 1

    def parse(self, data: bytes, *, name: str) -> list[Puzzle]:
        """Read one bit string a line; blank lines and lines that begin with `#` are skipped.

        Raises:
            InputError: not UTF-8 text, a character that is neither 0 nor 1, or no string at all.
        """
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: byte {error.start + 1} is not UTF-8 text; write one bit string a line") from None
        puzzles = []
        for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
            bits = line.strip()
            if not bits or bits.startswith("#"):
                continue
            for column, character in enumerate(line, start=1):
                if character not in "01" and not (character.isspace() and line[: column - 1].strip() in ("", bits)):
                    raise InputError(
                        f"{name}, line {number}, column {column}: {character!r} is not a bit; write 0 or 1"
                    )
            values = np.frombuffer(bits.encode("ascii"), dtype=np.uint8) - ord("0")
            puzzles.append(Puzzle(_encode(values[None]), f"line {number}"))
        if not puzzles:
            raise InputError(f"{name}: no bit string found; write one string of 0 and 1 on each line")
        return puzzles

    def text(self, inputs: Tensor, answer: Tensor) -> str:
        """The answer as a bit string."""
        return "".join(map(str, answer.tolist()))

    def picture(self, inputs: Tensor, answer: Tensor) -> Image.Image:
        """The bits in grey with their running parity in blue below, 64 to a row; dark is 1."""
        cell, gap = 12, 6
        bits, parity = _wrap((inputs[0] > 0).long().cpu().numpy()), _wrap(answer.cpu().numpy())
        rows, columns = bits.shape
        canvas = np.full((rows * (2 * cell + gap) + gap, columns * cell + 2 * gap, 3), 255, dtype=np.uint8)
        shades = {
            "bits": np.array([[225, 225, 225], [90, 90, 90], [255, 255, 255]], dtype=np.uint8),
            "parity": np.array([[198, 219, 239], [0, 114, 178], [255, 255, 255]], dtype=np.uint8),
        }
        for row in range(rows):
            top = gap + row * (2 * cell + gap)
            for offset, codes, palette in ((0, bits, "bits"), (cell, parity, "parity")):
                colours = shades[palette][np.minimum(codes[row], 2)]
                for column in range(columns):
                    left = gap + column * cell
                    # One pixel stays white between neighbours.
                    canvas[top + offset : top + offset + cell - 1, left : left + cell - 1] = colours[column]
        return Image.fromarray(canvas)

    def cells(self, inputs: Tensor, answer: Tensor, target: Tensor) -> np.ndarray:
        """The answered bits, 64 to a row: 0 or 1 where right, 2 or 3 where wrong, 4 after the end."""
        given, wanted = answer.cpu().numpy(), target.cpu().numpy()
        return _wrap(given + 2 * (given != wanted))


def _encode(bits: np.ndarray) -> Tensor:
    """Bits of any shape as float32: -0.5 for 0 and 0.5 for 1."""
    return torch.from_numpy(bits.astype(np.float32) - np.float32(0.5))


def _wrap(values: np.ndarray) -> NDArray[np.uint8]:
    """A row of codes as a picture at most 64 wide."""
    columns = min(_WRAP, len(values))
    wrapped = np.full((-(-len(values) // columns), columns), _BLANK, dtype=np.uint8)
    wrapped.reshape(-1)[: len(values)] = values
    return wrapped
