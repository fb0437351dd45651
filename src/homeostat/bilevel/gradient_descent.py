"""Gradient descent as an iterated map, with a fixed step size or with one that each row searches for itself."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.bilevel.line_search import backtrack, moved
from homeostat.bilevel.objective import Objective, row_gradients, row_values_and_gradients
from homeostat.bilevel.step import InnerStep
from homeostat.checks import plain_numbers
from homeostat.engine import Carry
from homeostat.engine.stop import check_count, check_range

_SMALLEST = 1e-6
"""A step size below this begins again at 1: the search had got stuck, not close."""


@dataclass(frozen=True)
class GradientDescent(InnerStep):
    """`p <- p - step_size * gradient`.

    Its fixed points are the stationary points of the objective, for every step size. It contracts where the step size
    is below 2 over the largest curvature.

    Args:
        step_size: the same for all rows; None searches one for each row at every step by backtracking: it is halved
            until the loss falls by at least half of what the gradient promises, and doubled for the next step. The
            state is then `{"parameters": ..., "step_size": Carry(rows,)}`; to a derivative the step size is constant.
        most_halvings: of one search.

    Source:
        The backtracking rule: Beck, Teboulle, "A fast iterative shrinkage-thresholding algorithm", SIAM J. Imaging
        Sciences 2 (2009), section 4, here without the proximal term and the acceleration. Where the loss is too flat to
        tell, the gradient decides: Hager, Zhang, "A new conjugate gradient method with guaranteed descent and an
        efficient line search", SIAM J. Optimization 16 (2005).

    Example:
        >>> import homeostat as hs
        >>> objective = lambda p, c: 0.5 * ((p - c) ** 2).sum(1)
        >>> descent = GradientDescent(0.5)
        >>> step = lambda state, context: descent.step(objective, state, context)
        >>> hs.solve(step, descent.start(torch.zeros(2, 3)), torch.ones(2, 3)).state[0]
        tensor([1., 1., 1.])
    """

    step_size: float | None = None
    most_halvings: int = 15

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.step_size is not None:
            check_range("step_size", self.step_size, 1e-12, "above 0")
        check_count("most_halvings", self.most_halvings)

    def start(self, parameters: Any) -> Any:
        if self.step_size is not None:
            return parameters
        leaf = pytree.tree_leaves(parameters)[0]
        return {"parameters": parameters, "step_size": Carry(leaf.new_ones(len(leaf)))}

    def parameters(self, state: Any) -> Any:
        return state if self.step_size is not None else state["parameters"]

    def step(self, objective: Objective, state: Any, context: Any) -> Any:
        parameters = self.parameters(state)
        if self.step_size is not None:
            gradient = row_gradients(objective, parameters, context)
            if isinstance(parameters, Tensor):  # spared the taking apart, which costs more than the step
                return parameters - self.step_size * gradient
            return pytree.tree_map(lambda p, g: p - self.step_size * g, parameters, gradient)
        before, gradient = row_values_and_gradients(objective, parameters, context)
        searched = state["step_size"]
        size = backtrack(objective, parameters, before, gradient, context, searched, self.most_halvings)
        doubled = torch.where(size <= _SMALLEST, torch.ones_like(size), 2 * size)
        return {"parameters": moved(parameters, gradient, size), "step_size": doubled}
