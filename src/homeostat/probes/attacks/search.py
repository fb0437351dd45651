"""Climb an objective inside a ball, every example by itself: projected L-BFGS and projected gradient.

Both see only directions of a row's own making: gradients are scaled row by row, so that a row whose gradient is
1e-30 moves as far as one whose gradient is 1. A gradient of exactly zero is replaced by a random direction.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

Method = Literal["lbfgs", "projected-gradient"]

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From points `(rows, entries)` to values `(rows,)` float64, larger is better, and gradients `(rows, entries)`."""

_MEMORY = 5
_TRY = 0.5
"""Length of a first step, in radii."""


def climb(
    objective: Objective,
    start: Tensor,
    radius: float,
    *,
    method: Method,
    iterations: int,
    directions: Callable[[int], Tensor],
) -> Tensor:
    """The best points found, `(rows, entries)`, within `radius` of zero in the Euclidean norm.

    Args:
        objective: evaluated `iterations + 1` times, on all rows. A value of infinity is a row that is won.
        start: where to begin.
        directions: number of an iteration to random unit rows, for rows without a gradient.

    Example:
        >>> def objective(points):  # largest in the direction of (1, 1), and very flat
        ...     return points.sum(1).double(), 1e-30 * torch.ones_like(points)
        >>> start = torch.tensor([[0.1, -0.3], [0.0, 0.0]])
        >>> found = climb(
        ...     objective, start, 2**0.5, method="projected-gradient", iterations=40, directions=lambda k: start
        ... )
        >>> found.round(decimals=2)
        tensor([[1., 1.],
                [1., 1.]])
    """
    start = project(start, radius)
    if method == "lbfgs":
        return _lbfgs(objective, start, radius, iterations, directions)
    return _projected_gradient(objective, start, radius, iterations, directions)


def project(points: Tensor, radius: float) -> Tensor:
    """Rows that lie outside of the ball, back onto its surface."""
    return points * (radius / row_norms(points).clamp(min=1e-300)).clamp(max=1)[:, None].to(points.dtype)


def row_norms(points: Tensor) -> Tensor:
    """`(rows,)` float64; right for gradients whose squares would vanish, too."""
    largest = points.abs().amax(1).clamp(min=torch.finfo(points.dtype).tiny)
    return (points / largest[:, None]).norm(dim=1).double() * largest.double()


def _unit(gradients: Tensor, fallback: Callable[[], Tensor]) -> Tensor:
    """Unit rows; where a row's gradient is zero, what `fallback` gives."""
    norms = row_norms(gradients)
    largest = gradients.abs().amax(1).clamp(min=torch.finfo(gradients.dtype).tiny)
    scaled = gradients / largest[:, None]
    scaled = scaled / scaled.norm(dim=1, keepdim=True).clamp(min=1e-30)
    lost = norms <= torch.finfo(gradients.dtype).tiny  # below the smallest normal number no direction is left
    return torch.where(lost[:, None], fallback(), scaled) if bool(lost.any()) else scaled


def _projected_gradient(
    objective: Objective, x: Tensor, radius: float, iterations: int, directions: Callable[[int], Tensor]
) -> Tensor:
    """Steps of a length that falls from half a radius to nothing; the best point on the way is kept."""
    best, highest = x, torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    for iteration in range(iterations + 1):
        values, gradients = objective(x)
        better = values > highest
        best, highest = torch.where(better[:, None], x, best), torch.where(better, values, highest)
        length = radius * _TRY * (1 - iteration / (iterations + 1))
        x = project(x + length * _unit(gradients, partial(directions, iteration)), radius)
    return best


def _lbfgs(
    objective: Objective, x: Tensor, radius: float, iterations: int, directions: Callable[[int], Tensor]
) -> Tensor:
    """Quasi-Newton steps, never longer than a length that doubles when a row climbs and shrinks when it does not.

    Every iteration costs one evaluation on the full batch, whatever the rows need: a step that does not climb is taken
    back, and the next one is shorter.
    """
    rows = len(x)
    values, gradients = objective(x)
    # One constant factor a row, so that nothing vanishes and the curvature stays that of one function.
    scale = 1 / row_norms(gradients).clamp(min=torch.finfo(gradients.dtype).tiny)
    gradients = _scaled(gradients, scale)
    length = torch.full((rows,), _TRY * radius, dtype=torch.float64, device=x.device)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for iteration in range(iterations):
        steepest = _unit(gradients, partial(directions, iteration))
        ahead = _two_loops(gradients, pairs, radius)
        uphill = (ahead * gradients).sum(1) > 1e-6 * row_norms(ahead) * row_norms(gradients)
        known = uphill & torch.isfinite(ahead).all(1)
        natural = torch.where(known, row_norms(torch.where(known[:, None], ahead, 0)), torch.inf)
        ahead = torch.where(known[:, None], ahead, steepest)
        ahead = ahead / row_norms(ahead).clamp(min=torch.finfo(ahead.dtype).tiny)[:, None].to(ahead.dtype)
        trial = project(x + torch.minimum(natural, length)[:, None].to(x.dtype) * ahead, radius)
        found, slopes = objective(trial)
        slopes = _scaled(slopes, scale)
        climbed = found > values
        step, bend = trial - x, gradients - slopes  # of what is to be minimised, the negative
        product = (step * bend).sum(1)
        usable = climbed & (product > 1e-8 * row_norms(step) * row_norms(bend)) & torch.isfinite(found)
        inverse = torch.where(usable, 1 / product, 0)
        pairs = [
            *pairs[1 - _MEMORY :],
            (torch.where(usable[:, None], step, 0), torch.where(usable[:, None], bend, 0), inverse),
        ]
        x = torch.where(climbed[:, None], trial, x)
        values, gradients = torch.where(climbed, found, values), torch.where(climbed[:, None], slopes, gradients)
        length = torch.where(climbed, 2 * length, 0.4 * length).clamp(1e-4 * radius, 2 * radius)
    return x


def _scaled(gradients: Tensor, scale: Tensor) -> Tensor:
    return (gradients.double() * scale[:, None]).to(gradients.dtype)


def _two_loops(gradients: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]], radius: float) -> Tensor:
    """The gradient times an estimate of the inverse curvature (Nocedal 1980), row by row. Pairs of rows without a
    usable one hold zeros, and change nothing.
    """
    ahead = gradients.clone()
    weights = []
    for step, bend, inverse in reversed(pairs):
        weight = inverse * (step * ahead).sum(1)
        ahead = ahead - weight[:, None] * bend
        weights.append(weight)
    size = torch.full((len(gradients),), _TRY * radius, dtype=gradients.dtype, device=gradients.device)
    for _, bend, inverse in pairs:  # the newest that is usable counts
        size = torch.where(inverse > 0, 1 / (inverse * bend.square().sum(1)), size)
    ahead = size[:, None] * ahead
    for (step, bend, inverse), weight in zip(pairs, reversed(weights), strict=True):
        ahead = ahead + (weight - inverse * (bend * ahead).sum(1))[:, None] * step
    return ahead
