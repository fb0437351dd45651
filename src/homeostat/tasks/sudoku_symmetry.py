"""Symmetries of sudoku grids, and a hash that none of them changes.

Two grids are essentially the same when one comes from the other by renaming digits, exchanging rows within a band,
columns within a stack, whole bands or stacks, and, where boxes are square, by turning rows into columns. A network that
has seen a grid has seen its symmetric copies' logic too, so the train and test split is by the hash below.
"""

import numpy as np
from numpy.typing import NDArray

from homeostat.tasks.random_words import Words, fold, mix, random_words
from homeostat.tasks.sudoku_geometry import BOXES, geometry
from homeostat.tasks.sudoku_solver import Digits

_SALT = 1
"""Of several, the one that puts close to an eighth of the 6x6 grids into the test split; there are 49 essentially
different ones, so that without choice it may be any share. Fixed for ever, as the split is.
"""


def symmetric_copies(keys: Words, side: int, *grids: Digits) -> tuple[Digits, ...]:
    """A random symmetric copy of each grid, every symmetry with equal chance.

    Args:
        keys: `(batch,)`, what the symmetries are drawn from.
        grids: each `(batch, cells)`, blanks 0; all of them get the same symmetry.

    Example:
        >>> from homeostat.tasks.random_words import candidate_keys
        >>> grid = np.array([[1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]], dtype=np.uint8)
        >>> (copy,) = symmetric_copies(candidate_keys(0, 1, seed=0, size=4, split=0), 4, grid)
        >>> copy.reshape(4, 4).tolist()
        [[4, 1, 3, 2], [2, 3, 1, 4], [1, 4, 2, 3], [3, 2, 4, 1]]
    """
    geo, batch = geometry(side), len(keys)
    words = random_words(keys, 5 * side + 1)
    names = np.zeros((batch, side + 1), dtype=np.uint8)
    names[:, 1:] = words[:, :side].argsort(1) + 1
    rows = _line_order(words[:, side : 3 * side], geo.box_rows)
    columns = _line_order(words[:, 3 * side : 5 * side], geo.box_columns)
    cells = rows[:, :, None] * side + columns[:, None, :]
    if geo.box_rows == geo.box_columns:
        turned = words[:, -1] >> np.uint64(63) == 1
        cells = np.where(turned[:, None, None], cells.transpose(0, 2, 1), cells)
    cells = cells.reshape(batch, -1)
    return tuple(np.take_along_axis(names, np.take_along_axis(grid, cells, 1), 1) for grid in grids)


def _line_order(words: Words, thick: int) -> NDArray[np.int64]:
    """`(batch, side)`: an order of lines that keeps groups of `thick` lines together, from `2 side` words each."""
    batch, side = len(words), words.shape[1] // 2
    groups = words[:, : side // thick].argsort(1)
    within = words[:, side:].reshape(batch, side // thick, thick).argsort(2)
    return (groups[:, :, None] * thick + within).reshape(batch, side)


def grid_hash(grids: Digits, side: int) -> Words:
    """`(batch,)` hashes of solved grids `(batch, cells)` for the split.

    Sides 6 and 9: the same for all symmetric copies of a grid, by construction. Any two rows give a permutation of the
    digits (from the one in a column of the first to the one below it); renaming digits and moving columns leave its
    cycle lengths as they are. Those of all pairs of rows, pairs within a band apart from pairs across bands, are
    combined by sums, which no order changes; so are those of the columns. Two essentially different grids may share a
    hash; then they share a split too.

    Side 4: the digits themselves. With two essentially different grids there is no way to hold out one of a kind.

    Example:
        >>> grid = np.array([[1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]], dtype=np.uint8)
        >>> hex(grid_hash(grid, 4)[0])
        '0xf4240b6c6db03752'
    """
    if side == min(BOXES):
        state = np.full(len(grids), side, dtype=np.uint64)
        for cell in grids.T:
            state = fold(state, cell.astype(np.uint64))
        return state
    geo = geometry(side)
    square = grids.reshape(-1, side, side).astype(np.int64) - 1
    rows = _line_hash(square, geo.box_rows)
    columns = _line_hash(square.transpose(0, 2, 1), geo.box_columns)
    both = mix(rows + columns) if geo.box_rows == geo.box_columns else fold(rows, columns)
    return fold(both, np.full(1, _SALT, dtype=np.uint64))


def _line_hash(grid: NDArray[np.int64], thick: int) -> Words:
    """`(batch,)` from the cycle lengths of all pairs of lines of `(batch, side, side)`, digits from 0."""
    batch, side, _ = grid.shape
    place = grid.argsort(2)  # where each digit stands in each line
    # (batch, line, line, side): the digit of the second line that stands where the first line has digit d.
    onto = np.take_along_axis(grid[:, None], place[:, :, None], 3)
    power, pairs = onto, np.zeros((batch, side, side), dtype=np.uint64)
    for _ in range(side):
        # How many digits come back after 1, 2, ... turns says how many cycles there are of each length.
        back = (power == np.arange(side)).sum(3).astype(np.uint64)
        pairs = pairs * np.uint64(side + 1) + back
        power = np.take_along_axis(onto, power, 3)
    band = np.arange(side) // thick
    pairs = mix(pairs + (band[:, None] == band).astype(np.uint64))
    lines = np.zeros((batch, side), dtype=np.uint64)
    for _ in range(2):  # the second time a line also knows what the others are like
        lines = mix(mix(pairs + lines[:, None, :]).sum(2))
    bands = mix(lines.reshape(batch, -1, thick).sum(2))
    return mix(bands.sum(1))
