"""Run a problem to its end with a method: the one entrance to everything in `forward`."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from homeostat.engine.forward.accelerated import AndersonStepper
from homeostat.engine.forward.pace import Pace
from homeostat.engine.forward.picard import PicardStepper
from homeostat.engine.forward.record import Record
from homeostat.engine.forward.stopping import StopTest
from homeostat.engine.methods import Anderson, Method, Picard
from homeostat.engine.nest import merge_rows, select
from homeostat.engine.norms import finite_rows
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop


@dataclass(frozen=True)
class Run:
    """How a run ended, row by row. `leaves` has a graph where gradients were enabled."""

    leaves: list[Tensor]
    steps: Tensor
    residual: Tensor
    status: Tensor
    row_evaluations: int


@dataclass(frozen=True)
class Watch:
    """What is looked at on the way, and how often."""

    best: bool = False
    """Return the iterate with the lowest residual, not the last."""
    trace: bool = False
    sync_every: int | None = None


class Stepper(Protocol):
    """A method at work on the rows that are in the batch."""

    def advance(self, count: int, record_all: bool) -> Record:
        """Take `count` steps."""
        ...

    def keep(self, index: Tensor) -> None:
        """Rows have left."""
        ...


def run(problem: Problem, stop: Stop, method: Method, watch: Watch = Watch()) -> Run:  # noqa: B008
    """Iterate; rows that start non-finite, or that may take no step, are left as they are."""
    idle = _rows_that_cannot_start(problem, stop)
    busy = (idle < 0).nonzero().squeeze(1)
    if len(busy) == problem.rows:
        return _run(problem, stop, method, watch)
    test = StopTest(Stop(max_steps=0), problem.state, problem.layout.measured())
    test.status.copy_(idle)
    evaluations = 0
    leaves = problem.state
    if len(busy):
        part = _run(problem.subset(busy), rows_of(stop, busy), method, watch)
        leaves = merge_rows(problem.state, busy, part.leaves)
        test.steps[busy], test.residual[busy], test.status[busy] = part.steps, part.residual, part.status
        evaluations = part.row_evaluations
    return Run(leaves, test.steps, test.residual, test.status, evaluations)


def _run(problem: Problem, stop: Stop, method: Method, watch: Watch) -> Run:
    test = StopTest(stop, problem.state, problem.layout.measured())
    stepper = _stepper(problem, method)
    pace = Pace(problem.state, watch.sync_every)
    rows = torch.arange(problem.rows, device=problem.state[0].device)
    pieces: list[tuple[Tensor, list[Tensor]]] = []
    taken = evaluations = 0
    while len(rows) and taken < test.max_steps:
        room = test.room(taken)
        count = pace.next(room) if test.tests else room
        record = stepper.advance(count, record_all=test.tests)
        taken += count
        evaluations += count * len(rows)
        with torch.no_grad():
            decision = test.judge(record, rows)
        if test.tests:
            pace.observe(test.closest)
        if decision is None:
            continue
        pieces += _outgoing(problem, record, rows, decision.finished, decision.at - decision.reverted.long())
        stay = (~decision.finished).nonzero().squeeze(1)
        rows = rows[stay]
        if len(rows):
            stepper.keep(stay)
            test.keep(stay)
    leaves = _assemble(problem, pieces)
    return Run(leaves, test.steps, test.residual, test.status, evaluations)


def _stepper(problem: Problem, method: Method) -> Stepper:
    if isinstance(method, Picard):
        return PicardStepper(problem, method.damping)
    if isinstance(method, Anderson):
        return AndersonStepper(problem, method)
    return PicardStepper(problem, 1.0)


def _outgoing(
    problem: Problem, record: Record, rows: Tensor, finished: Tensor, at: Tensor
) -> list[tuple[Tensor, list[Tensor]]]:
    """Leaves of the rows that leave, each from the step `at`; -1 is the f(z) before the record."""
    pieces = []
    for step in at[finished].unique().tolist():
        index = (finished & (at == step)).nonzero().squeeze(1)
        source = record.origin if step < 0 else record.after[step]
        whole = len(index) == len(rows)
        pieces.append((rows[index], list(source) if whole else select(source, problem.layout, index)))
    return pieces


def _assemble(problem: Problem, pieces: list[tuple[Tensor, list[Tensor]]]) -> list[Tensor]:
    """The pieces put together in the order of the batch."""
    if not pieces:
        return list(problem.state)
    if len(pieces) == 1:
        return pieces[0][1]
    order = torch.cat([index for index, _ in pieces]).argsort()
    count = len(problem.state)
    return [torch.cat([piece[i] for _, piece in pieces]).index_select(0, order) for i in range(count)]


def _rows_that_cannot_start(problem: Problem, stop: Stop) -> Tensor:
    """`(batch,)`: the status of rows that take no step, -1 for those that do."""
    device = problem.state[0].device
    idle = torch.full((problem.rows,), -1, dtype=torch.int8, device=device)
    limits = torch.as_tensor(stop.max_steps, device=device)
    idle[(limits == 0).expand(problem.rows)] = Status.MAX_STEPS
    for i in problem.layout.measured():
        idle[~finite_rows(problem.state[i])] = Status.DIVERGED
    return idle


def rows_of(stop: Stop, index: Tensor) -> Stop:
    """The stop of some of the rows."""
    rtol = stop.rtol.to(index.device)[index] if isinstance(stop.rtol, Tensor) else stop.rtol
    limits = stop.max_steps.to(index.device)[index] if isinstance(stop.max_steps, Tensor) else stop.max_steps
    return replace(stop, rtol=rtol, max_steps=limits)
