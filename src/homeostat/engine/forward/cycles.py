"""Recognising states that repeat, with bounded memory: one kept state and a few numbers a row."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.record import Mask, Record, Table, to_host
from homeostat.engine.norms import row_rms

LONGEST_PERIOD = 16
"""Cycles up to this period are recognised."""

# A window of LONGEST_PERIOD steps is compared with the state at its beginning. Windows open after 32, 64, 128 and 256
# steps and every 256 from there on, so that the test costs little more than one norm every sixteenth step.
_FIRST_WINDOW, _WIDEST_GAP = 32, 256
# From one window to the next a cycle's residual keeps this share of itself. A map that converges while alternating,
# z <- -0.99 z, keeps 0.85.
_NOT_SHRINKING = 0.999


class CycleTest:
    """Recognises states that repeat with a period from 2 to 16.

    Steps come in blocks that never cross a multiple of LONGEST_PERIOD, so that what is found does not depend on how
    they were cut.
    """

    def __init__(self) -> None:
        self._opens = _FIRST_WINDOW
        self._start: int | None = None
        self._kept: list[Tensor] = []
        self._sizes: list[Table] = []
        self._largest: list[Table] = []
        self._former: list[Table] = []
        self._repeats: Mask | None = None
        self._tried: Mask | None = None

    def due(self, end: int) -> bool:
        """Whether a block of steps that ends there has to be observed."""
        return self._start is not None or end == self._opens or _FIRST_WINDOW - LONGEST_PERIOD < end <= _FIRST_WINDOW

    def observe(
        self, record: Record, changes: list[Table], tolerance: Callable[[list[Table]], list[Table]], exact: bool
    ) -> Mask | None:
        """`(rows,)` bool, rows that cycle, at the end of a window; None where there are none, and at other steps.

        Args:
            record: the steps.
            changes: how far each went, `(steps, rows)` of each leaf.
            tolerance: how far each leaf may go, given the sizes of the leaves.
            exact: whether norms need care.
        """
        end = record.first + record.steps
        result = None
        if self._start is None and _FIRST_WINDOW - LONGEST_PERIOD < end <= _FIRST_WINDOW:
            self._former = _running_max(self._former, changes)  # what the first window is compared with
        elif self._start is not None:
            self._largest = _running_max(self._largest, changes)
            # What is back where it was is as large as it was.
            since = record.changes_since(self._kept, exact)
            repeats = np.all([c <= limit for c, limit in zip(since, tolerance(self._sizes), strict=True)], 0)
            if record.first == self._start:
                repeats[0] = False  # a lag of one is the residual itself
            proposals = record.proposals()
            if proposals is not None:  # trials that fail come back to the same states, and have large residuals
                tried: Mask = np.logical_or.reduce(proposals, axis=0)
                self._tried = tried if self._tried is None else self._tried | tried
            seen: Mask = np.logical_or.reduce(repeats, axis=0)
            self._repeats = seen if self._repeats is None else self._repeats | seen
            if end - self._start == LONGEST_PERIOD:
                # In units of the tolerance, so that a leaf which is large and only rounds hides no other.
                limits = tolerance(self._sizes)
                largest, former = (_in_units(x, limits) for x in (self._largest, self._former))
                result = self._repeats & (largest >= _NOT_SHRINKING * former)
                if self._tried is not None:
                    result &= ~self._tried
                self._former, self._start = self._largest, None
                self._kept, self._sizes, self._largest, self._repeats, self._tried = [], [], [], None, None
        if end == self._opens:
            self._start, self._kept = end, record.after[-1]
            self._sizes = [to_host(row_rms(self._kept[i])) for i in record.measured]
            self._opens += min(self._opens, _WIDEST_GAP)
        return result if result is not None and result.any() else None

    def keep(self, positions: NDArray[np.int64], index: Tensor) -> None:
        """Drop the rows that left; `positions` and `index` say the same."""
        self._kept, self._sizes = [leaf[index] for leaf in self._kept], [size[positions] for size in self._sizes]
        self._largest = [largest[positions] for largest in self._largest]
        self._former = [former[positions] for former in self._former]
        self._repeats = None if self._repeats is None else self._repeats[positions]
        self._tried = None if self._tried is None else self._tried[positions]


def _in_units(changes: list[Table], units: list[Table]) -> Table:
    """The largest over the leaves."""
    return np.max([c if len(changes) == 1 else c / u for c, u in zip(changes, units, strict=True)], 0)


def _running_max(former: list[Table], changes: list[Table]) -> list[Table]:
    largest = [change.max(0) for change in changes]
    return [np.maximum(a, b) for a, b in zip(former, largest, strict=True)] if former else largest
