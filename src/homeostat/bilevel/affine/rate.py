"""How fast D vanishes as the training solver converges (T3)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.bilevel.affine.inequalities import check_squared, residual
from homeostat.bilevel.affine.inequality import Inequality
from homeostat.bilevel.affine.losses import Squared
from homeostat.bilevel.affine.minimise import change_of_loss, outer_minimiser, refuse_rows
from homeostat.bilevel.affine.problem import AffineProblem, check_steps
from homeostat.errors import InputError


def vanishing(problem: AffineProblem, loss: Squared, steps: int, extra: int) -> Inequality:
    """T3: |D(N, dN)| <= |P r| kappa rho^M + (kappa rho^M)^2 / 2, with M = min(N, N + dN) and the squared loss.

    r is what is left over at the minimum (see `largest_gain`), kappa = (1 + rho^|dN|) |z0 - z*(theta_N)|, since a mode
    that shrinks by x a step moves by x^M (1 - x^|dN|) of its distance. The rank of A_N is the same for all N, so that
    theta_N converges and kappa stays bounded: |D| = O(rho^N). Where the rank condition of T1 holds P r is 0, and
    |D| = O(rho^2N).

    Raises:
        InputError: another loss than `Squared`.

    Source:
        Ours, after Ramzi et al., arXiv 2305.15042. The constant and the squared rate are ours.

    Example:
        >>> from homeostat.bilevel.affine import draw_affine
        >>> problem, target = draw_affine(50, n=5, d=2, seed=0)
        >>> vanishing(problem, Squared(target), steps=10, extra=10).holds.all()
        tensor(True)
    """
    check_squared(loss)
    check_steps(steps, extra)
    theta = outer_minimiser(problem, loss, steps)
    found = change_of_loss(problem, loss, steps, extra, theta=theta)
    left_over = problem.in_range(residual(problem, loss, steps)).norm(dim=1)
    left_over = torch.where(problem.overparametrised, 0.0, left_over)  # exactly, as T1 has it
    first = min(steps, steps + extra)
    reach = (1 + problem.contraction ** abs(extra)) * problem.distance(theta) * problem.contraction**first
    scale = found.before + found.after + loss(problem.closed_form(steps)[0])
    return Inequality("T3", "bound >= |D|", left_over * reach + 0.5 * reach.square(), found.value.abs(), scale)


@dataclass(frozen=True, eq=False, repr=False)
class Rate:
    """The slope of log |D| over N."""

    slope: Tensor
    """`(rows,)`, fitted, a step."""
    expected: Tensor
    """`(rows,)`: log rho, or twice that where the rank condition of T1 holds."""

    @property
    def ratio(self) -> Tensor:
        """`(rows,)`, fitted by expected: 1 when the rate is as expected, more when D vanishes faster."""
        return self.slope / self.expected

    def __repr__(self) -> str:
        low, middle, high = (float(self.ratio.quantile(q)) for q in (0.05, 0.5, 0.95))
        return (
            f"slope of log |D| by its expected one in {len(self.slope)} rows: median {middle:.3f}, 5 to 95 % of rows "
            f"{low:.3f} to {high:.3f}"
        )


def fitted_rate(
    problem: AffineProblem, loss: Squared, extra: int, *, window: tuple[float, float] = (1e-3, 1e-5)
) -> Rate:
    """Fit the slope of log |D(N, dN)| over the N at which rho^N lies within `window`, spaced by a tenth.

    It is that of T3 as far as one mode alone is slowest and D does not happen to be orthogonal to it.

    Raises:
        InputError: another loss than `Squared`; a rho too close to 0 to leave three different N within the window.

    Example:
        >>> from homeostat.bilevel.affine import draw_affine
        >>> problem, target = draw_affine(200, n=4, d=2, step=(0.1, 1.0), spectrum=0.6, seed=0)
        >>> 0.95 < fitted_rate(problem, Squared(target), extra=5).ratio.median() < 1.05
        tensor(True)
    """
    check_squared(loss)
    if not 1 > window[0] > window[1] >= 1e-12:
        raise InputError(f"the window must fall within 1 to 1e-12, not {window}")
    log = problem.contraction.log()
    first, last = (math.log(end) / log for end in window)
    sums = torch.zeros(5, len(log), dtype=log.dtype, device=log.device)
    for n in _tenths(float(first.min()), float(last.max())):
        inside = (first <= n) & (n <= last)
        if not bool(inside.any()):
            continue
        found = change_of_loss(problem.select(inside), Squared(loss.target[inside]), n, extra).value.abs().log()
        at = n - (0.5 * (first + last))[inside]  # about the middle, so that sums of squares keep their digits
        sums[:, inside] += torch.stack([torch.ones_like(at), at, found, at * at, at * found])
    count, x, y, xx, xy = sums
    refuse_rows(count < 3, "fewer than three N lie within the window", InputError)
    return Rate((count * xy - x * y) / (count * xx - x * x), log * torch.where(problem.overparametrised, 2.0, 1.0))


def _tenths(first: float, last: float) -> list[int]:
    """Whole numbers from `first` to `last`, each about a tenth larger than the one before it."""
    found = [max(1, math.ceil(first))]
    while found[-1] < last:
        found.append(max(found[-1] + 1, round(1.1 * found[-1])))
    return found
