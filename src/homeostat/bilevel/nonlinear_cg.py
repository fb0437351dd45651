"""Nonlinear conjugate gradients as an iterated map."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.bilevel.objective import Objective, row_gradients
from homeostat.bilevel.step import InnerStep
from homeostat.checks import plain_numbers
from homeostat.engine import Carry
from homeostat.engine.stop import check_count

# A loss is known to so many units in its last place: a step may raise it by that much.
_ROUNDING = 8


@dataclass(frozen=True)
class NonlinearCG(InnerStep):
    """Conjugate gradients of Polak and Ribiere, restarted where they do not descend, with a Newton step along the line.

    Each row moves along its own direction by `- slope / curvature`, from one product with its Hessian: on a quadratic
    loss that is linear conjugate gradients, done after as many steps as the Hessian has different eigenvalues. Where a
    line bends downwards the last length is doubled instead, and any length is halved until the loss falls.

    The state is `{"parameters": p, "direction": ..., "gradient": ..., "length": ...}`, the last three carried: to a
    derivative the length and the former direction are constants, so that at a solution `I - J` is `length` times the
    Hessian, which `Implicit(CG())` can solve.

    Args:
        most_halvings: of the length, at one step.

    Source:
        E. Polak, G. Ribiere, "Note sur la convergence de methodes de directions conjuguees", Rev. Fr. Inform. Rech.
        Oper. 3 (1969), with beta cut at 0; the length as in J. R. Shewchuk, "An introduction to the conjugate gradient
        method without the agonizing pain" (1994), section 14.

    Example:
        >>> import homeostat as hs
        >>> objective = lambda p, c: 0.5 * (c * (p - 1) ** 2).sum(1)
        >>> cg = NonlinearCG()
        >>> step = lambda state, context: cg.step(objective, state, context)
        >>> curvatures = torch.tensor([[1.0, 10.0, 100.0]])
        >>> solution = hs.solve(step, cg.start(torch.zeros(1, 3)), curvatures, method=hs.Picard())
        >>> cg.parameters(solution.state).round(decimals=4), int(solution.steps)
        (tensor([[1., 1., 1.]]), 4)
    """

    most_halvings: int = 15

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_count("most_halvings", self.most_halvings)

    def start(self, parameters: Any) -> Any:
        leaf = pytree.tree_leaves(parameters)[0]
        nothing = pytree.tree_map(lambda p: Carry(torch.zeros_like(p)), parameters)
        length = Carry(leaf.new_ones(len(leaf)))
        return {"parameters": parameters, "direction": nothing, "gradient": nothing, "length": length}

    def parameters(self, state: Any) -> Any:
        return state["parameters"]

    def step(self, objective: Objective, state: Any, context: Any) -> Any:
        parameters = state["parameters"]
        gradient = row_gradients(objective, parameters, context)
        with torch.no_grad():
            share, length, fixed = self._choose(objective, state, gradient, context)
        direction = pytree.tree_map(lambda g, d: _rows(share, d) * d - g, gradient, state["direction"])
        moved = pytree.tree_map(lambda p, d: p + _rows(length, d) * d, parameters, direction)
        kept = pytree.tree_map(lambda d: d.detach(), direction)
        return {"parameters": moved, "direction": kept, "gradient": fixed, "length": length}

    def _choose(self, objective: Objective, state: Any, gradient: Any, context: Any) -> tuple[Tensor, Tensor, Any]:
        """The share of the former direction and the length of the step, `(rows,)` each, and the gradient."""
        parameters, former = state["parameters"], state["gradient"]
        gradient = pytree.tree_map(lambda g: g.detach(), gradient)
        change = pytree.tree_map(lambda g, f: g - f, gradient, former)
        size = _dot(former, former)
        share = (_dot(gradient, change) / torch.where(size > 0, size, 1)).clamp(min=0)
        share = torch.where(size > 0, share, 0)
        # Where the new direction would not descend, it begins again with the gradient.
        slope = share * _dot(state["direction"], gradient) - _dot(gradient, gradient)
        share = torch.where(slope < 0, share, 0)
        direction = pytree.tree_map(lambda g, d: _rows(share, d) * d - g, gradient, state["direction"])
        slope = _dot(direction, gradient)
        # The Hessian is symmetric, so that a transposed product is as good.
        (bent,) = torch.func.vjp(lambda p: row_gradients(objective, p, context), parameters)[1](direction)
        curvature = _dot(direction, bent)
        newton = -slope / torch.where(curvature > 0, curvature, 1)
        length = torch.where(curvature > 0, newton, 2 * state["length"])
        length = torch.where((slope == 0) | ~torch.isfinite(length), state["length"], length)
        before = objective(parameters, context)
        slack = _ROUNDING * torch.finfo(before.dtype).eps * before.abs()
        for _ in range(self.most_halvings):
            ahead = pytree.tree_map(lambda p, d: p + _rows(length, d) * d, parameters, direction)  # noqa: B023
            short = ~(objective(ahead, context) <= before + 1e-4 * length * slope + slack)  # a NaN does not descend
            if not bool(short.any()):
                break
            length = torch.where(short, 0.5 * length, length)
        return share, length, gradient


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _dot(a: Any, b: Any) -> Tensor:
    """`(rows,)`, over all leaves."""
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return torch.stack([(x * y).flatten(1).sum(1) for x, y in pairs]).sum(0)
