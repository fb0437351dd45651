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


_SPACE = 10


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

    The last ten products span a space (Arnoldi's) that the ones before have turned towards the dominant eigenvectors;
    the radius is the largest eigenvalue there, which may be one of a complex pair or have two signs. Where it has
    not been found to `CONVERGED`, the radius is the larger of it and of the mean rate of growth over the last half of
    the iterations before (as `spectral_radius` has it): both are on the low side then.

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
    count = min(_SPACE, iterations // 2)
    for _ in range(iterations - count):
        vector, factor = unit_rows(linear.pull(vector))
        growth.append(factor)
    rates = torch.stack(growth[len(growth) // 2 :]).double()
    alive = ((rates > 0) | rates.isnan()).all(0)  # a direction that J maps to 0 has come to its end: the radius is 0
    mean = torch.where(alive, rates.clamp(min=1e-300).log().mean(0).exp(), 0)
    value, error = _ritz(linear, vector, count)
    error = torch.where(alive, error, 0)
    radius = torch.where(alive & ~(error <= CONVERGED), torch.maximum(mean, value), torch.where(alive, value, 0))
    norm = change = torch.full_like(radius, float("nan"))
    if norms:
        norm, change = _norm(problem, linear, directions, max(4, iterations // 2))
    return LocalGain(radius, error, norm, change)


def _ritz(linear: Linearised, vector: list[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Modulus of the largest eigenvalue of `J^T` in the space of a unit vector and its next `count` - 1 images, and its
    backward error (Arnoldi). Rows whose space is smaller than that have zeros for the rest of it.
    """
    basis, rows = [vector], len(vector[0])
    device = vector[0].device
    # h[:, i, j] is what the image of basis vector j has along basis vector i.
    h = torch.zeros(rows, count + 1, count, dtype=torch.float64, device=device)
    for j in range(count):
        image = linear.pull(basis[j])
        size = row_dot(image, image).sqrt()
        for _ in range(2):  # once leaves rounding of what was large; twice is enough
            for i, base in enumerate(basis):
                along = row_dot(base, image)
                h[:, i, j] += along
                image = [x - _spread(along, x) * y for x, y in zip(image, base, strict=True)]
        after, length = unit_rows(image)
        new = length > torch.finfo(length.dtype).eps ** 0.5 * size  # less is rounding: the space is complete
        h[:, j + 1, j] = torch.where(new, length.double(), 0)
        basis.append([_spread(new.to(x.dtype), x) * x for x in after])
    finite = torch.isfinite(h).all(2).all(1)
    values, vectors = torch.linalg.eig(torch.where(finite[:, None, None], h[:, :count], 0).cpu())
    sizes = values.abs().to(device)
    largest = sizes.argmax(1)
    each = torch.arange(rows, device=device)
    modulus = torch.where(finite, sizes[each, largest], float("nan"))
    last = vectors.abs().to(device)[each, count - 1, largest]  # of an eigenvector of length 1
    tiny = torch.finfo(torch.float64).tiny
    return modulus, torch.where(modulus == 0, 0, h[:, count, count - 1] * last / modulus.clamp(min=tiny))


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
