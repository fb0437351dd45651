"""What every method is to the loop around it: something that takes steps with the rows that are in the batch."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.record import Record
from homeostat.engine.nest import select
from homeostat.engine.problem import Problem


class Stepper(ABC):
    """A method at work. `state` is where it wants `f` evaluated next; `receive` tells it what came back."""

    block = 1
    """Steps that are best taken at once."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.measured = problem.layout.measured()
        self.context = problem.context
        self.state = problem.state
        self.last = problem.state
        """Leaves of the latest f(z), or of the start."""
        self.taken = 0
        self._apply = problem.bind(problem.context)

    def advance(self, count: int, record_all: bool) -> Record:
        """Take `count` steps; without `record_all` only the last is recorded."""
        record = self.begin_record()
        for left in range(count, 0, -1):
            after = self._apply(self.state)
            if not record_all and left > 1:
                self.receive(Record(self.taken, self.last, self.measured), after)
                record = self.begin_record()
            else:
                self.receive(record, after)
        return record

    def begin_record(self) -> Record:
        """An empty record of the steps that come."""
        return Record(self.taken, self.last, self.measured)

    @abstractmethod
    def receive(self, record: Record, after: list[Tensor]) -> None:
        """Enter f(z) for z = `state` into the record, and move on to the next state."""

    def keep(self, positions: NDArray[np.int64], index: Tensor) -> None:
        """Rows have left; `positions` and `index` both say where those are that stay."""
        layout = self.problem.layout
        same = self.state is self.last
        self.last = select(self.last, layout, index)
        self.state = self.last if same else select(self.state, layout, index)
        self.context = select(self.context, self.problem.context_layout, index)
        self._apply = self.problem.bind(self.context)
