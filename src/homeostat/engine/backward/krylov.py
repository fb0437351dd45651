"""Krylov methods for `u = J^T u + g`: cycles, with the true residual taken between them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from homeostat.engine.backward.conjugate_gradients import cg, normal_cg
from homeostat.engine.backward.gmres import gmres
from homeostat.engine.backward.linear_system import Products, System
from homeostat.engine.methods import CG, GMRES, NormalCG
from homeostat.engine.norms import finite_rows, out_of_bounds, residuals
from homeostat.engine.solution import Obstacle, Status
from homeostat.engine.stop import Stop

# A cycle that leaves more than this share of the residual will not get anywhere by being repeated.
_NO_PROGRESS = 0.999


class Solved(NamedTuple):
    """`u` and how each row ended, `(rows,)`."""

    leaves: list[Tensor]
    steps: Tensor
    residual: Tensor
    status: Tensor
    obstacle: Tensor


def solve_by_cycles(
    products: Products, batch: Tensor, source: Sequence[Tensor], method: CG | GMRES | NormalCG, stop: Stop, unit: float
) -> Solved:
    """Solve `u = J^T u + g` per row: cycles of a Krylov method, with the true residual taken between them.

    Args:
        products: Jacobian products.
        batch: `(rows,)` int64, which rows the products are asked for.
        source: `g`, one `(rows, ...)` per leaf, in float32 or float64.
        method: `GMRES` (a step is a product; true residuals count), `NormalCG` (a step is a product of each kind) or
            `CG` (a step is an iteration; true residuals do not count).
        stop: when a row stops.
        unit: one unit in the last place of what products are computed in.

    Returns:
        A row whose residual a full cycle could not lower, or whose system is not one for the method, is STALLED; one
        whose `g` or whose products are not finite is DIVERGED.
    """
    device, count = source[0].device, len(source[0])
    assert isinstance(stop.max_steps, int)
    solution = [g.clone() for g in source]
    measuring = 0 if isinstance(method, CG) else 1  # steps that a true residual counts for
    steps = torch.zeros(count, dtype=torch.int64, device=device)
    obstacle = torch.zeros(count, dtype=torch.int8, device=device)
    status = torch.full((count,), Status.MAX_STEPS, dtype=torch.int8, device=device)
    wide = torch.float64 if any(g.dtype == torch.float64 for g in source) else torch.float32
    residual = torch.full((count,), float("nan"), dtype=wide, device=device)
    former = torch.full((count,), float("inf"), dtype=wide, device=device)
    finite = torch.stack([finite_rows(g) for g in source]).all(0)
    status[~finite] = Status.DIVERGED
    rows = finite.nonzero().squeeze(1) if stop.max_steps else torch.zeros_like(steps[:0])

    cycles = 0
    while len(rows):
        u, g = [x[rows] for x in solution], [x[rows] for x in source]
        after = [p + s for p, s in zip(products.pull(batch[rows], u), g, strict=True)]
        changes, sizes, relative = residuals(u, after)
        steps[rows] += measuring
        residual[rows] = relative.to(wide)
        # Not by the relative residual: `J^T u + g` may be 0 where u is not, a point on the way like any other.
        diverged = out_of_bounds([*after, *changes], [*sizes, *changes])
        met = torch.ones_like(diverged)
        for change, size in zip(changes, sizes, strict=True):
            met &= change <= stop.atol + stop.rtol * size
        size = torch.stack([c.to(wide) for c in changes]).square().sum(0).sqrt()
        stuck = size > _NO_PROGRESS * former[rows]
        former[rows] = size
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
        stay = (~(diverged | met | stuck | spent)).nonzero().squeeze(1)
        if not len(stay):
            break
        rows = rows if len(stay) == len(rows) else rows[stay]
        u, g, after, sizes = ([x[stay] for x in xs] for xs in (u, g, after, sizes))
        system = System(products, batch[rows], after, sizes, stop, alike=isinstance(method, CG))
        x = system.join(u)
        r = system.join(after) - x
        left = stop.max_steps - steps[rows] - measuring
        match method:
            case GMRES(restart):
                found = gmres(system, x, r, left, restart)
            case CG():
                found = cg(system, x, r, system.join(g), left, unit)
            case NormalCG():
                found = normal_cg(system, x, r, left)
        for old, new in zip(solution, system.split(found.x), strict=True):
            old[rows] = new
        steps[rows] += found.steps
        obstacle[rows] = found.obstacle
        status[rows[found.broken]] = Status.DIVERGED
        rows = rows[~found.broken]
    return Solved(solution, steps, residual, status, torch.where(status == Status.STALLED, obstacle, 0))
