"""Outer minimisers: the parameters that a training with N steps ends at, and what they lose or gain with more."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homeostat.bilevel.affine.losses import OuterLoss, Squared
from homeostat.bilevel.affine.problem import RANK_TOLERANCE, AffineProblem, check_steps, times
from homeostat.engine.stop import check_count
from homeostat.errors import ConvergenceError

_MOST_ITERATIONS = 100
_MOST_HALVINGS = 60
_RIDGE = 0.1


def outer_minimiser(problem: AffineProblem, loss: OuterLoss, steps: int, *, tolerance: float = 1e-9) -> Tensor:
    """`(rows, d)`, the parameters of least loss after N = `steps` steps, those of least norm among them.

    For `Squared` they are exact: least squares. For another convex loss Newton's method is run, damped and regularised,
    over the range of `A_N`, until the gradient along it is at most `tolerance` times that at theta = 0 (or `tolerance`
    itself where that is smaller than 1).

    Raises:
        ConvergenceError: the gradient stayed larger.
        ValueError: `steps` below 1: with no step the loss does not depend on the parameters.

    Example:
        >>> from homeostat.bilevel.affine import Squared, draw_affine
        >>> problem, target = draw_affine(3, n=4, d=2, seed=0)
        >>> theta = outer_minimiser(problem, Squared(target), steps=5)
        >>> Squared(target)(problem.at(theta, 5)) <= Squared(target)(problem.at(theta + 0.1, 5))
        tensor([True, True, True])
    """
    check_count("steps", steps)
    offset, slope = problem.closed_form(steps)
    inverse = torch.linalg.pinv(slope, rtol=RANK_TOLERANCE)
    if isinstance(loss, Squared):
        return times(inverse, loss.target - offset)
    basis, values, _ = torch.linalg.svd(slope, full_matrices=False)
    basis = basis * (values > RANK_TOLERANCE * values[:, :1])[:, None, :]
    return times(inverse, times(basis, _newton(loss, offset, basis, tolerance)))


def _newton(loss: OuterLoss, offset: Tensor, basis: Tensor, tolerance: float) -> Tensor:
    """`(rows, k)` coordinates `y` of least loss at `offset + basis y`; those of empty columns are 0."""
    size = basis.shape[2]
    eye = torch.eye(size, dtype=basis.dtype, device=basis.device)
    y = torch.zeros_like(basis[:, 0])
    enough = tolerance * times(basis.mT, loss.gradient(offset)).norm(dim=1).clamp_min(1.0)
    norm = enough
    for _ in range(_MOST_ITERATIONS):
        z = offset + times(basis, y)
        gradient = times(basis.mT, loss.gradient(z))
        norm = gradient.norm(dim=1)
        if bool((norm <= enough).all()):
            return y
        curved = torch.stack([_second(loss, z, basis[:, :, k]) for k in range(size)], dim=2)
        # A ridge that vanishes with the gradient: flat directions of a loss that is not strictly convex need one.
        hessian = basis.mT @ curved + (_RIDGE * norm.clamp_max(1.0) + 1e-14)[:, None, None] * eye
        step = -torch.linalg.solve(hessian, gradient)
        y = y + _shortened(loss, z, times(basis, step), (gradient * step).sum(1))[:, None] * step
    worst = float((norm / enough).max()) * tolerance
    raise ConvergenceError(f"the outer minimum was not found: a gradient is {worst:.1e} of that at theta = 0")


def _second(loss: OuterLoss, z: Tensor, direction: Tensor) -> Tensor:
    """`(rows, n)`: the second derivative of each row's loss along a direction."""
    return torch.func.grad(lambda p: (torch.func.grad(lambda q: loss(q).sum())(p) * direction).sum())(z)


def _shortened(loss: OuterLoss, z: Tensor, move: Tensor, slope: Tensor) -> Tensor:
    """`(rows,)` lengths, halved until the loss falls by a ten-thousandth of what the slope promises."""
    length = torch.ones_like(slope)
    rounding = 4 * torch.finfo(z.dtype).eps * loss(z).abs()
    for _ in range(_MOST_HALVINGS):
        short = ~(loss.change(z, length[:, None] * move) <= 1e-4 * length * slope + rounding)
        if not bool(short.any()):
            break
        length = torch.where(short, 0.5 * length, length)
    return length


@dataclass(frozen=True, eq=False, repr=False)
class Change:
    """`D(N, dN)`: what `extra` more steps do to the loss of parameters that were trained with `steps`."""

    steps: int
    extra: int
    before: Tensor
    """`(rows,)`, the loss after N steps."""
    after: Tensor
    """`(rows,)`, the loss after N + dN."""
    value: Tensor
    """`(rows,)`, D = after - before, computed without their difference where the loss allows it."""

    def __repr__(self) -> str:
        low, middle, high = (float(self.value.quantile(q)) for q in (0.0, 0.5, 1.0))
        better = int((self.value < 0).sum())
        return (
            f"D(N={self.steps}, dN={self.extra}) of {len(self.value)} rows: least {low:.3g}, median {middle:.3g}, "
            f"largest {high:.3g}; {better} below 0"
        )


def change_of_loss(
    problem: AffineProblem, loss: OuterLoss, steps: int, extra: int, *, theta: Tensor | None = None
) -> Change:
    """`D(N, dN) = loss(z_{N + dN}(theta)) - loss(z_N(theta))`, at the outer minimiser of N steps unless told.

    Raises:
        ValueError: `steps` below 1, or `extra` below `-steps`.

    Example:
        >>> from homeostat.bilevel.affine import Squared, draw_affine
        >>> problem, target = draw_affine(100, n=4, d=4, seed=0)
        >>> change_of_loss(problem, Squared(target), steps=5, extra=5).value.min() >= 0
        tensor(True)
    """
    check_steps(steps, extra)
    theta = outer_minimiser(problem, loss, steps) if theta is None else theta
    z, move = problem.at(theta, steps), problem.move(theta, steps, extra)
    return Change(steps, extra, loss(z), loss(z + move), loss.change(z, move))


def refuse_rows(wrong: Tensor, what: str, error: type[Exception]) -> None:
    """Raise when a row is wrong, with the first of them and their number.

    Raises:
        Exception: the `error` given.
    """
    if bool(wrong.any()):
        first: Any = wrong.nonzero()[0, 0]
        raise error(f"{what} in {int(wrong.sum())} of {len(wrong)} rows, first in row {int(first)}")
