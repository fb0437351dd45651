"""Run a problem to its end with a method: the one entrance to everything in `forward`."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homeostat.engine.forward.stopping import StopTest
from homeostat.engine.iterate import iterate
from homeostat.engine.methods import Method
from homeostat.engine.nest import merge_rows
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


def run(problem: Problem, stop: Stop, method: Method) -> Run:
    """Iterate; rows that start non-finite, or that may take no step, are left as they are."""
    idle = _rows_that_cannot_start(problem, stop)
    busy = (idle < 0).nonzero().squeeze(1)
    if len(busy) == problem.rows:
        return _run(problem, stop, method)
    test = StopTest(Stop(max_steps=0), problem.state, problem.layout.measured())
    test.status.copy_(idle)
    evaluations = 0
    leaves = problem.state
    if len(busy):
        part = _run(problem.subset(busy), rows_of(stop, busy), method)
        leaves = merge_rows(problem.state, busy, part.leaves)
        test.steps[busy], test.residual[busy], test.status[busy] = part.steps, part.residual, part.status
        evaluations = part.row_evaluations
    return Run(leaves, test.steps, test.residual, test.status, evaluations)


def _run(problem: Problem, stop: Stop, method: Method) -> Run:
    test = StopTest(stop, problem.state, problem.layout.measured())
    leaves, evaluations = iterate(problem, max_steps=test.max_steps, monitor=test)
    return Run(leaves, test.steps, test.residual, test.status, evaluations)


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
