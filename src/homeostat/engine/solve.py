"""`solve`: iterate a map to its fixed point, per example, with gradients."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.gradients import attach_implicit
from homeostat.engine.iterate import Problem, StepFunction, iterate
from homeostat.engine.nest import merge_rows, select
from homeostat.engine.norms import finite_rows
from homeostat.engine.options import Gradient, Implicit, Picard, Stop, Unrolled
from homeostat.engine.solution import Solution, Status
from homeostat.engine.stopping import StopTest
from homeostat.errors import ContractError


def solve(
    step: StepFunction,
    state: Any,
    context: Any = None,
    *,
    method: Picard = Picard(),  # noqa: B008 - options are frozen values
    stop: Stop = Stop(),  # noqa: B008
    gradient: Gradient = Implicit(),  # noqa: B008
) -> Solution:
    """Apply `state <- step(state, context)` until each example has converged, and differentiate the result.

    Every decision is per example: an example's answer does not depend on who shares its batch, and rows that are
    finished leave the batch together with their context.

    Args:
        step: the map. Gets and returns bare tensors, in the same structure, shapes, dtypes and devices as `state`.
        state: where to start; a tensor or a nest of tensors (tuple, list, dict), batch first. Integer and boolean
            leaves, and those marked `Carry`, are carried along but not measured.
        context: what `step` needs beside the state, batch first; parts that are not per example are marked `Shared`.
        method: how to iterate.
        stop: when an example stops.
        gradient: `Implicit()` or `Unrolled()`. Used where gradients are enabled; gradients reach the parameters that
            `step` closes over, the context, and with `Unrolled` the start.

    Returns:
        A `Solution`. Its state is the last f(z) of each example, and `residual` was measured on the way to it.

    Raises:
        ContractError: a `step` that changes structure, shape, dtype or device; leaves whose rows do not match.
        ConvergenceError: rows did not converge and `gradient.on_failure` is `"raise"`.

    Example:
        >>> import torch
        >>> gain = torch.tensor([[0.5], [0.9]])
        >>> solution = solve(lambda z, c: c["gain"] * z + 1, torch.zeros(2, 3), {"gain": gain}, stop=Stop(rtol=1e-6))
        >>> solution.state[:, 0].round(decimals=3)
        tensor([ 2., 10.])
        >>> bool(solution.steps[0] < solution.steps[1])
        True
    """
    for name, value, kinds in (("method", method, Picard), ("stop", stop, Stop), ("gradient", gradient, Gradient)):
        if not isinstance(value, kinds):
            raise TypeError(f"{name} must be one of homeostat's option objects, made, not {value!r}")
    problem = Problem.of(step, state, context)
    for name, value in (("rtol", stop.rtol), ("max_steps", stop.max_steps)):
        if isinstance(value, Tensor) and len(value) != problem.rows:
            raise ContractError(f"stop.{name} has {len(value)} entries, the state has {problem.rows} rows")

    if not torch.is_grad_enabled():
        leaves, solution = _forward(problem, stop)
    elif isinstance(gradient, Unrolled):
        leaves, solution = _unrolled(problem, stop, gradient)
    else:
        with torch.no_grad():
            leaves, solution = _forward(problem, stop)
        leaves, extra = attach_implicit(problem, solution, leaves, gradient)
        solution = replace(solution, row_evaluations=solution.row_evaluations + extra)
    return replace(solution, state=problem.layout.build(leaves, marks=True))


def _forward(problem: Problem, stop: Stop) -> tuple[list[Tensor], Solution]:
    """Iterate; rows that start non-finite, or that may take no step, are left as they are."""
    idle = _rows_that_cannot_start(problem, stop)
    busy = (idle < 0).nonzero().squeeze(1)
    if len(busy) == problem.rows:
        return _run(problem, stop)
    test = StopTest(Stop(max_steps=0), problem.state, problem.layout.measured())
    test.status.copy_(idle)
    evaluations = 0
    leaves = problem.state
    if len(busy):
        found, part = _run(problem.subset(busy), _rows_of(stop, busy))
        leaves = merge_rows(problem.state, busy, found)
        test.steps[busy], test.residual[busy], test.status[busy] = part.steps, part.residual, part.status
        evaluations = part.row_evaluations
    return leaves, Solution(None, test.steps, test.residual, test.status, evaluations)


def _run(problem: Problem, stop: Stop) -> tuple[list[Tensor], Solution]:
    test = StopTest(stop, problem.state, problem.layout.measured())
    leaves, evaluations = iterate(problem, max_steps=test.max_steps, monitor=test)
    return leaves, Solution(None, test.steps, test.residual, test.status, evaluations)


def _rows_that_cannot_start(problem: Problem, stop: Stop) -> Tensor:
    """`(batch,)`: the status of rows that take no step, -1 for those that do."""
    device = problem.state[0].device
    idle = torch.full((problem.rows,), -1, dtype=torch.int8, device=device)
    limits = torch.as_tensor(stop.max_steps, device=device)
    idle[(limits == 0).expand(problem.rows)] = Status.MAX_STEPS
    for i in problem.layout.measured():
        idle[~finite_rows(problem.state[i])] = Status.DIVERGED
    return idle


def _rows_of(stop: Stop, index: Tensor) -> Stop:
    rtol = stop.rtol.to(index.device)[index] if isinstance(stop.rtol, Tensor) else stop.rtol
    limits = stop.max_steps.to(index.device)[index] if isinstance(stop.max_steps, Tensor) else stop.max_steps
    return replace(stop, rtol=rtol, max_steps=limits)


def _unrolled(problem: Problem, stop: Stop, gradient: Unrolled) -> tuple[list[Tensor], Solution]:
    """Backpropagation through all steps, or through the last few of each example."""
    if gradient.last is None:
        return _graphed(problem, stop)
    if not stop.tests:
        return _truncated(problem, stop.max_steps, gradient.last)
    # Where an example stops is not known beforehand: find out, then come back to `last` steps before that.
    with torch.no_grad():
        leaves, tested = _forward(problem, stop)
    good = (tested.status != Status.DIVERGED).nonzero().squeeze(1)
    again, part = _truncated(problem.subset(good), tested.steps[good], gradient.last)
    leaves = merge_rows([x.detach() for x in leaves], good, again)
    return leaves, replace(tested, row_evaluations=tested.row_evaluations + part.row_evaluations)


def _truncated(problem: Problem, steps: int | Tensor, last: int) -> tuple[list[Tensor], Solution]:
    """Take exactly `steps` steps, the last `last` of each example with a graph."""
    limits = torch.as_tensor(steps, device=problem.state[0].device).expand(problem.rows)
    graphed = limits.clamp(max=last)
    free = limits - graphed
    with torch.no_grad():
        leaves, before = _forward(problem, Stop(rtol=0, max_steps=free))
        short = (free == 0).nonzero().squeeze(1)
    # Examples that took no step without a graph start from the caller's own state, so that it gets their gradient.
    start = merge_rows(leaves, short, select(problem.state, problem.layout, short))
    leaves, solution = _graphed(replace(problem, state=start), Stop(rtol=0, max_steps=graphed))
    evaluations = before.row_evaluations + solution.row_evaluations
    return leaves, replace(solution, steps=before.steps + solution.steps, row_evaluations=evaluations)


def _graphed(problem: Problem, stop: Stop) -> tuple[list[Tensor], Solution]:
    """Iterate with a graph. Where rows diverged it is made again without them: a NaN that is multiplied by a zero
    gradient would still put a NaN into shared parameters.
    """
    leaves, solution = _forward(problem, stop)
    diverged = solution.status == Status.DIVERGED
    if not bool(diverged.any()):
        return leaves, solution
    good = (~diverged).nonzero().squeeze(1)
    if len(good):
        again, part = _forward(problem.subset(good), _rows_of(stop, good))
        leaves = merge_rows([x.detach() for x in leaves], good, again)
        solution = replace(solution, row_evaluations=solution.row_evaluations + part.row_evaluations)
    else:
        leaves = [x.detach() for x in leaves]
    return leaves, solution
