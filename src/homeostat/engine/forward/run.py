"""Run a problem to its end with a method: the one entrance to everything in `forward`."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.accelerated import AcceleratedStepper
from homeostat.engine.forward.anderson import TruncatedGramSchmidt
from homeostat.engine.forward.broyden import BroydenUpdates, InverseEstimate
from homeostat.engine.forward.independence import check_rows
from homeostat.engine.forward.pace import Pace
from homeostat.engine.forward.picard import PicardStepper
from homeostat.engine.forward.record import Record, to_host
from homeostat.engine.forward.stepper import Stepper
from homeostat.engine.forward.stopping import Decision, StopTest
from homeostat.engine.forward.watch import Observer, Watch
from homeostat.engine.methods import Anderson, Broyden, Method, Picard
from homeostat.engine.nest import merge_rows, select
from homeostat.engine.norms import finite_rows, noise_floor
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop
from homeostat.errors import CompileWarning, warn_caller

# Two values of a map that should be the same differ by one or two units in the last place.
_NOISE_UNITS = 4


@dataclass(frozen=True)
class Run:
    """How a run ended, row by row. `leaves` has a graph where gradients were enabled."""

    leaves: list[Tensor]
    steps: Tensor
    residual: Tensor
    status: Tensor
    row_evaluations: int
    trace: Tensor | None = None
    """`(rows, steps)` relative residuals, where they were asked for."""
    inverse: InverseEstimate | None = None
    """Of Broyden's method, where it was asked for."""


def run(
    problem: Problem,
    stop: Stop,
    method: Method,
    watch: Watch = Watch(),  # noqa: B008
    compile: bool = False,
) -> Run:
    """Iterate; rows that start non-finite, or that may take no step, are left as they are."""
    idle = _rows_that_cannot_start(problem, stop)
    busy = (idle < 0).nonzero().squeeze(1)
    if len(busy) == problem.rows:
        return _run(problem, stop, method, watch, compile)
    nothing = _run(problem, Stop(max_steps=0), method, watch, compile=False)
    if not len(busy):
        return replace(nothing, status=idle)
    part = _run(problem.subset(busy), rows_of(stop, busy), method, watch, compile)
    leaves = merge_rows(problem.state, busy, part.leaves)
    steps, residual, status = (
        whole.index_copy(0, busy, rows)
        for whole, rows in ((nothing.steps, part.steps), (nothing.residual, part.residual), (idle, part.status))
    )
    trace, inverse = part.trace, part.inverse
    if trace is not None:
        trace = trace.new_full((problem.rows, trace.shape[1]), float("nan")).index_copy(0, busy, trace)
    if inverse is not None:
        inverse = inverse.among(busy.cpu().numpy())
    return Run(leaves, steps, residual, status, part.row_evaluations, trace, inverse)


def _run(problem: Problem, stop: Stop, method: Method, watch: Watch, compile: bool) -> Run:
    device = problem.state[0].device
    test = StopTest(stop, problem.state, problem.layout.measured(), watch.give_up)
    stepper = make_stepper(problem, method, compile)
    # An inverse is kept as it was when its row was finished, so that no step may come after that one.
    pace = Pace(problem.state, 1 if watch.inverse else watch.sync_every, stepper.block)
    observer = Observer(watch, problem)
    inverse = InverseEstimate(stepper) if watch.inverse else None
    rows = np.arange(problem.rows)
    pieces: list[tuple[NDArray[np.int64], list[Tensor]]] = []
    checked, taken, evaluations = False, 0, 0
    while len(rows) and taken < test.max_steps:
        room = test.room(taken)
        # Without a test nobody looks before the end, unless somebody wants every state.
        count = pace.next(room) if test.tests or observer.active else room
        record = None  # two blocks of states at once would be one too many
        record = stepper.advance(count, record_all=test.tests or observer.active)
        taken += count
        evaluations += count * len(rows)
        decision = test.judge(record, rows)
        if observer.active:
            observer.observe(record, rows, np.full(len(rows), count) if decision is None else decision.ended(count))
        pace.observe(test.closest)
        if decision is None:
            continue
        lost = _lost(stepper, test, record, rows, decision)
        pieces += _outgoing(problem, record, rows, decision, decision.finished & ~lost)
        if lost.any():
            assert isinstance(stepper, AcceleratedStepper)
            leaves, relative = stepper.anchors(torch.from_numpy(np.flatnonzero(lost)).to(device))
            pieces.append((rows[lost], leaves))
            known = test.status[rows] == Status.MAX_STEPS  # a row that diverged has the residual of that step
            test.residual[rows[lost & known]] = to_host(relative)[known[lost]]
        if inverse is not None:
            inverse.add(rows[decision.finished], np.flatnonzero(decision.finished))
        if watch.check and not checked:
            states = record.before[-1], record.after[-1], stepper.context
            check_rows(problem, *states, noise=bool(decision.finished.all()))
            checked = True
        positions = np.flatnonzero(~decision.finished)
        rows = rows[positions]
        if len(rows):
            index = torch.from_numpy(positions).to(device)
            stepper.keep(positions, index)
            test.keep(positions, index)
    return replace(_result(problem, test, observer, pieces), row_evaluations=evaluations, inverse=inverse)


