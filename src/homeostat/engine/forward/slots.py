"""A batch whose rows come and go: finished rows leave, new ones take their slots, and no row notices.

All rows share one stepper: its methods decide row by row, and newcomers enter at a step at which that is possible
without a difference to them. The stopping test counts steps from a row's own beginning, so that rows which joined
together, a cohort, have a test of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.pace import Pace
from homeostat.engine.forward.record import Record, Table
from homeostat.engine.forward.run import make_stepper
from homeostat.engine.forward.stepper import Stepper
from homeostat.engine.forward.stopping import Decision, StopTest
from homeostat.engine.methods import Method
from homeostat.engine.nest import select
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop

Member = TypeVar("Member")
"""Whatever stands for a row outside of the batch."""


@dataclass(frozen=True)
class Leaving(Generic[Member]):
    """A row that is finished."""

    member: Member
    leaves: list[Tensor]
    """`(1, ...)` each: the last f(z), or what stands for it; see `Solution.state`."""
    steps: int
    residual: float
    status: Status


@dataclass
class _Cohort(Generic[Member]):
    """Rows that joined together."""

    test: StopTest
    pace: Pace
    members: list[Member]
    """Of the rows that are left, in their order."""
    places: NDArray[np.int64]
    """Where these were among the rows that joined."""
    age: int = 0
    """Steps since then."""


@dataclass
class _Part(Record):
    """A record of some of the rows, whose norms came over from the device together with those of the others."""

    known: tuple[list[Table], list[Table]] | None = None

    def changes(self) -> tuple[list[Table], list[Table]]:
        """See `Record.changes`."""
        assert self.known is not None
        return self.known


class Slots(Generic[Member]):
    """The rows of one layout and shape that are being iterated."""

    def __init__(self, method: Method, stop: Stop) -> None:
        self._method, self._stop = method, stop
        self._stepper: Stepper | None = None  # None where there are no rows
        self._cohorts: list[_Cohort[Member]] = []

    @property
    def rows(self) -> int:
        """Rows in the batch."""
        return sum(len(cohort.members) for cohort in self._cohorts)

    def members(self) -> list[Member]:
        """Of all rows in the batch, those that joined first in front."""
        return [member for cohort in self._cohorts for member in cohort.members]

    def until_open(self) -> int:
        """Steps to take before rows may join."""
        return 0 if self._stepper is None else self._stepper.until_open()

    def join(self, newcomers: Problem, members: Sequence[Member]) -> None:
        """Put rows behind those that are there; only where `until_open()` is 0.

        Args:
            newcomers: their starts, all finite, and contexts.
            members: who they are.
        """
        if self._stepper is None:
            self._stepper = make_stepper(newcomers, self._method)
        else:
            self._stepper.join(newcomers)
        test = StopTest(self._stop, newcomers.state, self._stepper.measured)
        pace = Pace(self._stepper.state, None)
        self._cohorts.append(_Cohort(test, pace, list(members), np.arange(newcomers.rows)))

    def advance(self, most: int | None) -> tuple[int, list[Leaving[Member]]]:
        """Take some steps with all rows, `most` at most.

        Returns:
            The number of steps, and the rows that are finished; they have left.
        """
        stepper = self._stepper
        assert stepper is not None
        count = min(self._length(cohort) for cohort in self._cohorts)
        count = count if most is None else min(count, most)
        record = stepper.advance(count, record_all=self._stop.tests)
        leaving: list[Leaving[Member]] = []
        staying: list[NDArray[np.int64]] = []
        first = 0
        for cohort, part in zip(self._cohorts, self._parts(record, count), strict=True):
            rows = len(cohort.members)
            decision = cohort.test.judge(part, cohort.places)
            cohort.pace.observe(cohort.test.closest)
            stay = np.arange(rows)
            if decision is not None:
                leaving += self._leave(record, first, cohort, decision)
                stay = _keep(cohort, decision, stepper.state[0].device)
            staying.append(first + stay)
            first += rows
        if leaving:
            self._cohorts = [cohort for cohort in self._cohorts if cohort.members]
            positions = np.concatenate(staying)
            if len(positions):
                stepper.keep(positions, torch.from_numpy(positions).to(stepper.state[0].device))
            else:
                self._stepper = None
        return count, leaving

    def _length(self, cohort: _Cohort[Member]) -> int:
        room = cohort.test.room(cohort.age)
        return cohort.pace.next(room) if cohort.test.tests else room

    def _parts(self, record: Record, count: int) -> list[_Part]:
        """The record as each cohort sees it, `count` steps later."""
        changes, sizes = record.changes()
        parts, first = [], 0
        for cohort in self._cohorts:
            at = slice(first, first + len(cohort.members))
            first, cohort.age = at.stop, cohort.age + count
            known = [change[:, at] for change in changes], [size[at] for size in sizes]
            whole = len(self._cohorts) == 1
            parts.append(
                _Part(
                    cohort.age - record.steps,
                    record.origin if whole else _rows(record.origin, at),
                    record.measured,
                    record.before if whole else [_rows(leaves, at) for leaves in record.before],
                    record.after if whole else [_rows(leaves, at) for leaves in record.after],
                    record.lengths if whole else _rows(record.lengths, at),
                    [None if x is None else x[at] for x in record.proposed],
                    known,
                )
            )
        return parts

    def _leave(self, record: Record, first: int, cohort: _Cohort[Member], decision: Decision) -> list[Leaving[Member]]:
        """The rows of a cohort that are finished, each from the step at which it was; `first` is where they begin."""
        assert self._stepper is not None
        leaving, test = [], cohort.test
        for step in np.unique(decision.at[decision.finished]):
            rows = np.flatnonzero(decision.finished & (decision.at == step))
            source = record.origin if step < 0 else record.after[step]
            index = torch.from_numpy(first + rows).to(source[0].device)
            # Rows of their own: a finished example keeps no batch in memory.
            found = [leaf.split(1) for leaf in select(source, self._stepper.problem.layout, index)]
            for row, *leaves in zip(rows.tolist(), *found, strict=True):
                place = cohort.places[row]
                status = Status(int(test.status[place]))
                steps, residual = int(test.steps[place]), float(test.residual[place])
                leaving.append(Leaving(cohort.members[row], leaves, steps, residual, status))
        return leaving


def _keep(cohort: _Cohort[Member], decision: Decision, device: torch.device) -> NDArray[np.int64]:
    """Drop the rows of a cohort that are finished; returns where those are that stay."""
    stay = np.flatnonzero(~decision.finished)
    cohort.members = [cohort.members[row] for row in stay.tolist()]
    cohort.places = cohort.places[stay]
    if len(stay):
        cohort.test.keep(stay, torch.from_numpy(stay).to(device))
    return stay


def _rows(leaves: Sequence[Tensor], at: slice) -> list[Tensor]:
    return [leaf[at] for leaf in leaves]
