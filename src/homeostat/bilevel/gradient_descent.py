"""Gradient descent as an iterated map, with a fixed step size or with one that each row searches for itself."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.bilevel.objective import Objective, RowObjective, row_gradients, row_values_and_gradients
from homeostat.bilevel.step import InnerStep
from homeostat.engine import Carry
from homeostat.engine.stop import check_count, check_range

_AT_ONCE = 1 << 17
"""Numbers in the parameters up to which several step sizes are tried at once: few numbers cost little but the call."""
_UNITS = 64
"""A fall of the loss by fewer units in its last place cannot be told from rounding."""
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
        size = self._search(objective, parameters, before, gradient, context, state["step_size"])
        moved = _moved(parameters, gradient, size)
        doubled = torch.where(size <= _SMALLEST, torch.ones_like(size), 2 * size)
        return {"parameters": moved, "step_size": doubled}

    @torch.no_grad()
    def _search(
        self, objective: Objective, parameters: Any, before: Tensor, gradient: Any, context: Any, size: Tensor
    ) -> Tensor:
        """`(rows,)` step sizes that lower each row's loss enough, or the smallest ones tried."""
        leaves = pytree.tree_leaves(gradient)
        slope = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1).square() for g in leaves]).sum(0)
        # Close to a minimum the loss is rounding and would accept anything, so that step sizes would grow without end.
        blind = 0.5 * size * slope <= _UNITS * torch.finfo(before.dtype).eps * before.abs()
        if bool(blind.any()):
            seen = size
            if not bool(blind.all()):
                seen = self._search_losses(objective, parameters, before, slope, gradient, context, size)
            return torch.where(blind, self._search_slopes(objective, parameters, gradient, context, size), seen)
        return self._search_losses(objective, parameters, before, slope, gradient, context, size)

    def _search_slopes(
        self, objective: Objective, parameters: Any, gradient: Any, context: Any, size: Tensor
    ) -> Tensor:
        """The same by gradients: halved until the one after the step does not point back. On a quadratic that is the
        same condition, and it can be told however small the gradients are.
        """
        for _ in range(self.most_halvings):
            after = row_gradients(objective, _moved(parameters, gradient, size), context)
            pairs = zip(pytree.tree_leaves(after), pytree.tree_leaves(gradient), strict=True)
            short = ~(torch.stack([(a * g).flatten(1).sum(1) for a, g in pairs]).sum(0) >= 0)
            if not bool(short.any()):
                break
            size = torch.where(short, 0.5 * size, size)
        return size

    def _search_losses(
        self,
        objective: Objective,
        parameters: Any,
        before: Tensor,
        slope: Tensor,
        gradient: Any,
        context: Any,
        size: Tensor,
    ) -> Tensor:
        several = isinstance(objective, RowObjective)
        found, rows, tried = size, None, 0
        while tried < self.most_halvings:
            numbers = sum(p.numel() for p in pytree.tree_leaves(parameters))
            count = min(max(_AT_ONCE // max(numbers, 1), 1), self.most_halvings - tried) if several else 1
            sizes = size if count == 1 else torch.stack([size * 0.5**i for i in range(count)]).flatten()
            if count == 1:
                after = objective(_moved(parameters, gradient, size), context)
            else:
                every = torch.arange(len(size), device=size.device).repeat(count)
                after = objective(_moved(parameters, gradient, sizes), objective.rows(context, every))
            wanted = (before - 0.5 * sizes.view(count, -1) * slope).flatten()
            short = ~(after <= wanted).view(count, -1)  # a NaN is not short enough either
            halvings = short.to(torch.int32).cumprod(0).sum(0)
            size = torch.ldexp(size, -halvings)
            found = size if rows is None else found.index_copy(0, rows, size)
            tried += count
            left = (halvings == count).nonzero()[:, 0]
            if not len(left):
                break
            if several and len(left) < len(size):  # the others have found theirs
                rows = left if rows is None else rows[left]
                before, slope, size = before[left], slope[left], size[left]
                parameters, gradient, context = (
                    _rows(parameters, left),
                    _rows(gradient, left),
                    objective.rows(context, left),
                )
        return found


def _rows(nest: Any, index: Tensor) -> Any:
    return pytree.tree_map(lambda leaf: leaf.index_select(0, index), nest)


def _moved(parameters: Any, gradient: Any, size: Tensor) -> Any:
    """Parameters after a step; with k step sizes for each row, those of all first ones, then of all second ones."""

    def move(p: Tensor, g: Tensor) -> Tensor:
        columns = size.view(-1, len(p), *[1] * (p.ndim - 1))
        return torch.addcmul(p, columns, g, value=-1).flatten(0, 1)

    return pytree.tree_map(move, parameters, gradient)
