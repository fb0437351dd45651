"""What every method is to the loop around it: something that takes steps with the rows that are in the batch."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.batch_statistics import refuse_batch_statistics
from homeostat.engine.forward.record import Record
from homeostat.engine.nest import append, select
from homeostat.engine.problem import Problem
from homeostat.engine.uncompiled import eagerly


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
        self._whole = True  # no row has left
        self._returned: set[int] = set()
        self._bound = problem.bind(problem.context, returned=self._returned)
        self._apply = self._first_step

    def _first_step(self, state: list[Tensor]) -> list[Tensor]:
        with eagerly(), refuse_batch_statistics():
            after = self._bound(state)
        self._apply = self._bound
        return after

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
        self._keep_problem(index)

    def _keep_problem(self, index: Tensor) -> None:
        self.context = select(self.context, self.problem.context_layout, index)
        # Whether the step still leaves alone what it is given is looked at again when rows leave for the first time.
        self._apply = self._bound = self.problem.bind(self.context, compare=self._whole, returned=self._returned)
        self._whole = False

    def until_open(self) -> int:
        """Steps to take before rows may join."""
        return 0

    def join(self, newcomers: Problem) -> None:
        """Rows that have taken no step come in behind those that are there; only where `until_open()` is 0."""
        layout = self.problem.layout
        same = self.state is self.last
        self.last = append([self.last, newcomers.state], layout)
        self.state = self.last if same else append([self.state, newcomers.state], layout)
        self.context = append([self.context, newcomers.context], self.problem.context_layout)
        self._apply = self._bound = self.problem.bind(self.context, compare=False, returned=self._returned)
