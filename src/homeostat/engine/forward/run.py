"""Run a problem to its end with a method: the one entrance to everything in `forward`."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.accelerated import AcceleratedStepper
from homeostat.engine.forward.anderson import TruncatedGramSchmidt
from homeostat.engine.forward.broyden import BroydenUpdates
from homeostat.engine.forward.pace import Pace
from homeostat.engine.forward.picard import PicardStepper
from homeostat.engine.forward.record import Record
from homeostat.engine.forward.stepper import Stepper
from homeostat.engine.forward.stopping import Decision, StopTest
from homeostat.engine.methods import Anderson, Broyden, Method, Picard
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


def run(problem: Problem, stop: Stop, method: Method, watch: Watch = Watch(), compile: bool = False) -> Run:
    """Iterate; rows that start non-finite, or that may take no step, are left as they are."""
    idle = _rows_that_cannot_start(problem, stop)
    busy = (idle < 0).nonzero().squeeze(1)
    if len(busy) == problem.rows:
        return _run(problem, stop, method, watch, compile)
    nothing = _run(problem, Stop(max_steps=0), method, watch)
    if not len(busy):
        return replace(nothing, status=idle)
    part = _run(problem.subset(busy), rows_of(stop, busy), method, watch, compile)
    leaves = merge_rows(problem.state, busy, part.leaves)
    steps, residual, status = (
        whole.index_copy(0, busy, rows)
        for whole, rows in ((nothing.steps, part.steps), (nothing.residual, part.residual), (idle, part.status))
    )
    return replace(part, leaves=leaves, steps=steps, residual=residual, status=status)


def _run(problem: Problem, stop: Stop, method: Method, watch: Watch, compile: bool = False) -> Run:
    device = problem.state[0].device
    test = StopTest(stop, problem.state, problem.layout.measured())
    stepper = make_stepper(problem, method, compile)
    pace = Pace(problem.state, watch.sync_every, stepper.block)
    rows = np.arange(problem.rows)
    pieces: list[tuple[NDArray[np.int64], list[Tensor]]] = []
    taken = evaluations = 0
    while len(rows) and taken < test.max_steps:
        room = test.room(taken)
        count = pace.next(room) if test.tests else room
        record = stepper.advance(count, record_all=test.tests)
        taken += count
        evaluations += count * len(rows)
        decision = test.judge(record, rows)
        pace.observe(test.closest)
        if decision is None:
            continue
        pieces += _outgoing(problem, record, rows, decision)
        positions = np.flatnonzero(~decision.finished)
        rows = rows[positions]
        if len(rows):
            index = torch.from_numpy(positions).to(device)
            stepper.keep(positions, index)
            test.keep(positions, index)
    leaves = _assemble(problem, pieces)
    wide = any(problem.state[i].dtype == torch.float64 for i in problem.layout.measured())
    residual = torch.from_numpy(test.residual).to(device, torch.float64 if wide else torch.float32)
    steps, status = torch.from_numpy(test.steps).to(device), torch.from_numpy(test.status).to(device)
    return Run(leaves, steps, residual, status, evaluations)


def make_stepper(problem: Problem, method: Method, compile: bool = False) -> Stepper:
    """The method at work on a problem, with compiled steps if asked for."""
    if compile:
        # Not at the top: it brings in PyTorch's compiler, which takes seconds.
        from homeostat.engine.forward.compiled import CompiledPicardStepper, compile_problem

        if isinstance(method, Picard):
            return CompiledPicardStepper(problem, method)
        problem = compile_problem(problem)
    match method:
        case Picard():
            return PicardStepper(problem, method)
        case Anderson():
            return AcceleratedStepper(problem, method.damping, lambda x: TruncatedGramSchmidt(x, method.memory))
        case Broyden():
            return AcceleratedStepper(problem, 1.0, lambda x: BroydenUpdates(x, method.memory))


def _outgoing(
    problem: Problem, record: Record, rows: NDArray[np.int64], decision: Decision
) -> list[tuple[NDArray[np.int64], list[Tensor]]]:
    """Leaves of the rows that leave, each from the step at which it was finished."""
    pieces = []
    for step in np.unique(decision.at[decision.finished]):
        positions = np.flatnonzero(decision.finished & (decision.at == step))
        source = record.origin if step < 0 else record.after[step]
        if len(positions) < len(rows):
            source = select(source, problem.layout, torch.from_numpy(positions).to(source[0].device))
        pieces.append((rows[positions], list(source)))
    return pieces


def _assemble(problem: Problem, pieces: list[tuple[NDArray[np.int64], list[Tensor]]]) -> list[Tensor]:
    """The pieces put together in the order of the batch."""
    if not pieces:
        return list(problem.state)
    if len(pieces) == 1:
        return pieces[0][1]
    order = torch.from_numpy(np.concatenate([rows for rows, _ in pieces]).argsort()).to(problem.state[0].device)
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
