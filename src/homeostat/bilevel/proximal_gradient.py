"""Proximal and projected gradient descent as an iterated map."""

from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from homeostat.bilevel.objective import Objective, row_gradients
from homeostat.bilevel.proximal_operators import Proximal
from homeostat.bilevel.step import InnerStep
from homeostat.checks import plain_numbers
from homeostat.engine.stop import check_range


@dataclass(frozen=True)
class ProximalGradient(InnerStep):
    """`p <- prox(p - step_size * gradient)`: minimises a smooth loss plus a penalty, or over a set.

    The Jacobian of this map is not symmetric where the operator keeps some entries still: differentiate it with
    `Implicit(GMRES())` or `Implicit()`, not with `CG`.

    Args:
        step_size: the same for all rows; below 2 over the largest curvature it settles.
        prox: `SoftThreshold`, `Ball`, `Box`, or any function `(parameters, step_size, context) -> parameters`.

    Source:
        Beck, Teboulle, "A fast iterative shrinkage-thresholding algorithm", SIAM J. Imaging Sciences 2 (2009), without
        the acceleration.

    Example:
        >>> import torch, homeostat as hs
        >>> from homeostat.bilevel import SoftThreshold
        >>> lasso = ProximalGradient(1.0, SoftThreshold(0.5))
        >>> objective = lambda p, c: 0.5 * ((p - c) ** 2).sum(1)
        >>> step = lambda state, context: lasso.step(objective, state, context)
        >>> hs.solve(step, torch.zeros(1, 3), torch.tensor([[2.0, 0.3, -1.0]])).state
        tensor([[ 1.5000,  0.0000, -0.5000]])
    """

    step_size: float
    prox: Proximal

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_range("step_size", self.step_size, 1e-12, "above 0")
        if not callable(self.prox):
            raise ValueError(f"prox must be SoftThreshold, Ball, Box or a function, not {self.prox!r}")

    def step(self, objective: Objective, state: Any, context: Any) -> Any:
        gradient = row_gradients(objective, state, context)
        moved = pytree.tree_map(lambda p, g: p - self.step_size * g, state, gradient)
        return self.prox(moved, self.step_size, context)
