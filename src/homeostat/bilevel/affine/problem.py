"""The affine inner problem, whose iterates are affine in the outer parameters, so that everything is known exactly."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from homeostat.checks import is_whole
from homeostat.engine import Picard, Stop, solve
from homeostat.engine.stop import check_count
from homeostat.errors import InputError

RANK_TOLERANCE = 1e-10
"""Singular values below this share of a matrix's largest one count as zero, wherever a rank matters."""


@dataclass(frozen=True, eq=False, repr=False)
class AffineProblem:
    """Rows of inner problems `f(z, theta) = K'(K z + U theta + c) = 0`, solved by `z <- z - eta f(z, theta)` from `z0`.

    It is gradient descent on `|K z + U theta + c|^2 / 2`, with outer parameters `theta` of shape `(rows, d)`. Several
    training examples that share `theta` are one row, their matrices `K` on the diagonal of one large `K`.

    Args:
        K: `(rows, m, n)`.
        U: `(rows, m, d)`.
        c: `(rows, m)`.
        eta: `(rows,)` step sizes, or one number for all; each above 0 and below 2 / |K|^2, so that the steps converge.
        z0: `(rows, n)`, the start. It must not depend on `theta`; where it does, see `QuadraticTasks`.

    All tensors are float64 and on one device.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, values that are not finite, a `K` that is zero, or a step
            size out of range.

    Source:
        The affine model of Ramzi, Ablin, Peyré, Moreau, "Test like you train in implicit deep learning"
        (arXiv 2305.15042), in a form of our own.

    Example:
        >>> one = torch.ones(1, 1, 1, dtype=torch.float64)
        >>> problem = AffineProblem(K=one, U=-one, c=torch.zeros(1, 1).double(), eta=0.5, z0=torch.zeros(1, 1).double())
        >>> problem.at(torch.ones(1, 1).double(), steps=2)  # z goes to theta, half of the way at each step
        tensor([[0.7500]], dtype=torch.float64)
    """

    K: Tensor
    U: Tensor
    c: Tensor
    eta: Tensor | float
    z0: Tensor

    def __post_init__(self) -> None:
        if self.K.ndim != 3:
            raise InputError(f"K must be (rows, m, n), not of shape {tuple(self.K.shape)}")
        rows, m, n = self.K.shape
        d = self.U.shape[-1] if self.U.ndim == 3 else 0
        eta = torch.as_tensor(self.eta, dtype=torch.float64, device=self.K.device).expand(rows)
        object.__setattr__(self, "eta", eta)
        for name, shape in (("K", (rows, m, n)), ("U", (rows, m, d)), ("c", (rows, m)), ("z0", (rows, n))):
            check_float64(name, getattr(self, name), shape, self.K.device)
        if not bool(torch.isfinite(eta).all()):
            raise InputError("eta holds values that are not finite")
        largest = self.modes.values.amax(1)
        if bool((largest == 0).any()):
            raise InputError(f"K is zero in row {_first(largest == 0)}: there is nothing to solve")
        wrong = ~((eta > 0) & (eta * largest.square() < 2))
        if bool(wrong.any()):
            row = _first(wrong)
            raise InputError(
                f"eta must be above 0 and below 2 / |K|^2, which is {2 / float(largest[row]) ** 2:.6g} in row {row}, "
                f"where it is {float(eta[row]):.6g}"
            )

    @property
    def step_size(self) -> Tensor:
        """`eta`, one for each row."""
        assert isinstance(self.eta, Tensor)
        return self.eta

    @cached_property
    def modes(self) -> "Modes":
        """The singular value decomposition of `K`, in which the steps do not mix."""
        left, values, right = torch.linalg.svd(self.K, full_matrices=False)
        live = (values > RANK_TOLERANCE * values[:, :1]) & (values > 0)
        return Modes(left, torch.where(live, values, 0.0), right.mT, live)

    @cached_property
    def rank(self) -> Tensor:
        """`(rows,)` rank of `K`."""
        return self.modes.live.sum(1)

    @cached_property
    def parameter_rank(self) -> Tensor:
        """`(rows,)` rank of `K'U`: in how many directions the parameters move the iterates."""
        return rank_of(self.modes.values[:, :, None] * (self.modes.left.mT @ self.U))

    @property
    def overparametrised(self) -> Tensor:
        """`(rows,)` whether rank(K'U) = rank(K): the parameters move the iterates wherever more steps can move them."""
        return self.parameter_rank == self.rank

    @cached_property
    def contraction(self) -> Tensor:
        """`(rows,)` rho, the largest `|1 - eta h|` over the nonzero eigenvalues `h` of `K'K`: below 1."""
        return torch.where(self.modes.live, (1 - self._scaled).abs(), 0.0).amax(1)

    @property
    def _scaled(self) -> Tensor:
        """`(rows, modes)` eta h of each mode, 0 where `K` is zero."""
        return self.step_size[:, None] * self.modes.values.square()

    def closed_form(self, steps: int) -> tuple[Tensor, Tensor]:
        """`b` of shape `(rows, n)` and `A` of shape `(rows, n, d)` with `z_N = b + A theta` after N = `steps` steps.

        With `G = eta * sum over i < N of (I - eta K'K)^i`: `A = -G K'U` and `b = z0 - G K'(K z0 + c)`.
        """
        check_count("steps", steps, 0)
        covered = one_minus_power(self._scaled, steps)  # the share of its way that each mode has gone
        pull = self.modes.right * torch.where(self.modes.live, covered / self.modes.values, 0.0)[:, None, :]
        start = times(self.K, self.z0) + self.c
        return self.z0 - times(pull, times(self.modes.left.mT, start)), -pull @ (self.modes.left.mT @ self.U)

    def at(self, theta: Tensor, steps: int) -> Tensor:
        """`(rows, n)`, the iterate after so many steps, by the closed form."""
        offset, slope = self.closed_form(steps)
        return offset + times(slope, theta)

    def move(self, theta: Tensor, steps: int, extra: int) -> Tensor:
        """`(rows, n)`: what `extra` steps after `steps` change. A negative number takes steps away.

        It is small where the steps have converged, and no difference of large numbers is taken to find it.
        """
        check_steps(steps, extra, least=0)
        first = min(steps, steps + extra)
        remaining = power(self._scaled, first) * one_minus_power(self._scaled, abs(extra))
        away = self._distance(theta) * torch.where(self.modes.live, remaining, 0.0)
        return times(self.modes.right, away if extra < 0 else -away)

    def _distance(self, theta: Tensor) -> Tensor:
        """`(rows, modes)` coordinates of `z0 - z*(theta)` where `K` is not zero."""
        pushed = times(self.K, self.z0) + times(self.U, theta) + self.c
        return torch.where(self.modes.live, times(self.modes.left.mT, pushed) / self.modes.values, 0.0)

    def distance(self, theta: Tensor) -> Tensor:
        """`(rows,)` how far the start is from the nearest solution, which is where the steps go."""
        return self._distance(theta).norm(dim=1)

    def f(self, z: Tensor, theta: Tensor) -> Tensor:
        """`(rows, n)` what the solution makes zero."""
        return times(self.K.mT, times(self.K, z) + times(self.U, theta) + self.c)

    def iterate(self, theta: Tensor, steps: int) -> Tensor:
        """`(rows, n)`, the iterate by taking the steps one after the other: the way that the closed forms are held
        against.
        """
        check_count("steps", steps, 0)
        if steps == 0:
            return self.z0.clone()

        def step(z: Tensor, context: Any) -> Tensor:
            k, shift, eta = context
            return z - eta[:, None] * times(k.mT, times(k, z) + shift)

        context = (self.K, times(self.U, theta) + self.c, self.step_size)
        with torch.no_grad():
            return solve(step, self.z0, context, method=Picard(), stop=Stop(rtol=0, max_steps=steps)).state

    def in_range(self, vectors: Tensor) -> Tensor:
        """`(rows, n)` vectors projected onto range(K'), where all steps go."""
        basis = self.modes.right * self.modes.live[:, None, :]
        return times(basis, times(basis.mT, vectors))

    def select(self, rows: Tensor) -> "AffineProblem":
        """Some of the rows, by a mask or by their numbers."""
        return AffineProblem(*(part[rows] for part in (self.K, self.U, self.c, self.step_size, self.z0)))

    def __repr__(self) -> str:
        rows, m, n = self.K.shape
        return (
            f"AffineProblem of {rows} rows: K {m}x{n} of rank {span(self.rank)}, U {m}x{self.U.shape[2]}, rank(K'U) "
            f"{span(self.parameter_rank)}, rho {span(self.contraction)}; {int(self.overparametrised.sum())} of "
            f"{rows} overparametrised"
        )


