"""Newton's method as an iterated map, with the dense Hessian of each row."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.bilevel.objective import Objective, row_gradients
from homeostat.bilevel.step import InnerStep
from homeostat.checks import plain_numbers
from homeostat.engine.stop import check_range


@dataclass(frozen=True)
class Newton(InnerStep):
    """`p <- p - step_size (H + damping I)^-1 gradient`, with the Hessian `H` of each row's own loss.

    For problems of up to some hundred parameters: `H` costs as many products as there are parameters, and is factored
    at every step. A row whose `H + damping I` is not positive definite, to rounding, has no step towards a minimum: its
    step is NaN, and `solve` ends that row DIVERGED with the parameters that it had. More `damping` is the remedy; it
    changes how fast a minimum is reached and not where it is. At a minimum without damping the Jacobian of this map is
    0, so that every gradient of the engine is exact after one product.

    Args:
        damping: added to every eigenvalue of the Hessian, 0 or more, in units of curvature.
        step_size: share of the step that is taken, above 0 and at most 1.

    Example:
        >>> import homeostat as hs
        >>> objective = lambda p, c: (p - c).exp().sum(1) - (p - c).sum(1)
        >>> newton = Newton()
        >>> step = lambda state, context: newton.step(objective, state, context)
        >>> solution = hs.solve(step, torch.zeros(2, 3), torch.ones(2, 3), method=hs.Picard())
        >>> solution.state[0], int(solution.steps[0])
        (tensor([1., 1., 1.]), 6)
    """

    damping: float = 0.0
    step_size: float = 1.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_range("damping", self.damping, 0, "a number, 0 or more")
        check_range("step_size", self.step_size, 1e-6, "above 0 and at most 1", high=1.0)

    def step(self, objective: Objective, state: Any, context: Any) -> Any:
        leaves, spec = pytree.tree_flatten(state)
        shapes = [x.shape for x in leaves]
        lengths = [x[0].numel() for x in leaves]

        def gradient(flat: Tensor) -> Tensor:
            parts = [x.reshape(shape) for x, shape in zip(flat.split(lengths, 1), shapes, strict=True)]
            found = row_gradients(objective, pytree.tree_unflatten(parts, spec), context)
            return torch.cat([g.flatten(1) for g in pytree.tree_leaves(found)], 1)

        flat = torch.cat([x.flatten(1) for x in leaves], 1)
        g, pull = torch.func.vjp(gradient, flat)[:2]
        unit = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
        # The rows are problems of their own: one product with a unit vector gives a column of every row's Hessian.
        columns = torch.func.vmap(lambda e: pull(e.expand_as(flat))[0])(unit)
        hessian = columns.transpose(0, 1)
        hessian = 0.5 * (hessian + hessian.mT) + self.damping * unit
        moved = flat - self.step_size * _solve(hessian, g)
        parts = [x.reshape(shape) for x, shape in zip(moved.split(lengths, 1), shapes, strict=True)]
        return pytree.tree_unflatten(parts, spec)


def _solve(matrices: Tensor, vectors: Tensor) -> Tensor:
    """`(rows, n)`, NaN in rows whose matrix is not positive definite to rounding."""
    factor, info = torch.linalg.cholesky_ex(matrices)
    pivots = factor.detach().diagonal(dim1=1, dim2=2).square()
    largest = matrices.detach().diagonal(dim1=1, dim2=2).amax(1)
    floor = matrices.shape[1] * torch.finfo(matrices.dtype).eps * largest
    good = (info == 0) & (pivots.amin(1) > floor)  # False for a NaN too
    found = torch.cholesky_solve(vectors[:, :, None], factor)[:, :, 0]
    return torch.where(good[:, None], found, torch.nan)
