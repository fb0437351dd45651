"""Letting go of rows that hardly get nearer, where another method waits for them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from homeostat.engine.forward.record import Mask, Table

_WINDOWS = 3
_SHARE = 0.5


class PatienceTest:
    """Finds rows whose residual does not fall, by the lowest of each 16 steps.

    Such a row has not halved it since the worst of the three windows before, or has raised it in two windows in a row.
    The worst counts because extrapolation begins by raising it, and then falls. What is compared is `f(z) - z` in units
    of the state at the beginning: where a state grows without end, it gets smaller beside that for ever.

    It decides every 16 steps, from step 48 on; blocks of steps never cross a multiple of 16.
    """

    def __init__(self, rows: int) -> None:
        self._units: list[NDArray[np.float64]] = []
        self._low = np.full(rows, np.inf)  # of the present window
        self._former: list[NDArray[np.float64]] = []  # of the windows before, the last one first

    def observe(self, changes: Sequence[Table], sizes: Sequence[NDArray[np.float64]], ended: bool) -> Mask | None:
        """`(rows,)` bool, rows to let go of; None where there are none.

        Args:
            changes: how far each step went, `(steps, rows)` of each leaf.
            sizes: of each leaf of the last f(z), `(rows,)`.
            ended: whether a window ends with these steps.
        """
        self._units = self._units or [np.where(size > 0, size, 1.0) for size in sizes]
        residual = np.max([change / unit for change, unit in zip(changes, self._units, strict=True)], 0)
        self._low = np.fmin(self._low, residual.min(0))
        if not ended:
            return None
        now, former = self._low, self._former
        slow = np.zeros(len(now), bool)
        if len(former) == _WINDOWS:
            slow |= ~(now <= _SHARE * np.max(former, 0))
        if len(former) >= 2:
            slow |= (now > former[0]) & (former[0] > former[1])
        self._low, self._former = np.full_like(now, np.inf), [now, *former[: _WINDOWS - 1]]
        return slow if slow.any() else None

    def keep(self, positions: NDArray[np.int64]) -> None:
        """Drop the rows that left."""
        self._low = self._low[positions]
        self._units = [unit[positions] for unit in self._units]
        self._former = [low[positions] for low in self._former]
