"""Meta-learning with quadratic tasks: more inner steps help as soon as there are two distinct tasks (T6)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from homeostat.bilevel.affine.inequality import Inequality
from homeostat.bilevel.affine.minimise import Change, refuse_rows
from homeostat.bilevel.affine.problem import (
    RANK_TOLERANCE,
    check_float64,
    check_steps,
    one_minus_power,
    power,
    span,
    times,
)
from homeostat.engine import Picard, Stop, solve
from homeostat.engine.stop import check_count
from homeostat.errors import InputError


@dataclass(frozen=True, eq=False, repr=False)
class QuadraticTasks:
    """Rows of meta-learning problems with quadratic tasks.

    Task i minimises `(z - a_i)' H_i (z - a_i) / 2 + regulariser |z - theta|^2 / 2` by gradient descent from `theta`;
    the outer loss is the mean over tasks of `|z_i - a_i|^2 / 2`.

    After N steps `z_i = (I - S) a_i + S theta` with `S = regulariser (H_i + regulariser)^-1 (I - E^N) + E^N` and
    `E = I - eta (H_i + regulariser)`: each direction keeps the share S of its way to theta.

    Args:
        hessians: `(rows, tasks, n, n)`, symmetric, without a negative eigenvalue.
        centres: `(rows, tasks, n)`, the solutions `a_i`.
        regulariser: `(rows,)` or one number, 0 or more.
        eta: `(rows,)` step sizes or one number, above 0 and below 2 / (largest eigenvalue + regulariser).

    Raises:
        InputError: shapes that do not fit, values out of range or not finite, or steps that would not converge.

    Source:
        The setting of implicit MAML in arXiv 2305.15042; the closed form is ours.

    Example:
        >>> tasks = QuadraticTasks(torch.ones(1, 2, 1, 1).double(), torch.tensor([[[0.0], [2.0]]]).double(), 1.0, 0.25)
        >>> tasks.change(steps=2, extra=2)
        D(N=2, dN=2) of 1 rows: least -0.0542, median -0.0542, largest -0.0542; 1 below 0
    """

    hessians: Tensor
    centres: Tensor
    regulariser: Tensor | float
    eta: Tensor | float

    def __post_init__(self) -> None:
        if self.centres.ndim != 3:
            raise InputError(f"centres must be (rows, tasks, n), not of shape {tuple(self.centres.shape)}")
        rows, tasks, n = self.centres.shape
        check_float64("centres", self.centres, (rows, tasks, n), self.centres.device)
        check_float64("hessians", self.hessians, (rows, tasks, n, n), self.centres.device)
        for name in ("regulariser", "eta"):
            given = torch.as_tensor(getattr(self, name), dtype=torch.float64, device=self.centres.device)
            object.__setattr__(self, name, given.expand(rows))
        largest = self.hessians.abs().amax((1, 2, 3))
        crooked = (self.hessians - self.hessians.mT).abs().amax((1, 2, 3)) > 1e-12 * largest
        refuse_rows(crooked, "hessians are not symmetric", InputError)
        lowest, highest = self._curvatures.amin((1, 2)), self._curvatures.amax((1, 2))
        refuse_rows(lowest < -1e-12 * largest, "hessians have a negative eigenvalue", InputError)
        refuse_rows(~(self.lam >= 0), "the regulariser is not 0 or more", InputError)
        refuse_rows(~(lowest.clamp_min(0.0) + self.lam > 0), "H + regulariser is singular", InputError)
        wrong = ~((self.step_size > 0) & (self.step_size * (highest + self.lam) < 2))
        refuse_rows(wrong, "eta is not above 0 and below 2 / (largest eigenvalue + regulariser)", InputError)

    @property
    def lam(self) -> Tensor:
        """`(rows,)` regularisers."""
        assert isinstance(self.regulariser, Tensor)
        return self.regulariser

    @property
    def step_size(self) -> Tensor:
        """`(rows,)` step sizes."""
        assert isinstance(self.eta, Tensor)
        return self.eta

    @cached_property
    def _modes(self) -> tuple[Tensor, Tensor]:
        return tuple(torch.linalg.eigh(self.hessians))  # type: ignore[return-value]

    @property
    def _curvatures(self) -> Tensor:
        """`(rows, tasks, n)` eigenvalues, rising."""
        return self._modes[0]

    def _kept(self, steps: int) -> Tensor:
        """`(rows, tasks, n)` eigenvalues of S: the share of the way from centre to theta that is left."""
        stiff = self._stiffness()
        done = one_minus_power(self._scaled(stiff), steps)
        return 1 - self._curvatures.clamp_min(0.0) / stiff * done

    def _stiffness(self) -> Tensor:
        return self._curvatures.clamp_min(0.0) + self.lam[:, None, None]

    def _scaled(self, stiff: Tensor) -> Tensor:
        return self.step_size[:, None, None] * stiff

    def _lost(self, steps: int, extra: int) -> Tensor:
        """`(rows, tasks, n)`: eigenvalues of S_N - S_{N + dN}, without taking their difference."""
        stiff = self._stiffness()
        scaled = self._scaled(stiff)
        passed = power(scaled, min(steps, steps + extra)) * one_minus_power(scaled, abs(extra))
        return self._curvatures.clamp_min(0.0) / stiff * (passed if extra >= 0 else -passed)

    def shrinkage(self, steps: int) -> Tensor:
        """`(rows, tasks, n, n)`, S after so many steps."""
        check_count("steps", steps, 0)
        vectors = self._modes[1]
        return vectors @ (self._kept(steps)[..., None] * vectors.mT)

    def adapted(self, theta: Tensor, steps: int) -> Tensor:
        """`(rows, tasks, n)`: where each task is after so many steps from `theta` of shape `(rows, n)`."""
        return self.centres + times(self.shrinkage(steps), theta[:, None] - self.centres)

    def iterate(self, theta: Tensor, steps: int) -> Tensor:
        """The same by taking the steps one after the other."""
        rows, tasks, n = self.centres.shape
        start = theta[:, None].expand(rows, tasks, n).reshape(-1, n)

        def step(z: Tensor, context: Any) -> Tensor:
            hessian, centre, origin, lam, eta = context
            return z - eta[:, None] * (times(hessian, z - centre) + lam[:, None] * (z - origin))

        wide = [value.repeat_interleave(tasks) for value in (self.lam, self.step_size)]
        context = (self.hessians.reshape(-1, n, n), self.centres.reshape(-1, n), start, *wide)
        with torch.no_grad():
            stop = Stop(rtol=0, max_steps=steps)
            return solve(step, start, context, method=Picard(), stop=stop).state.reshape(rows, tasks, n)

    def loss(self, theta: Tensor, steps: int) -> Tensor:
        """`(rows,)`, the outer loss."""
        return 0.5 * (self.adapted(theta, steps) - self.centres).square().sum(2).mean(1)

    def minimiser(self, steps: int) -> Tensor:
        """`(rows, n)`: the theta of least outer loss after so many steps; of least norm where there are several."""
        check_count("steps", steps, 0)
        kept = self.shrinkage(steps)
        rows, tasks, n = self.centres.shape
        stacked = kept.reshape(rows, tasks * n, n)
        return times(torch.linalg.pinv(stacked, rtol=RANK_TOLERANCE), times(kept, self.centres).reshape(rows, -1))

    def change(self, steps: int, extra: int, *, theta: Tensor | None = None) -> Change:
        """D(N, dN) at the outer minimiser of N steps unless told; in the whole range of `eta`.

        Raises:
            ValueError: `steps` below 1, or `extra` below `-steps`.
        """
        check_steps(steps, extra)
        theta = self.minimiser(steps) if theta is None else theta
        away = times(self._modes[1].mT, theta[:, None] - self.centres)
        kept, lost = self._kept(steps), self._lost(steps, extra)
        gained = 0.5 * (lost * (2 * kept - lost) * away.square()).sum(2).mean(1)
        return Change(steps, extra, self.loss(theta, steps), self.loss(theta, steps + extra), -gained)

    @property
    def spread(self) -> Tensor:
        """`(rows,)`, the mean of |a_i - mean of a|^2 over tasks: 0 when all are the same."""
        return (self.centres - self.centres.mean(1, keepdim=True)).square().sum(2).mean(1)

    def __repr__(self) -> str:
        rows, tasks, n = self.centres.shape
        return (
            f"QuadraticTasks of {rows} rows: {tasks} tasks of size {n}, eigenvalues {span(self._curvatures)}, "
            f"regulariser {span(self.lam)}"
        )


def more_steps_help(tasks: QuadraticTasks, steps: int, extra: int) -> Inequality:
    """T6: -D(N, dN) >= g / 2 * spread for dN >= 1 and 0 < eta < 1 / (largest eigenvalue + regulariser).

    g > 0 is the least of s_N^2 - s_{N + dN}^2 over the eigenvalues s of all S_i. In that range every s lies in (0, 1)
    and falls with N. So D < 0 for two or more distinct tasks, and D = 0 for one, whose centre is the minimiser. For
    H_i = h I it is an equality. No common H is needed, and D <= 0 holds at every theta, not at the minimiser alone.

    Outside of that range it can fail: with H = 2, regulariser 1, eta 1/2 the first step alone solves every task from
    any theta, and the second spoils it.

    Raises:
        InputError: `eta` is not below 1 / (largest eigenvalue + regulariser), or a Hessian is singular: its flat
            directions stay at theta, and nothing strict can be said.
        ValueError: `steps` below 1 or `extra` below 1.

    Source:
        After Ramzi et al., arXiv 2305.15042; the statement, its constant and its range are ours.

    Example:
        >>> tasks = draw_tasks(50, tasks=3, n=2, seed=0)
        >>> found = more_steps_help(tasks, steps=4, extra=1)
        >>> bool(found.holds.all()), bool((found.right > 0).all())
        (True, True)
    """
    check_steps(steps, extra)
    check_count("extra", extra)
    lowest, highest = tasks._curvatures.amin((1, 2)), tasks._curvatures.amax((1, 2))
    refuse_rows(lowest <= 1e-12 * highest, "T6 needs Hessians without a zero eigenvalue, which fails", InputError)
    beyond = tasks.step_size * (highest + tasks.lam) >= 1
    refuse_rows(beyond, "T6 needs eta below 1 / (largest eigenvalue + regulariser), which fails", InputError)
    found = tasks.change(steps, extra)
    lost = tasks._lost(steps, extra)
    fallen = (lost * (2 * tasks._kept(steps) - lost)).amin((1, 2))
    spread = tasks.spread
    scale = found.before + found.after + tasks.centres.square().sum(2).mean(1) * fallen
    return Inequality("T6", "-D >= g / 2 * spread", -found.value, 0.5 * fallen * spread, scale)


def draw_tasks(
    rows: int,
    tasks: int,
    n: int,
    *,
    common: bool = False,
    step: tuple[float, float] = (0.1, 0.95),
    seed: int,
    device: torch.device | str = "cpu",
) -> QuadraticTasks:
    """Tasks with normal centres, Hessians `B B' / n + 0.1 I` with normal `B`, and regularisers from 0.1 to 3.

    Args:
        common: one Hessian `h I` for all tasks of a row, with `h` from 0.1 to 3.
        step: ends of the uniform distribution of `eta` times (largest eigenvalue + regulariser), within 0 to 2.

    Example:
        >>> draw_tasks(10, tasks=2, n=3, common=True, seed=0).hessians.shape
        torch.Size([10, 2, 3, 3])
    """
    for name, count in (("rows", rows), ("tasks", tasks), ("n", n)):
        check_count(name, count)
    if not 0 < step[0] <= step[1] < 2:
        raise ValueError(f"step must be two numbers above 0 and below 2, the smaller one first, not {step!r}")
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, generator=generator, dtype=torch.float64)

    centres = torch.randn(rows, tasks, n, generator=generator, dtype=torch.float64)
    factors = torch.randn(rows, tasks, n, n, generator=generator, dtype=torch.float64)
    eye = torch.eye(n, dtype=torch.float64)
    h = uniform(0.1, 3.0)[:, None, None, None] * eye
    hessians = h.expand(rows, tasks, n, n) if common else factors @ factors.mT / n + 0.1 * eye
    regulariser = uniform(0.1, 3.0)
    largest = torch.linalg.eigvalsh(hessians).amax((1, 2))
    eta = uniform(*step) / (largest + regulariser)
    return QuadraticTasks(*(value.to(device) for value in (hessians, centres, regulariser, eta)))
