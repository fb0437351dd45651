"""Plain iteration, damped or not."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.record import Record
from homeostat.engine.nest import select
from homeostat.engine.problem import Problem


class PicardStepper:
    """Takes plain steps `z <- z + damping (f(z) - z)` with the rows that are in the batch."""

    def __init__(self, problem: Problem, damping: float) -> None:
        self.problem, self._damping = problem, damping
        self._measured = problem.layout.measured()
        self._state, self._last = problem.state, problem.state
        self._context = problem.context
        self._apply = problem.bind(problem.context)
        self._taken = 0

    def advance(self, count: int, record_all: bool) -> Record:
        """Take `count` steps; without `record_all` only the last is recorded."""
        record = Record(self._taken, self._last, self._measured)
        apply, damped, state = self._apply, self._damping < 1, self._state
        for left in range(count, 0, -1):
            after = apply(state)
            if record_all or left == 1:
                record.add(state, after)
            else:
                record.first, record.origin = record.first + 1, after
            state = self._mix(state, after) if damped else after
        self._state, self._last = state, record.after[-1]
        self._taken += count
        return record

    def _mix(self, state: Sequence[Tensor], after: list[Tensor]) -> list[Tensor]:
        mixed = list(after)
        for i in self._measured:
            mixed[i] = torch.lerp(state[i], after[i], self._damping)
        return mixed

    def keep(self, positions: NDArray[np.int64], index: Tensor) -> None:
        """Rows have left; `positions` and `index` both say where those are that stay."""
        whole = self._state is self._last
        self._last = select(self._last, self.problem.layout, index)
        self._state = self._last if whole else select(self._state, self.problem.layout, index)
        if len(index):
            self._context = select(self._context, self.problem.context_layout, index)
            self._apply = self.problem.bind(self._context)
