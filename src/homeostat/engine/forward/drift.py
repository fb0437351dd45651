"""Recognising rows that drift: f(z) - z keeps its size while the state grows by it, as in z <- z + c.

Such a map has no fixed point, and yet f(z) - z gets small beside the state after 1 / rtol steps. Nothing but the growth
makes it so, and that is what is looked at: over at least half of the steps the residual is the same to a thousandth,
and the size of the state has grown steadily. A map that converges has a residual which falls. Where that passes for the
same, the state must have grown by ten times the share by which the residual may have fallen, rounding included: the
fixed point is then ten times as far away as the state is large, or farther. What is not sure is left as it is.
"""

import numpy as np
from numpy.typing import NDArray

from homeostat.engine.forward.record import Mask, Record, Table

_SAME = 1e-3
# Growth of the state, as a share of the way that undamped steps would have gone.
_STEADY = 0.05
# Growth in units of the fall of the residual: how far away the fixed point is, in sizes of the state.
_FAR = 10
_FIRST = 16


class DriftTest:
    """Finds the steps at which rows drift, from step 33 on.

    Args:
        noise: share of the value by which rounding may change a residual.
    """

    def __init__(self, noise: float) -> None:
        self._noise = noise
        self._marks: list[tuple[int, list[NDArray[np.float64]], list[NDArray[np.float64]]]] = []

    def mark(self, end: int, changes: list[Table], sizes: list[NDArray[np.float64]]) -> None:
        """Remember a step where its number is 16 times a power of two.

        Args:
            end: its number.
            changes: RMS of f(z) - z, `(steps, rows)` of each leaf; the last step counts.
            sizes: RMS of f(z) at that step, `(rows,)` of each leaf.
        """
        if end < _FIRST or end & (end - 1):
            return
        self._marks = [*self._marks[-2:], (end, [change[-1] for change in changes], sizes)]

    def observe(self, record: Record, changes: list[Table], sizes: list[Table]) -> Mask | None:
        """`(steps, rows)` bool, steps at which a leaf of the row drifts; None where none can be told.

        Args:
            record: the steps; no multiple of 16 is among them but the last.
            changes, sizes: RMS of f(z) - z and of f(z), `(steps, rows)` of each leaf.
        """
        marks = [mark for mark in self._marks if mark[0] <= record.first][-2:]
        if len(marks) < 2:
            return None
        (begin, *before), (_, former, _) = marks
        steps = np.arange(record.first + 1, record.first + record.steps + 1)[:, None] - begin
        found = []
        for now, size, first, start, second in zip(changes, sizes, *before, former, strict=True):
            rounding = self._noise * size / now
            room = (_SAME + rounding) * now
            same = (np.abs(now - first) <= room) & (np.abs(second - first) <= room)
            growth, fall = size / start - 1, np.maximum(1 - now / first, 0) + rounding
            found.append(same & (growth >= _STEADY * steps * now / size) & (growth >= _FAR * fall) & (now > 0))
        return np.any(found, 0)

    def keep(self, positions: NDArray[np.int64]) -> None:
        """Drop the rows that left."""
        self._marks = [
            (end, [x[positions] for x in changes], [x[positions] for x in sizes]) for end, changes, sizes in self._marks
        ]
