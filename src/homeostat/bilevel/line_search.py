"""Backtracking: the step size of each row, by the fall of its loss or, where that is rounding, by the slope."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.bilevel.objective import Objective, RowObjective, row_gradients

_AT_ONCE = 1 << 17
"""Numbers in the parameters up to which several step sizes are tried at once: few numbers cost little but the call."""
_UNITS = 64
"""A fall of the loss by fewer units in its last place cannot be told from rounding."""


@torch.no_grad()
def backtrack(
    objective: Objective, parameters: Any, values: Tensor, gradient: Any, context: Any, size: Tensor, most: int
) -> Tensor:
    """Step sizes against the gradient that lower each row's loss by at least half of what the gradient promises.

    Args:
        objective: a `RowObjective` spares the rows that have found theirs, and small ones try several sizes at once.
        parameters, values, gradient, context: where the rows stand, their losses `(rows,)`, and the losses' gradient.
        size: `(rows,)`, where each begins.
        most: times that it is halved.

    Returns:
        `(rows,)`, the first size of `size, size / 2, ...` that does; the smallest where none does.

    Example:
        >>> steep = lambda p, c: 8 * p.square().sum(1)
        >>> start = torch.ones(1, 1)
        >>> backtrack(steep, start, steep(start, None), 16 * start, None, torch.ones(1), most=15)
        tensor([0.0625])
    """
    leaves = pytree.tree_leaves(gradient)
    slope = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1).square() for g in leaves]).sum(0)
    rows = _Rows(objective, parameters, gradient, context, values, slope)
    # Close to a minimum the loss is rounding and would accept anything, so that step sizes would grow without end.
    blind = 0.5 * size * slope <= _UNITS * torch.finfo(values.dtype).eps * values.abs()
    if not bool(blind.any()):
        return _by_losses(rows, size, most)
    if not rows.apart:
        return torch.where(blind, _by_slopes(rows, size, most), _by_losses(rows, size, most))
    found = size.clone()
    for search, mask in ((_by_slopes, blind), (_by_losses, ~blind)):
        index = mask.nonzero()[:, 0]
        if len(index):
            found[index] = search(rows.some(index), size[index], most)
    return found


def moved(parameters: Any, gradient: Any, size: Tensor) -> Any:
    """Parameters after a step; with k step sizes for each row, those of all first ones, then of all second ones."""

    def move(p: Tensor, g: Tensor) -> Tensor:
        columns = size.view(len(size) // max(len(p), 1), len(p), *[1] * (p.ndim - 1))
        return torch.addcmul(p, columns, g, value=-1).flatten(0, 1)

    return pytree.tree_map(move, parameters, gradient)


@dataclass(frozen=True)
class _Rows:
    """Rows that are searching."""

    objective: Objective
    parameters: Any
    gradient: Any
    context: Any
    values: Tensor
    slope: Any
    """`(rows,)`, the squared length of the gradient."""

    @property
    def apart(self) -> bool:
        """Whether some of them can be had without the others."""
        return isinstance(self.objective, RowObjective)

    def some(self, index: Tensor) -> "_Rows":
        assert isinstance(self.objective, RowObjective)
        parameters, gradient = (
            pytree.tree_map(lambda leaf: leaf.index_select(0, index), nest) for nest in (self.parameters, self.gradient)
        )
        context = self.objective.rows(self.context, index)
        return _Rows(self.objective, parameters, gradient, context, self.values[index], self.slope[index])

    def at_once(self, most: int) -> int:
        """Step sizes to try in one call."""
        numbers = sum(p.numel() for p in pytree.tree_leaves(self.parameters))
        return min(max(_AT_ONCE // max(numbers, 1), 1), most) if self.apart else 1

    def short(self, sizes: Tensor) -> Tensor:
        """`(k, rows)` bool: steps of the sizes `(k, rows)` that lower the loss too little; a NaN is not enough."""
        context = self.context
        if len(sizes) > 1:
            assert isinstance(self.objective, RowObjective)
            every = torch.arange(sizes.shape[1], device=sizes.device).repeat(len(sizes))
            context = self.objective.rows(context, every)
        after = self.objective(moved(self.parameters, self.gradient, sizes.flatten()), context)
        return ~(after.view(sizes.shape) <= self.values - 0.5 * sizes * self.slope)


def _by_losses(rows: _Rows, size: Tensor, most: int) -> Tensor:
    found, there, tried = size, None, 0
    while tried < most:
        count = rows.at_once(most - tried)
        sizes = torch.stack([size * 0.5**i for i in range(count)])
        halvings = rows.short(sizes).to(torch.int32).cumprod(0).sum(0)
        size = torch.ldexp(size, -halvings)
        found = size if there is None else found.index_copy(0, there, size)
        tried += count
        left = (halvings == count).nonzero()[:, 0]
        if not len(left):
            break
        if rows.apart and len(left) < len(size):  # the others have found theirs
            there = left if there is None else there[left]
            rows, size = rows.some(left), size[left]
    return found


def _by_slopes(rows: _Rows, size: Tensor, most: int) -> Tensor:
    """Halved until the gradient after the step does not point back. On a quadratic that is the same condition, and it
    can be told however small the gradients are.
    """
    for _ in range(most):
        after = row_gradients(rows.objective, moved(rows.parameters, rows.gradient, size), rows.context)
        pairs = zip(pytree.tree_leaves(after), pytree.tree_leaves(rows.gradient), strict=True)
        short = ~(torch.stack([(a * g).flatten(1).sum(1) for a, g in pairs]).sum(0) >= 0)
        if not bool(short.any()):
            break
        size = torch.where(short, 0.5 * size, size)
    return size
