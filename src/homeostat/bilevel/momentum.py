"""Gradient descent with momentum as an iterated map: heavy ball and Nesterov's."""

from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from homeostat.bilevel.objective import Objective, row_gradients
from homeostat.bilevel.step import InnerStep
from homeostat.checks import plain_numbers
from homeostat.engine.stop import check_range


@dataclass(frozen=True)
class Momentum(InnerStep):
    """`p <- p + momentum (p - former) - step_size gradient`; with `nesterov` the gradient is taken ahead of `p`.

    The state is `{"parameters": p, "former": p before}` and not the velocity, which vanishes at a solution, so that no
    relative tolerance could be met by it. The Jacobian of this map is not symmetric: differentiate it with
    `Implicit(GMRES())`, `Implicit(NormalCG())` or `Implicit()`, not with `CG`.

    Args:
        step_size: the same for all rows.
        momentum: share of the last move that is made again, from 0 to below 1.
        nesterov: take the gradient at `p + momentum (p - former)`.

    Source:
        B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", USSR Comput. Math. Math. Phys.
        4 (1964); Y. Nesterov, "A method of solving a convex programming problem with convergence rate O(1/k^2)",
        Soviet Math. Dokl. 27 (1983), with a constant momentum.

    Example:
        >>> import torch, homeostat as hs
        >>> objective = lambda p, c: 0.5 * ((p - c) ** 2).sum(1)
        >>> momentum = Momentum(0.5, 0.3)
        >>> step = lambda state, context: momentum.step(objective, state, context)
        >>> state = hs.solve(step, momentum.start(torch.zeros(2, 3)), torch.ones(2, 3), method=hs.Picard()).state
        >>> momentum.parameters(state)[0].round(decimals=3)
        tensor([1., 1., 1.])
    """

    step_size: float
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_range("step_size", self.step_size, 1e-12, "above 0")
        check_range("momentum", self.momentum, 0, "0 or more and below 1", high=1 - 1e-12)
        if not isinstance(self.nesterov, bool):
            raise ValueError(f"nesterov must be True or False, not {self.nesterov!r}")

    def start(self, parameters: Any) -> Any:
        return {"parameters": parameters, "former": parameters}

    def parameters(self, state: Any) -> Any:
        return state["parameters"]

    def step(self, objective: Objective, state: Any, context: Any) -> Any:
        parameters = state["parameters"]
        ahead = pytree.tree_map(lambda p, f: p + self.momentum * (p - f), parameters, state["former"])
        gradient = row_gradients(objective, ahead if self.nesterov else parameters, context)
        moved = pytree.tree_map(lambda a, g: a - self.step_size * g, ahead, gradient)
        return {"parameters": moved, "former": parameters}
