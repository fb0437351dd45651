"""Letting go of rows that hardly get nearer, where another method waits for them."""

import numpy as np
from numpy.typing import NDArray

from homeostat.engine.forward.record import Mask, Table

# Half in 32 steps is 1e-5 in 530: a row that is slower would use up its steps.
_SHARE = 0.5


class PatienceTest:
    """Finds rows whose residual has not halved in 32 steps, the lowest of each 16 steps counting.

    It decides every 16 steps, from step 48 on; blocks of steps never cross a multiple of 16.
    """

    def __init__(self, rows: int) -> None:
        self._lows = [np.full(rows, np.inf)]  # of these 16 steps, and behind them of the 16 before, and before that

    def observe(self, residual: Table, at_checkpoint: bool) -> Mask | None:
        """`(rows,)` bool, rows to let go of; None where there are none.

        Args:
            residual: `(steps, rows)`, in any unit.
            at_checkpoint: whether these steps end at a multiple of 16.
        """
        self._lows[0] = np.fmin(self._lows[0], residual.min(0))
        if not at_checkpoint:
            return None
        slow = ~(self._lows[0] <= _SHARE * self._lows[2]) if len(self._lows) > 2 else None
        self._lows = [np.full_like(self._lows[0], np.inf), *self._lows[:2]]
        return slow if slow is not None and slow.any() else None

    def keep(self, positions: NDArray[np.int64]) -> None:
        """Drop the rows that left."""
        self._lows = [low[positions] for low in self._lows]
