"""Recognising states that repeat, with bounded memory: one kept state and a few numbers a row."""

from collections.abc import Callable

import torch
from torch import Tensor

from homeostat.engine.forward.record import Record
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
        self._sizes: list[Tensor] = []
        self._largest: Tensor | None = None
        self._former: Tensor | None = None
        self._repeats: Tensor | None = None

    def due(self, end: int) -> bool:
        """Whether a block of steps that ends there has to be observed."""
        return self._start is not None or end == self._opens or _FIRST_WINDOW - LONGEST_PERIOD < end <= _FIRST_WINDOW

    def observe(
        self,
        record: Record,
        changes: list[Tensor],
        within: Callable[[list[Tensor], list[Tensor]], Tensor],
        exact: bool,
    ) -> Tensor | None:
        """`(rows,)` bool, rows that cycle, at the end of a window; None at every other step.

        Args:
            record: the steps, and `changes` `(steps, rows)` of each leaf.
            within: the tolerance: changes and sizes of each leaf to `(steps, rows)` bool.
            exact: whether norms need care.
        """
        end = record.first + record.steps
        change = changes[0] if len(changes) == 1 else torch.stack([x.to(changes[0].dtype) for x in changes]).amax(0)
        result = None
        if self._start is None and _FIRST_WINDOW - LONGEST_PERIOD < end <= _FIRST_WINDOW:
            self._former = _running_max(self._former, change)  # what the first window is compared with
        elif self._start is not None:
            self._largest = _running_max(self._largest, change)
            # What is back where it was is as large as it was.
            repeats = within(record.changes_since(self._kept, exact), self._sizes)
            if record.first == self._start:
                repeats[0] = False  # a lag of one is the residual itself
            self._repeats = repeats.any(0) if self._repeats is None else self._repeats | repeats.any(0)
            if end - self._start == LONGEST_PERIOD:
                assert self._former is not None
                result = self._repeats & (self._largest >= _NOT_SHRINKING * self._former)
                self._former, self._start = self._largest, None
                self._kept, self._sizes, self._largest, self._repeats = [], [], None, None
        if end == self._opens:
            self._start, self._kept = end, record.after[-1]
            self._sizes = [row_rms(self._kept[i]) for i in record.measured]
            self._opens += min(self._opens, _WIDEST_GAP)
        return result

    def keep(self, index: Tensor) -> None:
        """Drop the rows that left."""
        self._kept, self._sizes = [leaf[index] for leaf in self._kept], [size[index] for size in self._sizes]
        self._largest, self._former, self._repeats = (
            None if x is None else x[index] for x in (self._largest, self._former, self._repeats)
        )


def _running_max(former: Tensor | None, values: Tensor) -> Tensor:
    largest = values.amax(0)
    return largest if former is None else torch.maximum(former, largest)
