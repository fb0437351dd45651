"""When more steps cannot help, and by how much at most (T1, T2, T4), and which sign they have at first (T5).

Proofs, for steps that converge (0 < eta < 2/|K|^2), N >= 1 and N + dN >= 0. On range(K') the matrix G_N is positive
definite, so that range(A_N) = G_N range(K'U), which has the same dimension for every N, as has the kernel of A_N.
z_{N + dN}(theta) - z_N(theta) lies in range(K') for every theta.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.bilevel.affine.inequality import Inequality
from homeostat.bilevel.affine.losses import OuterLoss, Squared
from homeostat.bilevel.affine.minimise import Change, change_of_loss, outer_minimiser, refuse_rows
from homeostat.bilevel.affine.problem import RANK_TOLERANCE, AffineProblem, check_steps, times
from homeostat.engine.stop import check_count
from homeostat.errors import InputError


def more_steps_cannot_help(
    problem: AffineProblem, loss: OuterLoss, steps: int, extra: int, *, theta: Tensor | None = None
) -> Inequality:
    """T1: where rank(K'U) = rank(K), D(N, dN) >= 0 for every dN >= -N and any outer loss.

    `theta` is the outer minimiser, which is computed when it is None.

    There range(A_N) = range(K'), so the parameters reach every point that more steps could lead to. It needs a global
    minimiser; one that is `gap` above the minimum has D >= -gap. With N = 0 the parameters move nothing, and it fails.

    Raises:
        InputError: the rank condition does not hold in some row.

    Source:
        After Ramzi et al., arXiv 2305.15042; the rank condition in this form, and that N >= 1 is needed, are ours.

    Example:
        >>> from homeostat.bilevel.affine import Huber, draw_affine
        >>> problem, target = draw_affine(50, n=5, d=4, rank=3, seed=0)
        >>> more_steps_cannot_help(problem, Huber(target), steps=4, extra=-2).holds.all()
        tensor(True)
    """
    check_steps(steps, extra)
    refuse_rows(~problem.overparametrised, "T1 needs rank(K'U) = rank(K), which fails", InputError)
    found = change_of_loss(problem, loss, steps, extra, theta=theta)
    return Inequality("T1", "D >= 0", found.value, torch.zeros_like(found.value), _scale(problem, loss, found))


def largest_gain(problem: AffineProblem, loss: Squared, steps: int, extra: int) -> Inequality:
    """T2: D(N, dN) >= -|P (I - Pi_N)(b_N - w)|^2 / 2 for the squared loss with target w, whatever the ranks.

    P projects onto range(K') and Pi_N onto range(A_N). What is left at the minimum is r = (I - Pi_N)(b_N - w), and
    D = <r, v> + |v|^2 / 2 for the move v, which lies in range(K') and is best at -P r. The bound does not depend on dN.
    It is sharp: `problem_that_gains_most` reaches it.

    Raises:
        InputError: another loss than `Squared`.

    Source:
        After Ramzi et al., arXiv 2305.15042; this form, and that it is sharp, are ours.

    Example:
        >>> from homeostat.bilevel.affine import draw_affine
        >>> problem, target = draw_affine(50, n=5, d=2, seed=0)
        >>> found = largest_gain(problem, Squared(target), steps=4, extra=4)
        >>> bool(found.holds.all()), bool(tightness(found).max() <= 1)
        (True, True)
    """
    check_squared(loss)
    found = change_of_loss(problem, loss, steps, extra)
    left_over = problem.in_range(residual(problem, loss, steps))
    return Inequality(
        "T2", "D >= -|P(I - Pi_N)(b_N - w)|^2 / 2", found.value, -0.5 * left_over.square().sum(1),
        _scale(problem, loss, found),
    )  # fmt: skip


def residual(problem: AffineProblem, loss: Squared, steps: int) -> Tensor:
    """`(rows, n)`: (I - Pi_N)(b_N - w), by a basis of range(A_N), not by the minimiser."""
    offset, slope = problem.closed_form(steps)
    basis, values, _ = torch.linalg.svd(slope, full_matrices=False)
    basis = basis * (values > RANK_TOLERANCE * values[:, :1])[:, None, :]
    apart = offset - loss.target
    return apart - times(basis, times(basis.mT, apart))


def tightness(bound: Inequality) -> Tensor:
    """`(rows,)`: the share of the largest possible gain that is gained, 1 where T2 is an equality.

    It is 0 where more steps do not help, and not a number where nothing can be gained.
    """
    possible = torch.where(-bound.right > bound.tolerance * bound.scale, -bound.right, torch.nan)
    return (-bound.left).clamp_min(0.0) / possible


def problem_that_gains_most(
    problem: AffineProblem, steps: int, extra: int, *, seed: int
) -> tuple[AffineProblem, Squared]:
    """A problem with the same K, U, eta and z0, and a target, for which T2 is an equality at (N, dN).

    Draw theta and r orthogonal to range(A_N). Since G_{N + dN} - G_N is invertible on range(K') unless a mode is solved
    in one step, c can be chosen so that the move at theta is -P r, and then the target so that r is left over.

    Raises:
        InputError: the extra steps move a mode by less than a millionth of its distance: it has converged, or none
            are taken.
    """
    check_steps(steps, extra)
    modes = problem.modes
    moved_by = _moves_per_distance(problem, steps, extra)
    refuse_rows((moved_by.abs() < 1e-6).any(1), "the extra steps no longer move a mode", InputError)
    generator = torch.Generator().manual_seed(seed)
    rows, _, d = problem.U.shape

    def normal(size: int) -> Tensor:
        return torch.randn(rows, size, generator=generator, dtype=torch.float64).to(problem.K.device)

    theta, target = normal(d), normal(problem.z0.shape[1])
    apart = residual(problem, Squared(target), steps)  # orthogonal to range(A_N), which does not depend on c
    wanted = -times(modes.right.mT, apart) / moved_by
    pushed = modes.values * torch.where(modes.live, wanted, 0.0)
    c = times(modes.left, pushed) - times(problem.K, problem.z0) - times(problem.U, theta)
    chosen = AffineProblem(problem.K, problem.U, c, problem.step_size, problem.z0)
    return chosen, Squared(chosen.at(theta, steps) - apart)


def _moves_per_distance(problem: AffineProblem, steps: int, extra: int) -> Tensor:
    """`(rows, modes)`: how far each mode moves when it begins at distance 1 from its solution; 1 where K is zero."""
    left = 1 - problem.step_size[:, None] * problem.modes.values.square()
    return torch.where(problem.modes.live, left ** (steps + extra) - left**steps, 1.0)


def no_regret(before: Tensor, after: Tensor, least: Tensor) -> Inequality:
    """T4: D >= -(loss after N steps - least possible loss), for any model, solver and loss.

    So a training loss without regret cannot be lowered by more steps. All are `(rows,)`; `least` is a lower bound of
    the loss over everything that the model could answer.

    Raises:
        InputError: `least` is above a loss, so that it is no lower bound.

    Example:
        >>> no_regret(torch.tensor([0.0, 0.5]), torch.tensor([0.1, 0.2]), torch.zeros(2)).slack
        tensor([0.1000, 0.2000])
    """
    scale = before.abs() + after.abs() + least.abs()
    too_high = torch.minimum(before, after) < least - 1e-9 * scale
    refuse_rows(too_high, "`least` is above the loss, so that it is not the least one,", InputError)
    return Inequality("T4", "D >= -regret", after - before, least - before, torch.where(scale > 0, scale, 1.0))


@dataclass(frozen=True, eq=False, repr=False)
class FirstOrder:
    """T5: what the first step's direction says of D."""

    change: Change
    predicted: Tensor
    """`(rows,)`: -eta dN <gradient of the loss, f> at z_N."""
    remainder: Tensor
    """`(rows,)`: how far D can be from it."""
    bound: Inequality

    @property
    def agrees(self) -> Tensor:
        """`(rows,)` whether both have one sign."""
        return torch.sign(self.predicted) == torch.sign(self.change.value)

    @property
    def certain(self) -> Tensor:
        """`(rows,)` where the remainder, and rounding, are too small to turn the sign."""
        return self.predicted.abs() > self.remainder + self.bound.tolerance * self.bound.scale

    def __repr__(self) -> str:
        return (
            f"T5: signs agree in {int(self.agrees.sum())} of {len(self.predicted)} rows; {int(self.certain.sum())} are "
            f"certain beforehand\n{self.change!r}"
        )


def first_order(
    problem: AffineProblem, loss: OuterLoss, steps: int, extra: int, *, theta: Tensor | None = None
) -> FirstOrder:
    """T5: the sign of D(N, dN) is at first that of -<gradient, f(z_N)>, at the outer minimiser unless told.

    |D + eta dN <g, f>| <= |P g| eta^2 |K|^2 dN (dN - 1) / 2 |f| + beta / 2 (eta dN |f|)^2, with g the gradient at z_N
    and beta the smoothness of the loss, since no step is longer than the one before it.

    "At first" means dN small beside N, with eta N kept: halve eta and double N. With N kept, eta -> 0 makes the trained
    parameters grow like 1 / eta, f with them, and signs do not come to agree. Where the rank condition of T1 holds,
    <g, f> is 0 at the minimiser and the sign says nothing; D is of second order there, and not negative.

    Raises:
        ValueError: `extra` below 1. Going back, the expansion is not bounded in this way, and its sign turns.

    Source:
        Ours, after Ramzi et al., arXiv 2305.15042.

    Example:
        >>> from homeostat.bilevel.affine import draw_affine
        >>> problem, target = draw_affine(50, n=5, d=2, step=(0.001, 0.001), seed=0)
        >>> found = first_order(problem, Squared(target), steps=2000, extra=1)
        >>> bool(found.bound.holds.all()), bool(found.agrees[found.certain].all())
        (True, True)
    """
    check_steps(steps, extra)
    check_count("extra", extra)
    theta = outer_minimiser(problem, loss, steps) if theta is None else theta
    found = change_of_loss(problem, loss, steps, extra, theta=theta)
    z = problem.at(theta, steps)
    gradient, f = problem.in_range(loss.gradient(z)), problem.f(z, theta)
    eta, length = problem.step_size, f.norm(dim=1)
    curvature = eta * problem.modes.values[:, 0].square() * (extra * (extra - 1) / 2)
    remainder = gradient.norm(dim=1) * eta * curvature * length + loss.smoothness / 2 * (eta * extra * length).square()
    predicted = -eta * extra * (gradient * f).sum(1)
    bound = Inequality(
        "T5", "remainder >= |D - predicted|", remainder, (found.value - predicted).abs(), _scale(problem, loss, found)
    )
    return FirstOrder(found, predicted, remainder, bound)


def check_squared(loss: OuterLoss) -> None:
    """Refuse another loss than the squared one.

    Raises:
        InputError: it is another.
    """
    if not isinstance(loss, Squared):
        raise InputError(f"this statement is about the squared loss, not {type(loss).__name__}")


def _scale(problem: AffineProblem, loss: OuterLoss, found: Change) -> Tensor:
    """`(rows,)`: the losses that D is the difference of, and the one that the parameters began from."""
    untrained = loss(problem.closed_form(found.steps)[0])
    return found.before.abs() + found.after.abs() + untrained.abs()
