"""What a step does to a small displacement: its Jacobian's spectral radius, its norm, and the image of a tangent.

The Jacobian is one example's, by all measured leaves of its state (floating ones that are not `Carry`); context and
everything else are held fixed. `J^T u` is taken by reverse mode, `J v` by forward mode, or by differentiating
`J^T u` where a step holds an operation without a forward rule.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from homeostat.engine.problem import Problem
from homeostat.nn.jacobian import Linearised, row_dot, unit_rows

CONVERGED = 1e-2
"""Backward error up to which a spectral radius counts as found, and relative change up to which a norm does."""


@dataclass(frozen=True)
class LocalGain:
    """Radius and norm of the Jacobian of each example, `(rows,)` each."""

    radius: Tensor
    """Spectral radius: below 1, plain iteration settles near this state."""
    radius_error: Tensor
    """Backward error of the eigenvalue, relative: |J y - l y| / |l y|. It is exact for a Jacobian so far away."""
    norm: Tensor
    """Spectral norm, from below: the largest factor by which one step can stretch a displacement."""
    norm_change: Tensor
    """Relative change of the norm over the last quarter of its iterations."""


def local_gain(problem: Problem, directions: Sequence[Tensor], iterations: int) -> LocalGain:
    """Power iterations of `J^T` for the radius, and half as many of `J^T J` for the norm, at the problem's state.

    The radius is that of the larger eigenvalue in the plane of the last vector and its image, which holds the
    dominant eigenvector, or the pair where it is complex or has two signs. Where that eigenvalue has not been found
    to `CONVERGED`, it is the mean rate of growth over the last half of the iterations (as `spectral_radius` has it),
    which is right on average where vectors keep turning.

    Args:
        problem: step, state and context.
        directions: first vectors, shaped as the measured leaves.
        iterations: products for the radius; 8 or more.
    """
    return _gain(problem, directions, iterations, norms=True)


def spectral_radii(problem: Problem, directions: Sequence[Tensor], iterations: int) -> Tensor:
    """The radius of `local_gain` alone, `(rows,)`."""
    return _gain(problem, directions, iterations, norms=False).radius


def _gain(problem: Problem, directions: Sequence[Tensor], iterations: int, norms: bool) -> LocalGain:
    linear = Linearised(problem)
    vector, growth = unit_rows(list(directions))[0], []
    for _ in range(iterations):
        vector, factor = unit_rows(linear.pull(vector))
        growth.append(factor)
    rates = torch.stack(growth[iterations // 2 :]).double()
    alive = ((rates > 0) | rates.isnan()).all(0)  # a direction that J maps to 0 has come to its end: the radius is 0
    mean = torch.where(alive, rates.clamp(min=1e-300).log().mean(0).exp(), 0)
    value, error = _ritz(linear, vector)
    error = torch.where(alive, error.double(), 0)
    radius = torch.where(alive & (error <= CONVERGED), value.double(), mean)
    norm = change = torch.full_like(radius, float("nan"))
    if norms:
        norm, change = _norm(problem, linear, directions, max(4, iterations // 2))
    return LocalGain(radius, error, norm, change)


def _ritz(linear: Linearised, first: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Modulus of the larger eigenvalue in the plane of a unit vector and its image, and its backward error."""
    image = linear.pull(first)
    a = row_dot(first, image)
    second, c = unit_rows([y - _spread(a, y) * x for x, y in zip(first, image, strict=True)])
    other = linear.pull(second)
    b, d = row_dot(first, other), row_dot(second, other)
    rest = [z - _spread(b, z) * x - _spread(d, z) * y for x, y, z in zip(first, second, other, strict=True)]
    left = row_dot(rest, rest).clamp(min=0).sqrt()
    mean, square = (a + d) / 2, (a - d).square() / 4 + b * c
    root = square.abs().sqrt()
    real = torch.where(mean >= 0, mean + root, mean - root)
    zero = torch.zeros_like(mean)
    value = torch.where(square >= 0, torch.complex(real, zero), torch.complex(mean, root))
    # With y = (l - d, c) in that plane, J y - l y is c times what J takes out of it.
    length = ((value - d).abs().square() + c.square()).sqrt()
    tiny = torch.finfo(a.dtype).tiny
    error = c * left / (value.abs() * length).clamp(min=tiny)
    alone = c <= torch.finfo(a.dtype).eps ** 0.5 * a.abs()  # the image is along the vector: there is no plane
    modulus = torch.where(alone, a.abs(), value.abs())
    return modulus, torch.where(alone, c / a.abs().clamp(min=tiny), error)


def _norm(problem: Problem, linear: Linearised, directions: Sequence[Tensor], iterations: int) -> tuple[Tensor, Tensor]:
    vector, found = unit_rows(list(directions))[0], []
    for _ in range(iterations):
        image = push(problem, problem.state, vector, linear)
        found.append(row_dot(image, image).sqrt().double())
        vector, _ = unit_rows(linear.pull(image))
    last, former = found[-1], found[(3 * iterations) // 4 - 1]
    return last, torch.where(last == 0, 0, (last - former).abs() / last.clamp(min=1e-300))


@functools.cache
def _load_forward_rules() -> None:
    """Let PyTorch load its forward rules; on the first dual number it does so with a warning about its own code."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.ones(1))


def push(
    problem: Problem, state: Sequence[Tensor], tangent: Sequence[Tensor], linear: Linearised | None = None
) -> list[Tensor]:
    """`J v` at the leaves `state`, for a tangent shaped as the measured leaves.

    Args:
        linear: the step recorded at the same state, where there is one; saves its evaluation in the second way.
    """
    measured = problem.layout.measured()
    _load_forward_rules()
    try:
        with torch.no_grad(), forward_ad.dual_level():
            leaves = list(state)
            for i, v in zip(measured, tangent, strict=True):
                leaves[i] = forward_ad.make_dual(leaves[i].detach(), v.to(leaves[i].dtype))
            after = problem.apply(leaves, problem.context)
            pairs = [forward_ad.unpack_dual(after[i]) for i in measured]
            return [torch.zeros_like(p.primal) if p.tangent is None else p.tangent.clone() for p in pairs]
    except RuntimeError:  # an operation without a forward rule; a fault of the step itself comes up again below
        if linear is None:
            linear = Linearised(replace(problem, state=list(state)))
        return linear.push(tangent)


def _spread(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.view(-1, *([1] * (like.ndim - 1))).to(like.dtype)