@dataclass(frozen=True, eq=False)
class Modes:
    """`K = left * diag(values) * right'`, row by row, with `k = min(m, n)` modes."""

    left: Tensor
    """`(rows, m, k)`."""
    values: Tensor
    """`(rows, k)`, falling; those that count as zero are zero."""
    right: Tensor
    """`(rows, n, k)`."""
    live: Tensor
    """`(rows, k)` whether the value is above zero."""


def times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Products of `(..., m, n)` matrices and `(..., n)` vectors."""
    return (matrices @ vectors[..., None])[..., 0]


def rank_of(matrices: Tensor) -> Tensor:
    """`(rows,)` ranks of `(rows, m, n)`, by `RANK_TOLERANCE`."""
    values = torch.linalg.svdvals(matrices)
    return ((values > RANK_TOLERANCE * values[:, :1]) & (values > 0)).sum(1)


def power(scaled: Tensor, steps: int) -> Tensor:
    """`(1 - scaled) ** steps`."""
    return (1 - scaled) ** steps


def one_minus_power(scaled: Tensor, steps: int) -> Tensor:
    """`1 - (1 - scaled) ** steps` for `scaled` in [0, 2), without taking a difference of what is nearly equal.

    Example:
        >>> one_minus_power(torch.tensor([1e-20, 0.5, 1.0, 1.5], dtype=torch.float64), 2).tolist()
        [2e-20, 0.75, 1.0, 0.75]
    """
    if steps == 0:
        return torch.zeros_like(scaled)
    log = torch.where(scaled < 1, torch.log1p(-scaled.clamp_max(1.0)), torch.log((scaled - 1).clamp_min(0.0))) * steps
    same_sign = (scaled < 1) if steps % 2 else torch.ones_like(scaled, dtype=torch.bool)
    return torch.where(same_sign, -torch.expm1(log), 1 + torch.exp(log))


def check_float64(name: str, value: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse what is not a finite float64 tensor of that shape on that device.

    Raises:
        InputError: naming what is wrong.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.float64:
        raise InputError(f"{name} must be a float64 tensor, not {getattr(value, 'dtype', type(value).__name__)}")
    if tuple(value.shape) != shape or 0 in shape:
        raise InputError(f"{name} must be of shape {shape} with no empty side, not {tuple(value.shape)}")
    if value.device != device:
        raise InputError(f"{name} is on {value.device}, the rest on {device}")
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"{name} holds values that are not finite")


def check_steps(steps: int, extra: int, *, least: int = 1) -> None:
    """Refuse a number of steps, or of extra ones, that leads below zero; `least` steps are needed at first.

    Raises:
        ValueError: naming the number.
    """
    check_count("steps", steps, least)
    if not is_whole(extra) or steps + extra < 0:
        raise ValueError(f"extra must be a whole number, {-steps} or more after {steps} steps, not {extra!r}")


def _first(rows: Tensor) -> int:
    return int(rows.nonzero()[0, 0])


def span(values: Tensor) -> str:
    """The least and the largest value, in words."""
    low, high = float(values.min()), float(values.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
