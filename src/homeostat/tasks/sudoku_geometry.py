"""Rows, columns and boxes of a sudoku: which cells may not hold the same digit."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import InputError

BOXES: dict[int, tuple[int, int]] = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box, by the side of the grid."""


@dataclass(frozen=True)
class Geometry:
    """The units of one side. Cells are numbered row by row; units are rows, then columns, then boxes.

    Attributes:
        side: digits, cells a unit, and units of each kind.
        box_rows, box_columns: shape of a box; a band is `box_rows` rows, a stack is `box_columns` columns.
        units: `(3 side, side)`, the cells of each unit.
        units_of: `(3, side * side)`, each cell's row, column and box, as places in `units`.
        full: the bit mask of all digits; digit d is the bit d - 1.
    """

    side: int
    box_rows: int
    box_columns: int
    units: NDArray[np.int64]
    units_of: NDArray[np.int64]
    full: np.uint16

    @property
    def cells(self) -> int:
        """Cells of the grid."""
        return self.side**2

    def unit_name(self, unit: int) -> str:
        """A unit in words, counted from 1.

        Example:
            >>> geometry(4).unit_name(0), geometry(4).unit_name(11)
            ('row 1', 'box 4')
        """
        return f"{('row', 'column', 'box')[unit // self.side]} {unit % self.side + 1}"


@cache
def geometry(side: int) -> Geometry:
    """The units of a grid of `side` x `side` cells.

    Raises:
        InputError: a side without boxes here.

    Example:
        >>> geometry(6).units[12]  # the first box: two rows of three cells
        array([0, 1, 2, 6, 7, 8])
    """
    if side not in BOXES:
        raise InputError(f"size {side} is impossible for sudoku: it is one of {', '.join(map(str, BOXES))}")
    height, width = BOXES[side]
    cell = np.arange(side * side)
    row, column = np.divmod(cell, side)
    box = row // height * (side // width) + column // width
    units_of = np.stack([row, side + column, 2 * side + box])
    units = np.stack([np.flatnonzero((units_of == unit).any(0)) for unit in range(3 * side)])
    return Geometry(side, height, width, units, units_of, np.uint16(2**side - 1))
