"""Backpropagation through all steps, or through the last few of each example."""

from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from homeostat.engine.backward.attach import has_tangents, without_rows
from homeostat.engine.backward.functional import is_transformed
from homeostat.engine.forward.run import Run, rows_of, run
from homeostat.engine.forward.watch import Watch
from homeostat.engine.gradients import Unrolled
from homeostat.engine.methods import Method, Picard
from homeostat.engine.nest import flatten, merge_rows, select
from homeostat.engine.norms import noise_floor, row_rms
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop
from homeostat.engine.surroundings import Surroundings
from homeostat.errors import ContractError

# Two evaluations of a step at one state differ by so many units in the last place at most.
_SAME_UNITS = 64


def unrolled(problem: Problem, stop: Stop, method: Method, gradient: Unrolled, watch: Watch) -> Run:
    """Run with a graph.

    Raises:
        ContractError: checkpoints under a transform of `torch.func`; forward-mode differentiation with `last`; the best
            iterate or a trace with `last`, whose steps are taken in two parts.
    """
    if gradient.checkpoint:
        if is_transformed():
            raise ContractError(
                "Unrolled(checkpoint=True) cannot run under torch.func: PyTorch has no checkpoints there"
            )
        problem = _checkpointed(problem)
    if gradient.last is None:
        return _graphed(problem, stop, method, watch)
    if watch.best or watch.trace:
        raise ContractError("returns='best' and trace=True need Unrolled(last=None): truncated steps come in two parts")
    if not stop.tests:
        return _truncated(problem, stop.max_steps, method, gradient.last)
    # Where an example stops is not known beforehand: find out, then come back to `last` steps before that.
    with torch.no_grad():
        tested = run(problem, stop, method)
    good = (tested.status != Status.DIVERGED).nonzero().squeeze(1)
    if not len(good):
        return without_rows(problem, tested, 0, problem.state)
    again = _truncated(problem.subset(good), tested.steps[good], method, gradient.last)
    leaves = merge_rows([x.detach() for x in tested.leaves], good, again.leaves)
    # The last steps were plain ones: the residual is theirs, not that of the accelerated steps that they stand for, and
    # a row that does not get there by them has not converged.
    residual = tested.residual.index_copy(0, good, again.residual)
    status = tested.status
    if stop.atol == 0:
        rtol = torch.as_tensor(stop.rtol, dtype=residual.dtype, device=residual.device)
        short = (status == Status.CONVERGED) & (rtol > 0) & ~(residual <= 1.01 * rtol)  # rounding apart
        status = torch.where(short, Status.MAX_STEPS, status).to(status.dtype)
    evaluations = tested.row_evaluations + again.row_evaluations
    return replace(tested, leaves=leaves, residual=residual, status=status, row_evaluations=evaluations)


def _truncated(problem: Problem, steps: int | Tensor, method: Method, last: int) -> Run:
    """Take exactly `steps` steps, the last `last` of each example with a graph."""
    limits = torch.as_tensor(steps, device=problem.state[0].device).expand(problem.rows)
    graphed = limits.clamp(max=last)
    free = limits - graphed
    with torch.no_grad():
        # The state to go on from is the damped one; what a run returns is the last f(z).
        first = _damped(problem, method.damping) if isinstance(method, Picard) else problem
        before = run(first, Stop(rtol=0, max_steps=free), Picard() if isinstance(method, Picard) else method)
        short = (free == 0).nonzero().squeeze(1)
    # Examples that took no step without a graph start from the caller's own state, so that it gets their gradient.
    start = merge_rows(before.leaves, short, select(problem.state, problem.layout, short))
    if has_tangents(start):
        raise ContractError("a truncation knows no tangents: forward-mode differentiation needs Unrolled(last=None)")
    plain = method if isinstance(method, Picard) else Picard()
    after = _graphed(replace(problem, state=start), Stop(rtol=0, max_steps=graphed), plain, Watch())
    evaluations = before.row_evaluations + after.row_evaluations
    return replace(after, steps=before.steps + after.steps, row_evaluations=evaluations)


def _checkpointed(problem: Problem) -> Problem:
    """The map with steps that keep what they were given only, and are taken again in `backward`.

    What they give then is compared with what they gave first: a gradient of other values would be that of another map.
    """
    surroundings = Surroundings(problem.step)

    @wraps(problem.step, assigned=(), updated=())
    def step(state: Any, context: Any) -> Any:
        first: list[Tensor] = []

        def taken(state: Any, context: Any) -> Any:
            after = problem.step(state, context)
            leaves = [x.detach() for x in flatten(after, "state")[0]]
            if not first:  # they are the next step's start, which is kept anyway
                first.extend(leaves)
            elif not _are_the_same(first, leaves):
                changes = "; ".join(surroundings.changes(problem.step)) or "it was not found which"
                raise ContractError(
                    "backward() takes the steps again, and they give other values than before: a weight, a mode, a "
                    f"buffer or a variable that step uses has changed ({changes}). Call backward() before that, or use "
                    "Unrolled(checkpoint=False)"
                )
            return after

        with set_checkpoint_early_stop(False):  # or the last operations would not be looked at
            return checkpoint(taken, state, context, use_reentrant=False)

    return replace(problem, step=step)


def _are_the_same(first: list[Tensor], again: list[Tensor]) -> bool:
    """Whether two evaluations at one state are the same to rounding; they were made by the same operations."""
    for a, b in zip(first, again, strict=True):
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return False
        elif bool((row_rms(a - b) > noise_floor([a], _SAME_UNITS) * row_rms(a)).any()):
            return False
    return True


def _damped(problem: Problem, damping: float) -> Problem:
    """The map whose plain steps are the damped steps of `problem`."""
    if damping == 1:
        return problem
    layout = problem.layout

    def step(state: Any, context: Any) -> Any:
        before, _ = flatten(state, "state")
        after = layout.read(problem.step(state, context), before)
        for i in layout.measured():
            after[i] = torch.lerp(before[i], after[i], damping)
        return layout.build(after)

    return replace(problem, step=step)


def _graphed(problem: Problem, stop: Stop, method: Method, watch: Watch) -> Run:
    """Iterate with a graph. Where rows diverged it is made again without them: a NaN that is multiplied by a zero
    gradient would still put a NaN into shared parameters.
    """
    found = run(problem, stop, method, watch)
    diverged = found.status == Status.DIVERGED
    if problem.rows and not bool(diverged.any()):
        return found
    good = (~diverged).nonzero().squeeze(1)
    if not len(good):
        return without_rows(problem, found, 0, problem.state)
    leaves = [x.detach() for x in found.leaves]
    again = run(problem.subset(good), rows_of(stop, good), method, watch)
    leaves = merge_rows(leaves, good, again.leaves)
    return replace(found, leaves=leaves, row_evaluations=found.row_evaluations + again.row_evaluations)
