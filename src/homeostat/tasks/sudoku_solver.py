"""A sudoku solver for many puzzles at once: candidates as bit masks, singles, then guesses with backtracking.

One sweep does for every cell of every puzzle what a person does first: strike the digits that its row, column and box
already hold (naked singles), and place a digit that has one place left in a unit (hidden singles). Where sweeps change
nothing more, the solver guesses in the cell with the fewest candidates, the first of these, and takes back what fails.
Arrays have the puzzles on their last axis, so that a sweep is a fixed number of operations on long rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from homeostat.tasks.random_words import Words, mix
from homeostat.tasks.sudoku_geometry import Geometry, geometry

Masks = NDArray[np.uint16]
Digits = NDArray[np.uint8]

MOST_GUESSES = 200_000
"""Guesses after which a search is given up; the hardest puzzles published take a few thousand."""

_ONE = np.uint16(1)
_POPULATION = np.array([bin(mask).count("1") for mask in range(2**9)], dtype=np.uint8)
_NO_CELL = np.uint8(255)


@dataclass(frozen=True)
class Search:
    """What the search found for each puzzle.

    Attributes:
        solutions: `(puzzles, cells)` uint8, the first solution found; zeros where there is none.
        count: `(puzzles,)`, solutions found, at most as many as were asked for.
        guesses: `(puzzles,)`, cells in which the solver had to guess.
        complete: `(puzzles,)` bool: the search ended by itself, not at its most guesses.
    """

    solutions: Digits
    count: NDArray[np.int64]
    guesses: NDArray[np.int64]
    complete: NDArray[np.bool_]


def masks_of(digits: Digits, side: int) -> Masks:
    """Candidates `(cells, puzzles)` of puzzles `(puzzles, cells)` whose blanks are 0.

    Example:
        >>> masks_of(np.array([[0, 3]], dtype=np.uint8), 4).ravel()
        array([15,  4], dtype=uint16)
    """
    full = geometry(side).full
    table = np.array([full, *(1 << d for d in range(side))], dtype=np.uint16)
    return np.ascontiguousarray(table[digits].T)


def search(
    masks: Masks, side: int, *, solutions: int = 2, most_guesses: int = MOST_GUESSES, keys: Words | None = None
) -> Search:
    """Look for solutions.

    Args:
        masks: `(cells, puzzles)`, the candidates of every cell; not changed.
        solutions: stop a puzzle when it has this many; 2 decides whether the first is the only one.
        most_guesses: stop a puzzle after so many guesses.
        keys: `(puzzles,)`, where guesses are to be random; else the smallest digit is tried first.

    Example:
        >>> puzzle = np.array([[1, 0, 0, 0, 0, 0, 3, 0, 0, 4, 0, 0, 0, 0, 0, 2]], dtype=np.uint8)
        >>> found = search(masks_of(puzzle, 4), 4)
        >>> found.count, found.guesses
        (array([1]), array([0]))
        >>> found.solutions.reshape(4, 4).tolist()
        [[1, 3, 2, 4], [4, 2, 3, 1], [2, 4, 1, 3], [3, 1, 4, 2]]
    """
    return Searching(masks, geometry(side), solutions, most_guesses, keys).run()


def rate(digits: Digits, side: int) -> NDArray[np.int64]:
    """Guesses of the whole search, which ends when no second solution can exist: the difficulty of a puzzle.

    The size of the whole tree does not depend on which digit is tried first. 0: singles alone solve it.

    Args:
        digits: `(puzzles, cells)`, blanks 0.
    """
    return search(masks_of(digits, side), side, solutions=2).guesses


def sweep(masks: Masks, geo: Geometry) -> tuple[Masks, NDArray[np.bool_]]:
    """Singles of every kind once, all at the same time.

    Returns:
        The new candidates, and which puzzles contradict themselves (as they were handed in).
    """
    single = (masks & (masks - _ONE)) == 0  # also where nothing is left
    placed = np.where(single, masks, np.uint16(0))
    shape = (len(geo.units), masks.shape[1])
    once, twice, used, clash = (np.zeros(shape, dtype=np.uint16) for _ in range(4))
    for cells in geo.units.T:
        here = masks[cells]
        twice |= once & here
        once |= here
        here = placed[cells]
        clash |= used & here
        used |= here
    bad = ((once != geo.full) | (clash != 0)).any(0) | (masks == 0).any(0)
    once &= ~twice
    row, column, box = geo.units_of
    lone = masks & (once[row] | once[column] | once[box])
    left = np.where(single, masks, masks & ~(used[row] | used[column] | used[box]))
    return np.where(lone != 0, lone, left), bad


class Searching:
    """One search of many puzzles. Finished ones leave the arrays, so that a few hard ones cost little.

    Attributes:
        masks, depth: `(cells, rows)` and `(rows,)`, the puzzles still at work: candidates, and guesses to take back.
        place: `(rows,)`, the places of these puzzles among all.
        found: the results so far, of all puzzles.
    """

    def __init__(
        self,
        masks: Masks,
        geo: Geometry,
        solutions: int,
        most_guesses: int = MOST_GUESSES,
        keys: Words | None = None,
    ) -> None:
        count = masks.shape[1]
        self.geo, self.wanted, self.most_guesses = geo, solutions, most_guesses
        self.masks = masks
        self.keys = keys
        self.place = np.arange(count)
        self.depth = np.zeros(count, dtype=np.int64)
        self.stack: list[Masks] = []
        self.found = Search(
            np.zeros((count, geo.cells), dtype=np.uint8),
            np.zeros(count, dtype=np.int64),
            np.zeros(count, dtype=np.int64),
            np.ones(count, dtype=np.bool_),
        )

    def run(self) -> Search:
        """Search until no puzzle is at work."""
        while len(self.place):
            new, bad = sweep(self.masks, self.geo)
            still = ~(new != self.masks).any(0)
            self.masks = new
            stuck = still & ~bad
            if not (bad.any() or stuck.any()):
                continue
            open_cells = _POPULATION[new]
            open_cells[open_cells < 2] = _NO_CELL
            solved = stuck & (open_cells == _NO_CELL).all(0)
            over = self._record(np.flatnonzero(solved))
            over = np.union1d(over, self._take_back(np.flatnonzero(bad | solved)))
            over = np.union1d(over, self._guess(np.flatnonzero(stuck & ~solved), open_cells))
            if len(over):
                self.finish(over)
        return self.found

    def _record(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Note solutions; returns the rows that have all that were asked for."""
        place = self.place[rows]
        first = self.found.count[place] == 0
        table = np.zeros(2**self.geo.side, dtype=np.uint8)
        table[1 << np.arange(self.geo.side)] = np.arange(1, self.geo.side + 1)
        self.found.solutions[place[first]] = table[self.masks[:, rows[first]]].T
        self.found.count[place] += 1
        return rows[self.found.count[place] >= self.wanted]

    def _take_back(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Back to the other half of the last guess; returns the rows that have none."""
        deep = rows[self.depth[rows] > 0]
        self.depth[deep] -= 1
        for level in np.unique(self.depth[deep]):
            at = deep[self.depth[deep] == level]
            self.masks[:, at] = self.stack[level][:, at]
        return np.setdiff1d(rows, deep)

    def _guess(self, rows: NDArray[np.int64], open_cells: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Try a digit in the cell with the fewest candidates; returns the rows that have guessed too often."""
        if not len(rows):
            return rows
        cell = open_cells[:, rows].argmin(0)
        mask = self.masks[cell, rows].astype(np.int64)
        side, full = self.geo.side, int(self.geo.full)
        place = self.place[rows]
        turn = np.zeros(len(rows), dtype=np.int64)
        if self.keys is not None:
            guesses = self.found.guesses[place].astype(np.uint64)
            turn = (mix(self.keys[place] + guesses) >> np.uint64(33)).astype(np.int64) % side
        turned = (mask >> turn | mask << (side - turn)) & full
        lowest = turned & -turned
        digit = (lowest << turn | lowest >> (side - turn)) & full
        for level in np.unique(self.depth[rows]):
            if level == len(self.stack):
                self.stack.append(np.zeros_like(self.masks))
            at = self.depth[rows] == level
            self.stack[level][:, rows[at]] = self.masks[:, rows[at]]
            self.stack[level][cell[at], rows[at]] = (mask & ~digit)[at].astype(np.uint16)
        self.masks[cell, rows] = digit.astype(np.uint16)
        self.depth[rows] += 1
        self.found.guesses[place] += 1
        out = self.found.guesses[place] >= self.most_guesses
        self.found.complete[place[out]] = False
        return rows[out]

    def finish(self, rows: NDArray[np.int64]) -> None:
        """Let puzzles go whose search is over."""
        left = np.ones(len(self.place), dtype=np.bool_)
        left[rows] = False
        self.masks, self.place, self.depth = self.masks[:, left], self.place[left], self.depth[left]
        self.stack = [level[:, left] for level in self.stack[: int(self.depth.max(initial=0))]]
