"""Sudoku on 4x4, 6x6 and 9x9 cells: fill in the digits so that no row, column or box holds one twice."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from homeostat.checks import plain_numbers
from homeostat.errors import InputError
from homeostat.tasks.base import Batch, Legend, Puzzle, PuzzleTask, Split
from homeostat.tasks.random_words import Words
from homeostat.tasks.split import TEST_ONE_IN, collect, in_split
from homeostat.tasks.sudoku_generation import describe, draw_puzzles, first_base
from homeostat.tasks.sudoku_geometry import BOXES, geometry
from homeostat.tasks.sudoku_pictures import draw_grid
from homeostat.tasks.sudoku_solver import Digits, masks_of, rate, search
from homeostat.tasks.sudoku_symmetry import grid_hash
from homeostat.tasks.sudoku_text import format_digits, read_lines


@dataclass(frozen=True)
class Sudoku(PuzzleTask):
    """Sudokus with one solution; the size is the side, 4 (boxes of 2x2), 6 (2x3) or 9 (3x3).

    Inputs `(batch, 1 + digits, side, side)`: 1 in the first channel where a cell is blank, else in the channel of its
    digit. Targets `(batch, side, side)`: the digit less one, in givens too. There are as many digits as `side` says,
    and 9 where it says nothing.

    The splits share no grid up to symmetry (renamed digits, moved rows, columns, bands and stacks, and transposition
    where boxes are square), for sides 6 and 9. Side 4, with 288 grids of two kinds, is a smoke task: it shares no grid.

    Args:
        side: the only side that there is: what a network for one side is made for. None allows all three.
        givens: how many givens; None leaves no given that could be spared. A puzzle with more givens than that is a
            minimal one with random cells filled in.
        least_rating, most_rating: only puzzles that the solver needs so many guesses for (`sudoku_solver.rate`); None
            for no upper end. Few 6x6 puzzles need any, most minimal 9x9 ones do, and no 4x4 one does.

    Raises:
        InputError: an option outside its range.

    Example:
        >>> task = Sudoku(side=4)
        >>> inputs, targets = task.sample(4, 2, split="train", seed=0)
        >>> tuple(inputs.shape), tuple(targets.shape)
        ((2, 5, 4, 4), (2, 4, 4))
        >>> puzzle = task.parse(b"1.....3..4.....2", name="stdin")[0]
        >>> task.rate(puzzle.inputs[None])
        array([0])
        >>> task.text(puzzle.inputs, torch.tensor([[0, 2, 1, 3], [3, 1, 2, 0], [1, 3, 0, 2], [2, 0, 3, 1]]))
        '1324423124133142'
    """

    side: int | None = None
    givens: int | None = None
    least_rating: int = 0
    most_rating: int | None = None

    name: ClassVar[str] = "sudoku"
    summary: ClassVar[str] = "every digit once in each row, column and box"
    size_name: ClassVar[str] = "cells a side"
    sizes: ClassVar[tuple[int, ...]] = tuple(BOXES)
    spatial_dims: ClassVar[int] = 2
    in_channels: ClassVar[int] = 1 + max(BOXES)
    classes: ClassVar[int] = max(BOXES)
    legend: ClassVar[Legend] = Legend(
        labels=("given", "filled in, right", "filled in, wrong", "given, changed"),
        colours=("#22303c", "#0072b2", "#e66100", "#c2185b"),
    )

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.side is not None and self.side not in BOXES:
            raise InputError(f"side {self.side!r} is impossible for sudoku: it is one of {', '.join(map(str, BOXES))}")
        ends = {"givens": (self.side or max(BOXES)) ** 2, "least_rating": None, "most_rating": None}
        for option, end in ends.items():
            value = getattr(self, option)
            if value is None and option != "least_rating":
                continue
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not whole or (end is not None and value > end):
                to = "on" if end is None else f"to {end}"
                raise InputError(f"{option} {value!r} is not a whole number from 0 {to}")
        if self.most_rating is not None and self.most_rating < self.least_rating:
            raise InputError(f"least_rating {self.least_rating} is above most_rating {self.most_rating}")
        if self.side is not None:  # one side has channels and classes of its own
            for attribute, value in (("sizes", (self.side,)), ("in_channels", 1 + self.side), ("classes", self.side)):
                object.__setattr__(self, attribute, value)

    def sample(self, size: int, count: int, *, split: Split, seed: int) -> Batch:
        """`count` puzzles with `size` cells a side: random symmetric copies of base puzzles, no two of the same one
        among the first 16,384 (6x6: 32,768). Base puzzles are made in blocks when first needed, which takes a second or
        two for 9x9, and longer where only some ratings are wanted.

        Raises:
            InputError: another size, or givens or a rating that hardly any puzzle of that size has.
        """
        if size not in self.sizes:
            there = ", ".join(map(str, self.sizes))
            raise InputError(
                f"size {size} is impossible for {self.name}: it is {'one of ' * (len(self.sizes) > 1)}{there}"
            )
        first = first_base(size, split, seed)
        drawn = 0

        def draw(keys: Words) -> tuple[np.ndarray, ...]:
            nonlocal drawn
            drawn += len(keys)
            place = first + drawn - len(keys)
            return draw_puzzles(keys, place, size, split, self.least_rating, self.most_rating, self.givens)

        few = 1 / TEST_ONE_IN if size == min(BOXES) and split == "test" else 1.0
        what = describe(size, self.least_rating, self.most_rating)
        puzzles, grids = collect(
            draw,
            count,
            size=size,
            split=split,
            seed=seed,
            rate=few,
            most=4096,
            what=what if self.givens is None else f"{what} with {self.givens} givens",
        )
        targets = torch.from_numpy(grids.astype(np.int64) - 1).reshape(-1, size, size)
        return Batch(self._encode(puzzles, size), targets)

    def _encode(self, puzzles: Digits, side: int) -> Tensor:
        """Puzzles `(batch, cells)`, blanks 0, as inputs."""
        inputs = np.zeros((len(puzzles), self.in_channels, side * side), dtype=np.float32)
        np.put_along_axis(inputs, puzzles[:, None].astype(np.int64), 1, 1)
        return torch.from_numpy(inputs).reshape(len(puzzles), self.in_channels, side, side)

    @staticmethod
    def _digits(inputs: Tensor) -> Digits:
        """Inputs `(batch, channels, side, side)` as puzzles `(batch, cells)`, blanks 0."""
        return inputs.argmax(1).flatten(1).cpu().numpy().astype(np.uint8)

    def rate(self, inputs: Tensor) -> NDArray[np.int64]:
        """`(batch,)`: guesses that the solver needs until it knows the only solution of each puzzle.

        Args:
            inputs: `(batch, channels, side, side)`, as `sample` gives them.
        """
        return rate(self._digits(inputs), inputs.shape[-1])

    def in_test_split(self, inputs: Tensor) -> NDArray[np.bool_]:
        """`(batch,)` bool: whose solution, the first that the solver finds, belongs to the test split; `inputs`
        `(batch, channels, side, side)`. A puzzle without any solution belongs to neither.
        """
        side = inputs.shape[-1]
        found = search(masks_of(self._digits(inputs), side), side, solutions=1)
        solved = found.count > 0
        test = np.zeros(len(inputs), dtype=np.bool_)
        test[solved] = in_split(grid_hash(found.solutions[solved], side), "test")
        return test

    def parse(self, data: bytes, *, name: str) -> list[Puzzle]:
        """Read puzzles, one a line: 81, 36 or 16 characters, digits with 0 or a dot for blanks, and published lists.

        Where a puzzle has several solutions, its `where` says so; `solves` accepts each of them.

        Raises:
            InputError: see `sudoku_text.read_lines`; also givens that no grid continues.
        """
        lines = read_lines(data, name=name, sides=self.sizes)
        several = np.zeros(len(lines), dtype=np.bool_)
        for side in self.sizes:
            rows = [row for row, (_, digits, _) in enumerate(lines) if len(digits) == side * side]
            if not rows:
                continue
            found = search(masks_of(np.stack([lines[row][1] for row in rows]), side), side)
            for row, count, complete in zip(rows, found.count, found.complete, strict=True):
                if count == 0:
                    why = (
                        "has no solution" if complete else f"is not solved within {int(found.guesses.max()):,} guesses"
                    )
                    raise InputError(f"{name}, {lines[row][0]}: the puzzle {why}; check its givens")
            several[rows] = found.count > 1
        return [
            Puzzle(self._encode(digits[None], side_of(digits))[0], f"{where} (several solutions)" if many else where)
            for (where, digits, _), many in zip(lines, several, strict=True)
        ]

    def text(self, inputs: Tensor, answer: Tensor) -> str:
        """The answer as one line of digits."""
        return format_digits(answer.flatten().cpu().numpy() + 1)

    def picture(self, inputs: Tensor, answer: Tensor) -> Image:
        """The grid with givens in black and answers in blue; a given that the answer changes is framed."""
        return draw_grid(self._digits(inputs[None])[0].reshape(answer.shape), answer.cpu().numpy() + 1)

    def cells(self, inputs: Tensor, answer: Tensor, target: Tensor) -> np.ndarray:
        """Codes into `legend`: 0 given, 1 and 2 filled in right and wrong, 3 given but changed."""
        blank = inputs[0].cpu().numpy() > 0
        wrong = (answer != target).cpu().numpy()
        return np.where(blank, 1 + wrong, 3 * wrong).astype(np.uint8)

    def solves(self, inputs: Tensor, answer: Tensor) -> bool:
        """Whether the answer keeps the givens and has every digit once in each unit; any such answer is right.

        Example:
            >>> task = Sudoku(side=4)
            >>> inputs, targets = task.sample(4, 1, split="test", seed=0)
            >>> task.solves(inputs[0], targets[0]), task.solves(inputs[0], targets[0].flip(0))
            (True, False)
        """
        geo = geometry(answer.shape[-1])
        digits, filled = self._digits(inputs[None])[0], answer.flatten().cpu().numpy() + 1
        kept = (digits == 0) | (digits == filled)
        return bool(kept.all() and (np.sort(filled[geo.units], axis=1) == np.arange(1, geo.side + 1)).all())


def side_of(digits: Digits) -> int:
    """The side of a puzzle `(cells,)`."""
    return {side * side: side for side in BOXES}[len(digits)]
