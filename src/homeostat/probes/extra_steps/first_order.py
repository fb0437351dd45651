"""What the loss will do with one more step, to first order: the slope of the loss along the step."""

from typing import Any

import numpy as np
import torch

from homeostat.engine.problem import Problem
from homeostat.models.contract import IteratedModel
from homeostat.probes.judge import Judge


def predicted_change(
    model: IteratedModel, state: Any, context: Any, targets: Any, judge: Judge
) -> tuple[np.ndarray | None, str]:
    """<grad_z loss(z), f(z) - z> of every example of a batch, over the measured leaves of its state.

    What a state carries along (counters, tokens) is a constant here, so that what it does to the loss is not seen.

    Args:
        model: whose step f is, and whose `decode` leads from the state to the loss.
        state: at the horizon, in the structure of the model's states.

    Returns:
        `(rows,)`, float64, in the units of the loss; or None, and why the loss has no gradient by the state.
    """
    problem = Problem.of(model.step, state, context)
    measured = problem.layout.measured()
    leaves = [leaf.detach() for leaf in problem.state]
    with torch.no_grad():
        after = problem.apply(leaves, problem.context)
    asked = [leaves[i].clone().requires_grad_() for i in measured]
    given = list(leaves)
    for i, leaf in zip(measured, asked, strict=True):
        given[i] = leaf.clone()  # no leaf of the graph, so that decode may work in place
    with torch.enable_grad():
        outputs = model.decode(problem.layout.build(given), problem.context_layout.build(problem.context))
        losses = judge.judged("loss", outputs, targets, problem.rows)
    if losses is None:
        return None, "there is no loss"
    gradients = (
        torch.autograd.grad(losses.sum(), asked, allow_unused=True) if losses.requires_grad else [None] * len(asked)
    )
    if all(gradient is None for gradient in gradients):
        return None, "the loss has no gradient by the state: outputs are integers, or decode or loss detaches them"
    total = torch.zeros(problem.rows, dtype=torch.float64, device=asked[0].device)
    for i, leaf, gradient in zip(measured, asked, gradients, strict=True):
        if gradient is not None:
            total += (gradient.double() * (after[i].double() - leaf.detach().double())).flatten(1).sum(1)
    return total.cpu().numpy(), ""
