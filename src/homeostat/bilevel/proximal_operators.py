"""Proximal operators: soft thresholding for an l1 norm, and projections onto a ball and a box."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.checks import plain_numbers
from homeostat.engine.stop import check_range

Proximal = Callable[[Any, float, Any], Any]
"""`(parameters, step_size, context) -> parameters`: argmin over q of `penalty(q) + |q - p|^2 / (2 step_size)`."""


@dataclass(frozen=True)
class SoftThreshold:
    """The proximal operator of `weight * |p|_1`: every entry moves towards 0 by `step_size * weight`, and stops there.

    Args:
        weight: 0 or more; a number, a tensor, or a function of the context that gives one. Gradients reach a tensor. It
            is one number, one a row `(rows,)`, or of the shape of the parameters (with their rows).

    Example:
        >>> SoftThreshold(0.5)(torch.tensor([[2.0, -0.7, 0.1]]), 1.0, None)
        tensor([[ 1.5000, -0.2000,  0.0000]])
    """

    weight: float | Tensor | Callable[[Any], Tensor]

    def __post_init__(self) -> None:
        plain_numbers(self)
        if isinstance(self.weight, Tensor):
            if not bool((self.weight >= 0).all()):  # a NaN is neither
                raise ValueError("weight must be 0 or more in every entry")
        elif not callable(self.weight):
            check_range("weight", self.weight, 0, "a number, 0 or more, a tensor, or a function of the context")

    def __call__(self, parameters: Any, step_size: float, context: Any) -> Any:
        weight = self.weight if isinstance(self.weight, Tensor) or not callable(self.weight) else self.weight(context)

        def shrink(p: Tensor) -> Tensor:
            w = torch.as_tensor(weight, dtype=p.dtype, device=p.device)
            if w.ndim == 1:
                w = w.view(-1, *[1] * (p.ndim - 1))
            # Exactly 0 inside, with a derivative of exactly 0.
            return p - torch.clamp(p, -step_size * w, step_size * w)

        return pytree.tree_map(shrink, parameters)


@dataclass(frozen=True)
class Ball:
    """The projection onto the ball of this radius around 0, in the l2 norm of a row over all of its leaves.

    Example:
        >>> Ball(1.0)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0, None)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """

    radius: float

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_range("radius", self.radius, 1e-30, "above 0")

    def __call__(self, parameters: Any, step_size: float, context: Any) -> Any:
        leaves = [p.flatten(1) for p in pytree.tree_leaves(parameters)]
        largest = torch.stack([p.detach().abs().amax(1) for p in leaves]).amax(0)
        # Squares of large numbers would overflow: what is far outside is brought near first.
        scale = torch.where(largest > 1e3 * self.radius, self.radius / largest, 1)
        parameters = pytree.tree_map(lambda p: p * scale.view(-1, *[1] * (p.ndim - 1)), parameters)
        squares = torch.stack([p.flatten(1).square().sum(1) for p in pytree.tree_leaves(parameters)]).sum(0)
        outside = squares > self.radius**2
        # The root of an ordinary number where nothing is scaled, so that no derivative of a root at 0 is taken.
        share = torch.where(outside, self.radius / torch.where(outside, squares, self.radius**2).sqrt(), 1)
        return pytree.tree_map(lambda p: p * share.view(-1, *[1] * (p.ndim - 1)), parameters)


@dataclass(frozen=True)
class Box:
    """The projection of every entry onto `[low, high]`; an end that is infinite does not bound.

    Example:
        >>> Box(low=0.0)(torch.tensor([[-2.0, 3.0]]), 1.0, None)
        tensor([[0., 3.]])
    """

    low: float = -float("inf")
    high: float = float("inf")

    def __post_init__(self) -> None:
        plain_numbers(self)
        if not self.low < self.high:
            raise ValueError(f"low must be below high, not {self.low!r} and {self.high!r}")

    def __call__(self, parameters: Any, step_size: float, context: Any) -> Any:
        return pytree.tree_map(lambda p: p.clamp(self.low, self.high), parameters)
