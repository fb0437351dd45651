"""Random linear systems `u = J^T u + g`, fixed by their family and seed alone, on which adjoint solvers are compared.

How they are drawn, written down before any of them was solved. Ten families; seeds go up from 0, and none is left out
but expanding ones with a singular value of `I - J` below 1e-3. Unknowns are log-uniform on 4 to 128, gradients Gaussian
with a size log-uniform on [1e-6, 1e6], even seeds are in float64 (to a residual of 1e-9), odd ones in float32 (1e-5).

* normal: eigenvalues of random phase in a disc whose radius is 1 less log-uniform on [0.01, 0.5];
* non-normal: a Schur form, diagonal in [-0.95, 0.95], with an upper part whose norm is 2 to 20;
* expanding: Gaussian with a spectral radius from 1 to 5;
* ill-conditioned: singular values of `I - J` log-uniform from 1 down to 1 / condition, condition 1e2 to 1e6;
* near-singular 1e-4 and 1e-8: a contraction (0.2 to 0.9) beside one eigenvalue of 1 less that, in a skew basis;
* rotations: orthogonal, times a gain whose distance from 1 is log-uniform on [1e-3, 0.5], on either side;
* nilpotent: a shift with random weights in 0.5 to 1.5 and a random upper part of norm 0 to 2;
* badly scaled: Gaussian, with a spectral radius from 0.5 to 1.5, in two leaves whose units differ by 1e3 to 1e6;
* several leaves: three leaves of Gaussian weights with a spectral radius from 0.5 to 1.5.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import homeostat as hs
from homeostat.engine import Adjoint

F64 = torch.float64


@dataclass(frozen=True)
class System:
    """`u = J^T u + g` in leaves of these sizes; `name` says all that is needed to draw it again."""

    name: str
    jacobian: Tensor
    gradient: Tensor
    sizes: tuple[int, ...]
    rtol: float

    @property
    def dtype(self) -> torch.dtype:
        return self.gradient.dtype

    def solve(self, gradient: hs.Implicit) -> tuple[Tensor, Adjoint]:
        """`u` and how the solve went, by way of `hs.solve` at the fixed point 0."""
        matrix, source = self.jacobian.to(self.dtype), torch.zeros_like(self.gradient).requires_grad_()

        def step(state: tuple[Tensor, ...], shift: Tensor) -> tuple[Tensor, ...]:
            return (torch.cat(state, 1) @ matrix.T + shift).split(self.sizes, 1)

        start = tuple(torch.zeros(1, n, dtype=self.dtype) for n in self.sizes)
        found = hs.solve(step, start, source, stop=hs.Stop(rtol=0.5, atol=1e-30), gradient=gradient)
        torch.autograd.backward(found.state, self.gradient.split(self.sizes, 1))
        assert source.grad is not None
        assert found.adjoint is not None
        return source.grad, found.adjoint

    def residual(self, u: Tensor) -> float:
        """The relative residual of a solution, in float64."""
        u, g = u.double(), self.gradient.double()
        after = u @ self.jacobian.to(self.dtype).double() + g
        parts = zip((after - u).split(self.sizes, 1), after.split(self.sizes, 1), strict=True)
        return max(float(change.norm() / size.norm()) if change.norm() else 0.0 for change, size in parts)


def _uniform(draw: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=draw, dtype=F64))


def _log_uniform(draw: torch.Generator, low: float, high: float) -> float:
    return math.exp(_uniform(draw, math.log(low), math.log(high)))


def _normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=F64)


def _orthogonal(draw: torch.Generator, n: int) -> Tensor:
    return torch.linalg.qr(_normal(draw, n, n)).Q


def _radius(matrix: Tensor, radius: float) -> Tensor:
    return matrix * radius / torch.linalg.eigvals(matrix).abs().max()


def _with_norm(matrix: Tensor, norm: float) -> Tensor:
    return matrix * norm / torch.linalg.matrix_norm(matrix, 2).clamp(min=1e-300)


def _in_basis(matrix: Tensor, draw: torch.Generator) -> Tensor:
    basis = _orthogonal(draw, len(matrix))
    return basis @ matrix @ basis.T


def _normal_matrix(draw: torch.Generator, n: int) -> Tensor:
    limit = 1 - _log_uniform(draw, 0.01, 0.5)
    blocks = []
    for _ in range(n // 2):
        size, phase = limit * _uniform(draw, 0, 1) ** 0.5, _uniform(draw, 0, math.pi)
        c, s = size * math.cos(phase), size * math.sin(phase)
        blocks.append(torch.tensor([[c, s], [-s, c]], dtype=F64))
    if n % 2:
        blocks.append(torch.full((1, 1), limit, dtype=F64))
    return _in_basis(torch.block_diag(*blocks), draw)


def _non_normal(draw: torch.Generator, n: int) -> Tensor:
    upper = _with_norm(_normal(draw, n, n).triu(1), _log_uniform(draw, 2, 20))
    return _in_basis(torch.diag(0.95 * (2 * torch.rand(n, generator=draw, dtype=F64) - 1)) + upper, draw)


def _expanding(draw: torch.Generator, n: int) -> Tensor:
    while True:
        found = _radius(_normal(draw, n, n), _uniform(draw, 1, 5))
        if torch.linalg.svdvals(torch.eye(n, dtype=F64) - found).min() >= 1e-3:
            return found


def _ill_conditioned(draw: torch.Generator, n: int) -> Tensor:
    condition = _log_uniform(draw, 1e2, 1e6)
    values = torch.exp(-math.log(condition) * torch.rand(n, generator=draw, dtype=F64))
    values[0], values[-1] = 1, 1 / condition
    left = _orthogonal(draw, n)
    right = left if _uniform(draw, 0, 1) < 0.5 else _orthogonal(draw, n)  # symmetric, or not at all
    return torch.eye(n, dtype=F64) - left @ torch.diag(values) @ right.T


def _near_singular(distance: float) -> Callable[[torch.Generator, int], Tensor]:
    def make(draw: torch.Generator, n: int) -> Tensor:
        rest = _radius(_normal(draw, n - 1, n - 1), _uniform(draw, 0.2, 0.9))
        lone = torch.full((1, 1), 1 - distance, dtype=F64)
        skew = torch.eye(n, dtype=F64) + 0.3 * _normal(draw, n, n) / n**0.5
        return torch.linalg.solve(skew, torch.block_diag(lone, rest) @ skew)

    return make


def _rotations(draw: torch.Generator, n: int) -> Tensor:
    distance = _log_uniform(draw, 1e-3, 0.5)
    return _orthogonal(draw, n) * (1 - distance if _uniform(draw, 0, 1) < 0.5 else 1 + distance)


def _nilpotent(draw: torch.Generator, n: int) -> Tensor:
    weights = 0.5 + torch.rand(n - 1, generator=draw, dtype=F64)
    return torch.diag(weights, 1) + _with_norm(_normal(draw, n, n).triu(1), _uniform(draw, 0, 2))


def _badly_scaled(draw: torch.Generator, n: int) -> Tensor:
    units = torch.ones(n, dtype=F64)
    units[: n // 2] = _log_uniform(draw, 1e3, 1e6)
    return units[:, None] * _radius(_normal(draw, n, n), _uniform(draw, 0.5, 1.5)) / units


def _several_leaves(draw: torch.Generator, n: int) -> Tensor:
    return _radius(_normal(draw, n, n), _uniform(draw, 0.5, 1.5))


FAMILIES: dict[str, Callable[[torch.Generator, int], Tensor]] = {
    "normal": _normal_matrix,
    "non-normal": _non_normal,
    "expanding": _expanding,
    "ill-conditioned": _ill_conditioned,
    "near-singular 1e-4": _near_singular(1e-4),
    "near-singular 1e-8": _near_singular(1e-8),
    "rotations": _rotations,
    "nilpotent": _nilpotent,
    "badly scaled": _badly_scaled,
    "several leaves": _several_leaves,
}


def random_system(family: str, seed: int) -> System:
    """The system of a family with a seed."""
    draw = torch.Generator().manual_seed(seed)
    n = round(_log_uniform(draw, 4, 128))
    jacobian = FAMILIES[family](draw, n)
    dtype, rtol = (F64, 1e-9) if seed % 2 == 0 else (torch.float32, 1e-5)
    gradient = (_log_uniform(draw, 1e-6, 1e6) * _normal(draw, 1, n)).to(dtype)
    sizes = {"badly scaled": (n // 2, n - n // 2), "several leaves": (n // 4, n // 2, n - n // 4 - n // 2)}
    return System(f"{family} {seed} ({n}, {str(dtype)[6:]})", jacobian, gradient, sizes.get(family, (n,)), rtol)


def random_systems(count: int) -> Iterator[System]:
    """So many of each family."""
    for family in FAMILIES:
        for seed in range(count):
            yield random_system(family, seed)
