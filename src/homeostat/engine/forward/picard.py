"""Plain iteration, damped or not."""

import torch
from torch import Tensor

from homeostat.engine.forward.record import Record
from homeostat.engine.forward.stepper import Stepper
from homeostat.engine.methods import Picard
from homeostat.engine.problem import Problem


class PicardStepper(Stepper):
    """Plain steps `z <- z + damping (f(z) - z)`."""

    def __init__(self, problem: Problem, method: Picard) -> None:
        super().__init__(problem)
        self._damping = method.damping

    def advance(self, count: int, record_all: bool) -> Record:
        """Take `count` steps; without `record_all` only the last is recorded, and nothing is taken of the others."""
        if record_all or count == 1:
            return super().advance(count, record_all)
        for _ in range(count - 1):
            self.last = self._apply(self.state)
            self.state = self._mix(self.state, self.last)
        self.taken += count - 1
        return super().advance(1, record_all=True)

    def receive(self, record: Record, after: list[Tensor]) -> None:
        """See `Stepper.receive`."""
        record.add(self.state, after)
        self.state, self.last = self._mix(self.state, after), after
        self.taken += 1

    def _mix(self, state: list[Tensor], after: list[Tensor]) -> list[Tensor]:
        if self._damping == 1:
            return after
        mixed = list(after)
        for i in self.measured:
            mixed[i] = torch.lerp(state[i], after[i], self._damping)
        return mixed
