"""Plain iteration, damped or not."""

from collections.abc import Sequence

import torch
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
        apply, state = self._apply, self._state
        record = Record(self._taken, self._last, self._measured)
        for left in range(count, 0, -1):
            after = apply(state)
            if record_all or left == 1:
                record.add(state, after)
            state = after if self._damping == 1 else self._mix(state, after)
            if not record_all and left == 2:
                record.origin = after
        if not record_all:
            record.first += count - 1
        self._state, self._last = state, record.after[-1]
        self._taken += count
        return record

    def _mix(self, state: Sequence[Tensor], after: list[Tensor]) -> list[Tensor]:
        mixed = list(after)
        for i in self._measured:
            mixed[i] = torch.lerp(state[i], after[i], self._damping)
        return mixed

    def keep(self, index: Tensor) -> None:
        """Rows have left; `index` are the positions of those that stay."""
        whole = self._state is self._last
        self._last = select(self._last, self.problem.layout, index)
        self._state = self._last if whole else select(self._state, self.problem.layout, index)
        if len(index):
            self._context = select(self._context, self.problem.context_layout, index)
            self._apply = self.problem.bind(self._context)
