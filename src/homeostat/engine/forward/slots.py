"""A batch whose rows come and go: finished rows leave, new ones take their slots, and no row notices.

All rows share one stepper: its methods decide row by row, and newcomers enter at a step at which that is possible
without a difference to them. The stopping test counts steps from a row's own beginning, so that rows which joined
together, a cohort, have a test of their own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.accelerated import AcceleratedStepper
from homeostat.engine.forward.pace import Pace
from homeostat.engine.forward.record import Record, Table
from homeostat.engine.forward.run import make_stepper
from homeostat.engine.forward.stepper import Stepper
from homeostat.engine.forward.stopping import Decision, StopTest
from homeostat.engine.methods import Method
from homeostat.engine.nest import Layout, select
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


class _Finished(NamedTuple, Generic[Member]):
    """What a cohort says of a row that leaves it."""

    member: Member
    row: int
    """Its place in the batch."""
    at: int
    """Step of the record, from 0, that it is taken from; -1 for the state before."""
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

    def release(self, rows: NDArray[np.int64], decision: Decision, device: torch.device) -> list[_Finished[Member]]:
        """Drop the rows that are finished; `rows` are the places of all of them in the batch."""
        test, done = self.test, np.flatnonzero(decision.finished)
        places = self.places[done]
        released = [
            _Finished(self.members[i], row, at, steps, residual, Status(status))
            for i, row, at, steps, residual, status in zip(
                done.tolist(),
                rows[done].tolist(),
                decision.at[done].tolist(),
                test.steps[places].tolist(),
                test.residual[places].tolist(),
                test.status[places].tolist(),
                strict=True,
            )
        ]
        self.keep(np.flatnonzero(~decision.finished), device)
        return released

    def keep(self, stay: NDArray[np.int64], device: torch.device) -> None:
        """Only some of the rows stay."""
        self.members = [self.members[i] for i in stay.tolist()]
        self.places = self.places[stay]
        if len(stay):
            self.test.keep(stay, torch.from_numpy(stay).to(device))


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

    def __init__(self, method: Method, stop: Stop, sync_every: int | None) -> None:
        self._method, self._stop, self._sync_every = method, stop, sync_every
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
        pace = Pace(self._stepper.state, self._sync_every)
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
        finished: list[_Finished[Member]] = []
        staying: list[NDArray[np.int64]] = []
        first = 0
        for cohort, part in zip(self._cohorts, self._parts(record, count), strict=True):
            rows = np.arange(first, first + len(cohort.members))
            first += len(rows)
            decision = cohort.test.judge(part, cohort.places)
            cohort.pace.observe(cohort.test.closest)
            if decision is not None:
                finished += cohort.release(rows, decision, stepper.state[0].device)
                rows = rows[~decision.finished]
            staying.append(rows)
        leaving, others = self._take_back(record, finished)
        if finished:
            self._cohorts = [cohort for cohort in self._cohorts if cohort.members]
            self._keep(staying, first)
        return count, leaving + _leave(record, others, stepper.problem.layout)

    def drop(self, gone: Callable[[Member], bool]) -> None:
        """Let go of rows that nobody waits for."""
        staying: list[NDArray[np.int64]] = []
        first = 0
        for cohort in self._cohorts:
            stay = np.array([i for i, member in enumerate(cohort.members) if not gone(member)], dtype=np.int64)
            staying.append(first + stay)
            first += len(cohort.members)
            if self._stepper is not None and len(stay) < len(cohort.members):
                cohort.keep(stay, self._stepper.state[0].device)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.members]
        self._keep(staying, first)

    def _keep(self, staying: list[NDArray[np.int64]], rows: int) -> None:
        """Only these of the `rows` rows stay in the batch."""
        stepper = self._stepper
        if stepper is None or sum(map(len, staying)) == rows:
            return
        positions = np.concatenate(staying)
        if len(positions):
            stepper.keep(positions, torch.from_numpy(positions).to(stepper.state[0].device))
        else:
            self._stepper = None

    def _take_back(
        self, record: Record, finished: list[_Finished[Member]]
    ) -> tuple[list[Leaving[Member]], list[_Finished[Member]]]:
        """Rows that would leave with what a trial made that is not finite leave with where the trial began.

        Returns:
            These, and the others.
        """
        stepper = self._stepper
        if not isinstance(stepper, AcceleratedStepper):
            return [], finished
        leaving: list[Leaving[Member]] = []
        others: list[_Finished[Member]] = []
        for row in finished:
            over = row.status == Status.MAX_STEPS
            # Without a tolerance, rows that diverged are left as they are.
            suspect = not math.isfinite(row.residual) and (over or self._stop.tests)
            if suspect and stepper.is_lost(record, row.row, row.at):
                leaves, relative = stepper.anchors(torch.tensor([row.row], device=stepper.last[0].device))
                residual = float(relative) if over else row.residual
                leaving.append(Leaving(row.member, leaves, row.steps, residual, row.status))
            else:
                others.append(row)
        return leaving, others

    def _length(self, cohort: _Cohort[Member]) -> int:
        room = cohort.test.room(cohort.age)
        return cohort.pace.next(room) if cohort.test.tests else room

    def _parts(self, record: Record, count: int) -> list[_Part]:
        """The record as each cohort sees it, `count` steps later."""
        changes, sizes = record.changes()
        for cohort in self._cohorts:
            cohort.age += count
        if len(self._cohorts) == 1:
            whole = {name: getattr(record, name) for name in ("origin", "measured", "before", "after", "lengths")}
            first = self._cohorts[0].age - record.steps
            return [_Part(first, **whole, proposed=record.proposed, known=(changes, sizes))]
        rows = [len(cohort.members) for cohort in self._cohorts]
        ends = np.cumsum(rows)
        origin, lengths = _split(record.origin, rows), _split(record.lengths, rows)
        before = [_split(leaves, rows) for leaves in record.before]
        after = [_split(leaves, rows) for leaves in record.after]
        parts = []
        for i, cohort in enumerate(self._cohorts):
            at = slice(ends[i] - rows[i], ends[i])
            parts.append(
                _Part(
                    cohort.age - record.steps,
                    origin[i],
                    record.measured,
                    [step[i] for step in before],
                    [step[i] for step in after],
                    lengths[i],
                    [None if x is None else x[at] for x in record.proposed],
                    ([change[:, at] for change in changes], [size[at] for size in sizes]),
                )
            )
        return parts


def _split(leaves: Sequence[Tensor], rows: list[int]) -> list[list[Tensor]]:
    """For each cohort its rows of every leaf, as views."""
    pieces = [leaf.split(rows) for leaf in leaves]
    return [[piece[i] for piece in pieces] for i in range(len(rows))]


def _leave(record: Record, finished: list[_Finished[Member]], layout: Layout) -> list[Leaving[Member]]:
    """Finished rows with their leaves, each from the step at which it was finished."""
    leaving = []
    for step in sorted({row.at for row in finished}):
        rows = [row for row in finished if row.at == step]
        source = record.origin if step < 0 else record.after[step]
        index = torch.tensor([row.row for row in rows], device=source[0].device)
        # Copies, so that an example which is kept keeps no batch in memory.
        pieces = [leaf.split(1) for leaf in select(source, layout, index)]
        for row, *leaves in zip(rows, *pieces, strict=True):
            leaving.append(Leaving(row.member, leaves, row.steps, row.residual, row.status))
    return leaving