def _result(
    problem: Problem, test: StopTest, observer: Observer, pieces: list[tuple[NDArray[np.int64], list[Tensor]]]
) -> Run:
    """What was found, as tensors on the device of the state."""
    device = problem.state[0].device
    leaves, lowest = observer.best(_assemble(problem, pieces), test.residual)
    wide = any(problem.state[i].dtype == torch.float64 for i in problem.layout.measured())
    dtype = torch.float64 if wide else torch.float32
    residual = torch.from_numpy(lowest).to(device, dtype)
    steps, status = torch.from_numpy(test.steps).to(device), torch.from_numpy(test.status).to(device)
    trace = observer.trace()
    trace = None if trace is None else trace.to(device, dtype)
    return Run(leaves, steps, residual, status, 0, trace)


def make_stepper(problem: Problem, method: Method, compile: bool = False) -> Stepper:
    """The method at work on a problem, with compiled steps if asked for."""
    if compile:
        try:  # not at the top: it brings in PyTorch's compiler, which takes seconds, and parts of it that may move
            from homeostat.engine.forward.compiled import CompiledPicardStepper, CompiledProblem
        except ImportError as error:
            warn_caller(f"this PyTorch cannot compile steps for homeostat; they run eagerly: {error}", CompileWarning)
            return make_stepper(problem, method)
        if isinstance(method, Picard):
            return CompiledPicardStepper(problem, method)
        problem = CompiledProblem(**vars(problem))
    graphed = torch.is_grad_enabled()
    noise = noise_floor([problem.state[i] for i in problem.layout.measured()], _NOISE_UNITS)
    match method:
        case Picard():
            return PicardStepper(problem, method)
        case Anderson(memory, damping):
            return AcceleratedStepper(
                problem,
                damping,
                lambda x: TruncatedGramSchmidt(x, memory, noise=noise, functional=graphed),
                solvable=memory,
                noise=noise,
            )
        case Broyden(memory):
            return AcceleratedStepper(
                problem,
                1.0,
                lambda x: BroydenUpdates(x, memory, noise=noise, functional=graphed),
                # On a linear map it takes twice as many steps as unknowns (D. M. Gay, SIAM J. Numer. Anal. 16, 1979);
                # a shift of more than ten would wait for that too long.
                solvable=min(memory // 2, 10),
                noise=noise,
            )


def _lost(
    stepper: Stepper, test: StopTest, record: Record, rows: NDArray[np.int64], decision: Decision
) -> NDArray[np.bool_]:
    """Rows that would leave with what a trial made that is not finite; they leave with where the trial began."""
    lost = decision.finished & ~np.isfinite(test.residual[rows])
    # Rows without a tolerance that diverged are left as they are.
    lost &= (decision.at < decision.last) | (test.status[rows] == Status.MAX_STEPS)
    if isinstance(stepper, AcceleratedStepper):
        for position in np.flatnonzero(lost):
            lost[position] = stepper.is_lost(record, int(position), int(decision.at[position]))
        return lost
    return np.zeros_like(lost)


def _outgoing(
    problem: Problem, record: Record, rows: NDArray[np.int64], decision: Decision, leaving: NDArray[np.bool_]
) -> list[tuple[NDArray[np.int64], list[Tensor]]]:
    """Leaves of the rows `leaving`, each from the step at which it was finished."""
    pieces = []
    for step in np.unique(decision.at[leaving]):
        positions = np.flatnonzero(leaving & (decision.at == step))
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
