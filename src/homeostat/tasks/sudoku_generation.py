"""Sudokus with one solution each and no given to spare, in blocks that are made once.

A grid is filled by the solver with random guesses; then its cells are blanked in random order wherever the solution
stays the only one. Every grid and every minimal puzzle can come out, not all with equal chance.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from homeostat.tasks.base import Split
from homeostat.tasks.random_words import Words, candidate_keys, mix, random_words
from homeostat.tasks.split import TEST_ONE_IN, collect, in_split
from homeostat.tasks.sudoku_geometry import BOXES, Geometry, geometry
from homeostat.tasks.sudoku_solver import Digits, Masks, Searching, masks_of, rate, search
from homeostat.tasks.sudoku_symmetry import grid_hash, symmetric_copies

BLOCK = {4: 256, 6: 512, 9: 256}
"""Base puzzles in a block, by side; a block takes about a second to make."""

RATED_BLOCK = 32
"""Base puzzles in a block where only some ratings are wanted, which most candidates do not have."""

BLOCKS = 64
"""Blocks of each split. Training sees random symmetric copies of these base puzzles."""

_RARITY = 16
"""About how many candidates there are for one of a wanted rating."""

_MOST = 2048


def solved_grids(keys: Words, side: int) -> Digits:
    """A random solved grid for each key, `(batch, cells)`.

    Example:
        >>> grids = solved_grids(candidate_keys(0, 3, seed=0, size=6, split=0), 6)
        >>> np.sort(grids.reshape(3, 6, 6), axis=2)[0, 0]
        array([1, 2, 3, 4, 5, 6], dtype=uint8)
    """
    blank = masks_of(np.zeros((len(keys), side * side), dtype=np.uint8), side)
    return search(blank, side, solutions=1, keys=mix(keys)).solutions


def minimal_puzzles(keys: Words, grids: Digits, side: int) -> Digits:
    """Blank cells of solved grids `(batch, cells)` in random order, each one that leaves the solution unique.

    What remains is minimal: a given that had to stay while there were fewer blanks has to stay with more of them.
    """
    if not len(keys):
        return grids.copy()
    blanking = _Blanking(grids, random_words(keys, grids.shape[1]).argsort(1), geometry(side))
    blanking.run()
    return blanking.puzzles


class _Blanking(Searching):
    """Each puzzle asks about its next cell as soon as it knows about the last, so that none waits for another's search.

    The question about a cell: is there a solution with another digit in it? It would be a second solution of the puzzle
    without this given.
    """

    def __init__(self, grids: Digits, order: NDArray[np.int64], geo: Geometry) -> None:
        self.puzzles, self._grids, self._order = grids.copy(), grids, order
        self._turn = np.zeros(len(grids), dtype=np.int64)
        super().__init__(self._questions(np.arange(len(grids)), geo), geo, solutions=1)

    def _questions(self, place: NDArray[np.int64], geo: Geometry) -> Masks:
        cell, column = self._order[place, self._turn[place]], np.arange(len(place))
        masks = masks_of(self.puzzles[place], geo.side)
        masks[cell, column] = geo.full ^ (np.uint16(1) << (self._grids[place, cell] - 1).astype(np.uint16))
        return masks

    def finish(self, rows: NDArray[np.int64]) -> None:
        place = self.place[rows]
        spare = place[self.found.count[place] == 0]
        self.puzzles[spare, self._order[spare, self._turn[spare]]] = 0
        self._turn[place] += 1
        more = self._turn[place] < self.geo.cells
        again = place[more]
        self.masks[:, rows[more]] = self._questions(again, self.geo)
        self.depth[rows[more]] = self.found.count[again] = self.found.guesses[again] = 0
        if not more.all():
            super().finish(rows[~more])


def add_givens(keys: Words, puzzles: Digits, grids: Digits, givens: int) -> Digits:
    """Fill random blanks of puzzles `(batch, cells)` until each has `givens` givens or more."""
    order = np.where(puzzles > 0, 0, (random_words(keys, puzzles.shape[1]) >> np.uint64(1)) + np.uint64(1))
    return np.where(order.argsort(1, kind="stable").argsort(1) < givens, grids, puzzles)


@lru_cache(maxsize=4 * BLOCKS)
def block(side: int, split: Split, least: int, most: int | None, number: int) -> tuple[Digits, Digits]:
    """Minimal puzzles rated `least` to `most` and their solutions, each `(block_size, cells)`.

    Grids of side 4 are not split here: a symmetric copy of one may belong to the other split.

    Raises:
        InputError: no puzzle of that rating among many.
    """

    def draw(keys: Words) -> tuple[np.ndarray, ...]:
        grids = solved_grids(keys, side)
        if side != min(BOXES):
            kept = in_split(grid_hash(grids, side), split)
            keys, grids = keys[kept], grids[kept]
        puzzles = minimal_puzzles(keys, grids, side)
        if least > 0 or most is not None:
            kept = rated(puzzles, side, least, most)
            puzzles, grids = puzzles[kept], grids[kept]
        return puzzles, grids

    share = 1 / TEST_ONE_IN if split == "test" and side != min(BOXES) else 1 - 1 / TEST_ONE_IN
    puzzles, grids = collect(
        draw,
        block_size(side, least, most),
        size=side,
        split=split,
        seed=number,
        rate=share if block_size(side, least, most) == BLOCK[side] else share / _RARITY,
        most=_MOST,
        what=describe(side, least, most),
    )
    puzzles.flags.writeable = grids.flags.writeable = False
    return puzzles, grids


def draw_puzzles(
    keys: Words, first: int, side: int, split: Split, least: int, most: int | None, givens: int | None
) -> tuple[Digits, Digits]:
    """Random symmetric copies of the base puzzles `first`, `first + 1`, ... for the keys, in their order, less those
    that are not of the split or the rating.
    """
    size = block_size(side, least, most)
    base = (first + np.arange(len(keys))) % (size * BLOCKS)
    puzzles, grids = np.zeros((2, len(keys), side * side), dtype=np.uint8)
    for number in np.unique(base // size):
        at = base // size == number
        from_puzzles, from_grids = block(side, split, least, most, int(number))
        puzzles[at], grids[at] = from_puzzles[base[at] % size], from_grids[base[at] % size]
    puzzles, grids = symmetric_copies(keys, side, puzzles, grids)
    if givens is not None:
        puzzles = add_givens(mix(keys), puzzles, grids, givens)
    kept = np.ones(len(keys), dtype=np.bool_)
    if side == min(BOXES):
        kept &= in_split(grid_hash(grids, side), split)
    if givens is not None:
        kept &= (puzzles > 0).sum(1) == givens
    if least > 0 or most is not None:
        # Which cell is guessed first depends on the order of the cells, so a copy may be rated otherwise.
        kept[kept] = rated(puzzles[kept], side, least, most)
    return puzzles[kept], grids[kept]


def block_size(side: int, least: int, most: int | None) -> int:
    """Base puzzles in a block."""
    return BLOCK[side] if least == 0 and most is None else RATED_BLOCK


def first_base(side: int, split: Split, seed: int) -> int:
    """The base puzzle that a sample begins with."""
    # The numbers 0 and 1 belong to the keys of the instances themselves.
    key = candidate_keys(0, 1, seed=seed, size=side, split=3 if split == "test" else 2)
    return int(key[0] % np.uint64(BLOCK[side] * BLOCKS))


def rated(puzzles: Digits, side: int, least: int, most: int | None) -> np.ndarray:
    """`(batch,)` bool: which puzzles `(batch, cells)` are rated `least` to `most`."""
    rating = rate(puzzles, side)
    return (rating >= least) & (rating <= (rating if most is None else most))


def describe(side: int, least: int, most: int | None) -> str:
    """Such puzzles in words, for errors.

    Example:
        >>> describe(6, 0, None), describe(9, 2, 5)
        ('sudoku of 6x6', 'sudoku of 9x9 rated 2 to 5')
    """
    rating = "" if least == 0 and most is None else f" rated {least}{' or more' if most is None else f' to {most}'}"
    return f"sudoku of {side}x{side}{rating}"
