"""Fixed-point methods for `u = J^T u + g`: the engine's own loop, on the adjoint map."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from homeostat.engine.backward.krylov import Solved
from homeostat.engine.backward.linear_system import Products, RowFunction
from homeostat.engine.forward.run import run
from homeostat.engine.forward.watch import Watch
from homeostat.engine.methods import Anderson, Picard
from homeostat.engine.nest import Carry
from homeostat.engine.norms import residuals
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop

# With a preconditioner the loop sees the preconditioned residual. A row that it calls converged and whose own residual
# is not goes on to a tenth of it, so many times at most.
_PASSES = 8


def solve_by_iteration(
    products: Products,
    batch: Tensor,
    source: Sequence[Tensor],
    start: Sequence[Tensor],
    method: Picard | Anderson,
    stop: Stop,
    precondition: RowFunction | None = None,
    *,
    give_up: bool = False,
) -> Solved:
    """Iterate `u <- J^T u + g` per row, or `u <- u + P (J^T u + g - u)` with a preconditioner `P`.

    Args:
        products: Jacobian products.
        batch: `(rows,)` int64, which rows the products are asked for.
        source: `g`, one `(rows, ...)` per leaf, in float32 or float64.
        start: where `u` begins, as `source`.
        method: how it is iterated.
        stop: when a row stops; of the true residual, with a preconditioner too.
        precondition: what is near the inverse of `I - J^T`.
        give_up: let go of rows whose residual hardly falls, with the status MAX_STEPS.

    Returns:
        Without a tolerance the last `J^T u + g`; with one the `u` whose residual was measured and is told. The next
        one, which is at hand too, mostly has a lower residual, but where `J` is not normal it may have a higher one.
    """

    def after(u: Sequence[Tensor], at: Sequence[Tensor]) -> list[Tensor]:
        present, *g = at
        return [p + s for p, s in zip(products.pull(present, u), g, strict=True)]

    count = len(source)

    def step(state: list[Tensor], at: list[Tensor]) -> list[Tensor]:
        u = state[:count]
        new = after(u, at)
        if precondition is not None:
            change = precondition(at[0], [x - old for x, old in zip(new, u, strict=True)])
            new = [old + d for old, d in zip(u, change, strict=True)]
        return [*new, *u]

    problem = Problem.of(step, [*start, *(Carry(u) for u in start)], [batch, *source])
    problem = replace(problem, compared=False, own=True)
    found = run(problem, stop, method, Watch(give_up=give_up))
    obstacle = torch.zeros_like(found.status)
    if precondition is None or not stop.max_steps or not len(batch):
        chosen = found.leaves[count:] if stop.tests else found.leaves[:count]
        return Solved(chosen, found.steps, found.residual, found.status, obstacle)
    leaves, steps, residual, status = [x.clone() for x in found.leaves], found.steps, found.residual, found.status
    assert isinstance(stop.rtol, float | int)
    assert isinstance(stop.max_steps, int)
    held = (status != Status.DIVERGED).nonzero().squeeze(1)
    for number in range(1, _PASSES + 1):
        if not len(held):
            break
        u = [x[held] for x in leaves[:count]]
        changes, sizes, relative = residuals(u, after(u, [x[held] for x in problem.context]))
        residual[held] = relative.to(residual.dtype)
        if not stop.tests:
            break
        limits = [stop.atol + stop.rtol * size for size in sizes]
        met = torch.stack([c <= limit for c, limit in zip(changes, limits, strict=True)]).all(0)
        spent = steps[held] >= stop.max_steps
        deceived = (status[held] == Status.CONVERGED) & ~met
        status[held[met]] = Status.CONVERGED
        status[held[deceived]] = Status.STALLED
        status[held[deceived & spent]] = Status.MAX_STEPS
        held = held[deceived & ~spent]
        if number == _PASSES or not len(held):
            break
        share = 0.1**number
        finer = Stop(share * stop.rtol, share * stop.atol, stop.max_steps - steps[held])
        part = replace(problem.subset(held), state=[x[held] for x in leaves])
        again = run(part, finer, method, Watch(give_up=give_up))
        for old, new in zip(leaves, again.leaves, strict=True):
            old[held] = new
        steps, status = steps.index_add(0, held, again.steps), status.index_copy(0, held, again.status)
        held = held[again.status != Status.DIVERGED]
    return Solved(leaves[:count], steps, residual, status, obstacle)
