"""Backpropagation through all steps, or through the last few of each example."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from homeostat.engine.backward.functional import is_transformed, refuse_forward_mode
from homeostat.engine.forward.run import Run, rows_of, run
from homeostat.engine.forward.watch import Watch
from homeostat.engine.gradients import Unrolled
from homeostat.engine.methods import Method, Picard
from homeostat.engine.nest import flatten, merge_rows, select
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop
from homeostat.errors import ContractError


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
    again = _truncated(problem.subset(good), tested.steps[good], method, gradient.last)
    leaves = merge_rows([x.detach() for x in tested.leaves], good, again.leaves)
    # The last steps were plain ones: the residual is theirs, not that of the accelerated steps that they stand for.
    residual = tested.residual.index_copy(0, good, again.residual)
    evaluations = tested.row_evaluations + again.row_evaluations
    return replace(tested, leaves=leaves, residual=residual, row_evaluations=evaluations)


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
    refuse_forward_mode(start)  # its tangents know nothing of a truncation
    plain = method if isinstance(method, Picard) else Picard()
    after = _graphed(replace(problem, state=start), Stop(rtol=0, max_steps=graphed), plain, Watch())
    evaluations = before.row_evaluations + after.row_evaluations
    return replace(after, steps=before.steps + after.steps, row_evaluations=evaluations)


def _checkpointed(problem: Problem) -> Problem:
    """The map with steps that keep what they were given only, and are taken again in `backward`."""

    def step(state: Any, context: Any) -> Any:
        return checkpoint(problem.step, state, context, use_reentrant=False)

    return replace(problem, step=step)


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
    if not bool(diverged.any()):
        return found
    good = (~diverged).nonzero().squeeze(1)
    leaves = [x.detach() for x in found.leaves]
    if not len(good):
        return replace(found, leaves=leaves)
    again = run(problem.subset(good), rows_of(stop, good), method, watch)
    leaves = merge_rows(leaves, good, again.leaves)
    return replace(found, leaves=leaves, row_evaluations=found.row_evaluations + again.row_evaluations)
