"""Krylov methods for `u = J^T u + g`: cycles, with the true residual taken between them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from homeostat.engine.backward.conjugate_gradients import cg, normal_cg
from homeostat.engine.backward.gmres import gmres
from homeostat.engine.backward.linear_system import Products, RowFunction, System
from homeostat.engine.methods import CG, GMRES, NormalCG
from homeostat.engine.norms import out_of_bounds, residuals, row_rms
from homeostat.engine.solution import Obstacle, Status
from homeostat.engine.stop import Stop

# Rounding of what products are computed in: float32 and float64 are below it.
_COARSE = 1e-5
# A cycle that leaves more than this share of the residual will not get anywhere by being repeated.
_NO_PROGRESS = 0.999
# Basis vectors of the first cycle of GMRES, where that is left to it, and of the largest one.
_RESTART, _LARGEST = 20, 160
# A cycle that leaves more than this share of the residual makes the row's next one twice as large.
_SLOW = 0.1
# A relative residual of this many units in the last place can be rounding alone.
_FLOOR = 16


class Solved(NamedTuple):
    """`u` and how each row ended, `(rows,)`."""

    leaves: list[Tensor]
    steps: Tensor
    residual: Tensor
    status: Tensor
    obstacle: Tensor


def solve_by_cycles(
    products: Products,
    batch: Tensor,
    source: Sequence[Tensor],
    start: Sequence[Tensor],
    method: CG | GMRES | NormalCG,
    stop: Stop,
    unit: float,
    precondition: RowFunction | None = None,
) -> Solved:
    """Solve `u = J^T u + g` per row: cycles of a Krylov method, with the true residual taken between them.

    Args:
        products: Jacobian products.
        batch: `(rows,)` int64, which rows the products are asked for.
        source: `g`, one `(rows, ...)` per leaf, in float32 or float64, finite.
        start: where `u` begins, as `source`.
        method: `GMRES` (a step is a product; true residuals count), `NormalCG` (a step is a product of each kind) or
            `CG` (a step is an iteration; true residuals do not count).
        stop: when a row stops.
        unit: one unit in the last place of what products are computed in.
        precondition: what is near the inverse of `I - J^T`; `GMRES` alone uses it.

    Returns:
        A row whose residual a full cycle could not lower, or whose system is not one for the method, is STALLED; one
        whose products are not finite is DIVERGED. Each has its solution with the lowest residual, or without a
        tolerance its last.
    """
    device, count = source[0].device, len(source[0])
    assert isinstance(stop.max_steps, int)
    present, best = [u.clone() for u in start], [u.clone() for u in start]
    measuring = 0 if isinstance(method, CG) else 1  # steps that a true residual counts for
    steps = torch.zeros(count, dtype=torch.int64, device=device)
    obstacle = torch.zeros(count, dtype=torch.int8, device=device)
    status = torch.full((count,), Status.MAX_STEPS, dtype=torch.int8, device=device)
    wide = torch.float64 if any(g.dtype == torch.float64 for g in source) else torch.float32
    residual = torch.full((count,), float("nan"), dtype=wide, device=device)
    former, lowest = (torch.full((count,), float("inf"), dtype=wide, device=device) for _ in range(2))
    cycle = _CycleLengths(method, steps, sum(g[0].numel() for g in source) if count else 0)
    rows = torch.arange(count, device=device) if stop.max_steps else torch.zeros_like(steps[:0])

    cycles = 0
    while len(rows):
        u, g = [x[rows] for x in present], [x[rows] for x in source]
        after = [p + s for p, s in zip(products.pull(batch[rows], u), g, strict=True)]
        changes, sizes, relative = residuals(u, after)
        relative = relative.to(wide)
        steps[rows] += measuring
        # Not by the relative residual: `J^T u + g` may be 0 where u is not, a point on the way like any other.
        diverged = out_of_bounds([*after, *changes], [*sizes, *changes])
        met = torch.ones_like(diverged)
        for change, size in zip(changes, sizes, strict=True):
            met &= change <= stop.atol + stop.rtol * size
        size, given, length = (_together(values, wide) for values in (changes, map(row_rms, g), map(row_rms, u)))
        # Where `I - J` is 0 but for rounding a solution can only grow until what is left looks small beside it. In half
        # precision that cannot be told from a solution that is large.
        lost = (size >= 0.99 * given) & (unit * length >= 0.5 * given) & (given > 0) & (unit < _COARSE)
        met &= ~lost
        # A small leaf may have got nearer while that of the largest one is rounding: its share tells.
        stuck = (size > _NO_PROGRESS * former[rows]) & ~(relative <= _NO_PROGRESS * lowest[rows])
        stuck = cycle.review(rows, stuck, size > _SLOW * former[rows], relative <= _FLOOR * unit)
        stuck = stuck | lost
        better = ~diverged & ~(relative > lowest[rows]) & ~lost if stop.tests else ~diverged
        former[rows] = size
        lowest[rows] = torch.where(better, relative, lowest[rows])
        residual[rows] = torch.where(better | diverged, relative, lowest[rows])
        for old, new in zip(best, u, strict=True):
            old[rows[better]] = new[better]
        spent = steps[rows] + 1 + measuring > stop.max_steps  # no room for a step and the true residual after it
        if isinstance(method, CG):  # what it has met it would meet again
            stopped = obstacle[rows] != Obstacle.NONE
            stuck, spent = stuck | stopped, spent & ~stopped
            if not stop.tests and cycles:  # it ended early because nothing was left but rounding
                stuck, spent = stopped, ~stopped
        cycles += 1
        kinds = torch.where(stuck & ~spent, Status.STALLED, Status.MAX_STEPS)
        kinds = torch.where(diverged, Status.DIVERGED, torch.where(met, Status.CONVERGED, kinds))
        status[rows] = kinds.to(torch.int8)
        obstacle[rows[lost]] = Obstacle.SINGULAR
        stay = (~(diverged | met | stuck | spent)).nonzero().squeeze(1)
        if not len(stay):
            break
        rows = rows if len(stay) == len(rows) else rows[stay]
        u, g, after, sizes = ([x[stay] for x in xs] for xs in (u, g, after, sizes))
        system = System(
            products, batch[rows], after, sizes, stop, alike=isinstance(method, CG), precondition=precondition
        )
        x = system.join(u)
        r = system.join(after) - x
        left = stop.max_steps - steps[rows] - measuring
        match method:
            case GMRES():
                found = gmres(system, x, r, cycle.limit(rows, left))
            case CG():
                found = cg(system, x, r, system.join(g), left, unit)
            case NormalCG():
                found = normal_cg(system, x, r, left, unit)
        for old, new in zip(present, system.split(found.x), strict=True):
            old[rows] = new
        steps[rows] += found.steps
        cycle.learn(rows, found.steps)
        # With a preconditioner a direction may be mapped to nothing by that.
        obstacle[rows] = found.obstacle if precondition is None else 0
        status[rows[found.broken]] = Status.DIVERGED
        rows = rows[~found.broken]
    return Solved(best, steps, residual, status, torch.where(status == Status.STALLED, obstacle, 0))


def _together(values: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """`(rows,)`, the size of all leaves of a row together, from their root mean squares."""
    return torch.stack([x.to(dtype) for x in values]).square().sum(0).sqrt()


class _CycleLengths:
    """How long each row's next cycle of `GMRES` may be: longer where a whole cycle has not got far."""

    def __init__(self, method: CG | GMRES | NormalCG, like: Tensor, unknowns: int) -> None:
        fixed = method.restart if isinstance(method, GMRES) else 1
        self._length = torch.full_like(like, fixed or _RESTART)
        self._whole = torch.zeros_like(like, dtype=torch.bool)  # the last cycle ended by its length
        self._largest = 0 if fixed else min(_LARGEST, unknowns)

    def limit(self, rows: Tensor, left: Tensor) -> Tensor:
        """Steps of the next cycle."""
        return torch.minimum(self._length[rows], left)

    def learn(self, rows: Tensor, steps: Tensor) -> None:
        """A cycle has taken so many steps."""
        self._whole[rows] = steps >= self._length[rows]

    def review(self, rows: Tensor, stuck: Tensor, slow: Tensor, rounding: Tensor) -> Tensor:
        """Lengthen cycles where the last was slow; returns the stuck rows that this cannot help.

        Args:
            rows: which rows are asked for.
            stuck: the last cycle got nowhere.
            slow: it did not get far.
            rounding: what is left may be rounding alone.
        """
        longer = self._whole[rows] & slow & ~rounding & (self._length[rows] < self._largest)
        self._length[rows] = torch.where(longer, 2 * self._length[rows], self._length[rows])
        return stuck & ~longer
