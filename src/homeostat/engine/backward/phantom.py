"""Gradients of a few recorded steps at the solution: `Phantom` and `OneStep`."""

import torch
from torch import Tensor

from homeostat.engine.backward.attach import Part, attach, bad_rows, has_tangents, untied, without_rows
from homeostat.engine.backward.failure import report_failure
from homeostat.engine.backward.functional import is_transformed
from homeostat.engine.backward.graph import mark
from homeostat.engine.backward.recording import Recording
from homeostat.engine.forward.run import Run
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop
from homeostat.engine.uncompiled import eagerly


def phantom(problem: Problem, found: Run, stop: Stop, steps: int, damping: float) -> Run:
    """A run with the gradient of `z_{i+1} = (1 - damping) z_i + damping f(z_i)`, recorded from the solution on.

    The state stays the solved one: the recorded steps give the gradient and no value, so that a choice of gradient
    never changes an answer, its residual or its status. Rows that diverged, and rows that these steps make non-finite,
    take no part.

    Args:
        problem: what was solved.
        found: how, without a graph.
        stop: when.
        steps: recorded steps, 1 or more.
        damping: share of the way that each goes; `steps=1, damping=1` is `OneStep`.
    """
    part = Part.of(problem, found, found.status != Status.DIVERGED)
    evaluations = 0
    outputs: list[Tensor] = []
    while part.problem.rows:  # a second time, without the rows that left the finite numbers
        first = mark()
        with eagerly():
            outputs = _recorded(part.problem, steps, damping)
        evaluations += steps * part.problem.rows
        bad = bad_rows(outputs)
        if bad is None:
            break
        part = part.without(bad)
    else:
        report_failure("forward", found.status, stop, "warn")
        return without_rows(problem, found, evaluations)
    if not (is_transformed() or has_tangents(outputs) or any(x.requires_grad for x in outputs)):
        return untied(found, evaluations)
    report_failure("forward", found.status, stop, "warn")
    recording = None if is_transformed() else Recording(part.problem, outputs, [], first)
    return attach(found, part, outputs, evaluations, recording)


def _recorded(problem: Problem, steps: int, damping: float) -> list[Tensor]:
    measured = problem.layout.measured()
    state, step = problem.state, problem.bind(problem.context)
    for _ in range(steps):
        after = step(state)
        if damping != 1:
            after = list(after)
            for i in measured:
                after[i] = torch.lerp(state[i], after[i], damping)
        state = after
    return [state[i] for i in measured]
