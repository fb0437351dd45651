"""Outer losses of the affine model: convex in the iterate, a value for each row."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from homeostat.bilevel.affine.problem import check_float64
from homeostat.checks import plain_numbers
from homeostat.engine.stop import check_range
from homeostat.errors import InputError


class OuterLoss(ABC):
    """A convex function of each row's iterate. A subclass gives its value, and how fast its gradient can change."""

    smoothness: float
    """A Lipschitz constant of the gradient."""

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """`(rows, n) -> (rows,)`."""

    def gradient(self, z: Tensor) -> Tensor:
        """`(rows, n)`, the gradient of each row's loss."""
        return torch.func.grad(lambda p: self(p).sum())(z)

    def change(self, z: Tensor, move: Tensor) -> Tensor:
        """`(rows,)`: the loss at `z + move` less that at `z`."""
        return self(z + move) - self(z)


@dataclass(frozen=True, eq=False)
class Squared(OuterLoss):
    """`|z - target|^2 / 2`, with targets `(rows, n)`.

    Example:
        >>> loss = Squared(torch.zeros(1, 2, dtype=torch.float64))
        >>> loss(torch.ones(1, 2, dtype=torch.float64))
        tensor([1.], dtype=torch.float64)
    """

    target: Tensor
    smoothness = 1.0

    def __post_init__(self) -> None:
        _check(self.target)

    def __call__(self, z: Tensor) -> Tensor:
        return 0.5 * (z - self.target).square().sum(1)

    def gradient(self, z: Tensor) -> Tensor:
        return z - self.target

    def change(self, z: Tensor, move: Tensor) -> Tensor:
        # Exact to rounding of the change itself, however small it is beside the loss.
        return ((z - self.target) * move).sum(1) + 0.5 * move.square().sum(1)


@dataclass(frozen=True, eq=False)
class CrossEntropy(OuterLoss):
    """Logistic regression on every coordinate, with probabilities `(rows, n)` strictly between 0 and 1 as targets, so
    that a minimum exists.
    """

    target: Tensor
    smoothness = 0.25

    def __post_init__(self) -> None:
        _check(self.target)
        if not bool(((self.target > 0) & (self.target < 1)).all()):
            raise InputError("targets of the cross entropy must lie strictly between 0 and 1, else no minimum exists")

    def __call__(self, z: Tensor) -> Tensor:
        return (F.softplus(z) - self.target * z).sum(1)


@dataclass(frozen=True, eq=False)
class Huber(OuterLoss):
    """Half the square of every difference up to `width`, linear beyond: convex, but not strictly."""

    target: Tensor
    width: float = 1.0
    smoothness = 1.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        _check(self.target)
        check_range("width", self.width, 1e-12, "above 0")

    def __call__(self, z: Tensor) -> Tensor:
        return F.huber_loss(z, self.target, reduction="none", delta=self.width).sum(1)


def _check(target: Tensor) -> None:
    if getattr(target, "ndim", 0) != 2:
        raise InputError("targets must be (rows, n)")
    check_float64("target", target, tuple(target.shape), target.device)
