"""The linear system behind every implicit gradient, `u = J^T u + g`, solved per example by one method or several."""

from collections.abc import Sequence

import torch
from torch import Tensor

from homeostat.engine.backward.adjoint import JacobianRows
from homeostat.engine.backward.krylov import Solved, solve_by_cycles
from homeostat.engine.backward.linear_iteration import solve_by_iteration
from homeostat.engine.backward.linear_system import Products, RowFunction, Twin
from homeostat.engine.backward.scaling import AtSizeOne, at_size_one, powers_of_two, times
from homeostat.engine.methods import CG, GMRES, AdjointMethod, Anderson, NormalCG, Picard
from homeostat.engine.norms import finite_rows, row_rms
from homeostat.engine.solution import Adjoint, AdjointSolver, Obstacle, Status
from homeostat.engine.stop import Stop

_SOLVERS = {
    Picard: AdjointSolver.PICARD,
    Anderson: AdjointSolver.ANDERSON,
    GMRES: AdjointSolver.GMRES,
    NormalCG: AdjointSolver.NORMAL_CG,
    CG: AdjointSolver.CG,
}


def solve_adjoint(
    jacobian: JacobianRows,
    rows: Tensor,
    cotangents: Sequence[Tensor],
    method: AdjointMethod | tuple[AdjointMethod, ...],
    stop: Stop,
    *,
    transposed: bool = True,
    start: RowFunction | None = None,
    precondition: RowFunction | None = None,
) -> tuple[list[Tensor], Adjoint]:
    """Solve `u = J^T u + g` per example, with rows leaving as they finish.

    The residual is RMS(J^T u + g - u) over RMS(J^T u + g), the largest over the leaves, whatever the method; all of
    them begin at `u = g` unless a start is given, and work in float32 at least.

    Of several methods each gets the rows that those before it left, and as many steps as the stop allows; `Picard` and
    `Anderson` before others let go early of rows whose residual does not fall. `GMRES` begins where it would begin
    alone, so that it solves whatever it solves alone; the others go on from the best solution so far. What is kept in
    the end is the solution with the lowest residual.

    Args:
        jacobian: products with `J^T` and `J`, row by row.
        rows: `(rows,)` int64, which rows of that batch are to be solved.
        cotangents: `g`, one `(rows, ...)` per measured leaf.
        method: how it is solved; of several without a tolerance the first one alone.
        stop: when an example's solve stops.
        transposed: False solves the twin, `x = J x + b`, in the same way, with `cotangents` for `b`.
        start: from `g` to where `u` begins.
        precondition: what is near the inverse of `I - J^T` (of the twin: of `I - J`). `NormalCG` and `CG` do without.

    Returns:
        `u`, one per measured leaf in the dtype of its `g`, and how the solve went. Rows whose `g` is not finite are
        DIVERGED with `u = g`; rows that diverged otherwise have a `u` which means nothing.

    Example:
        >>> from homeostat.engine.methods import GMRES
        >>> from homeostat.engine.backward.tape import present_autocast, record
        >>> from homeostat.engine.problem import Problem
        >>> problem = Problem.of(lambda z, _: 0.75 * z + 1, torch.full((2, 3), 4.0), None)
        >>> jacobian = JacobianRows(problem, record(problem), present_autocast(torch.device("cpu")))
        >>> u, adjoint = solve_adjoint(jacobian, torch.arange(2), [torch.ones(2, 3)], GMRES(), Stop(1e-5))
        >>> u[0][0].round(decimals=3), adjoint.steps
        (tensor([4., 4., 4.]), tensor([3, 3]))
    """
    products: Products = jacobian if transposed else Twin(jacobian)
    unit = jacobian.unit(cotangents)
    if unit > torch.finfo(torch.float32).eps:
        products = AtSizeOne(products)
    if precondition is not None:
        precondition = at_size_one(precondition)
    source = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in cotangents]
    # The system is linear: solved at a size of about 1, whatever the size of the gradient, and scaled back. An absolute
    # tolerance has a size of its own.
    scales = torch.ones_like(rows, dtype=torch.float64) if stop.atol else powers_of_two(source)
    source = times(source, scales)
    held = torch.stack([finite_rows(g) for g in source]).all(0).nonzero().squeeze(1)
    whole = len(held) == len(rows)
    begin = source if whole else [g[held] for g in source]
    if start is not None and len(held):
        given = start(rows if whole else rows[held], times(begin, 1 / scales[held]))
        # Where there is no gradient u is 0 itself, which no relative tolerance would see.
        nothing = torch.stack([row_rms(g) == 0 for g in begin]).all(0)
        begin = times(given, torch.where(nothing, 0, scales[held]))
    ledger: _Ledger | None = None
    methods = method if isinstance(method, tuple) else (method,)
    methods = methods if stop.tests else methods[:1]
    notes: list[str] = []
    for place, one in enumerate(methods):
        if not len(held):
            break
        batch = rows if len(held) == len(rows) else rows[held]
        present = source if len(held) == len(rows) else [g[held] for g in source]
        at = (products, batch, present, ledger.where(held, cold=isinstance(one, GMRES)) if ledger else begin)
        if isinstance(one, Picard | Anderson):
            found = solve_by_iteration(*at, one, stop, precondition, give_up=place + 1 < len(methods))
        elif not place or not isinstance(one, NormalCG):
            found = solve_by_cycles(*at, one, stop, unit, precondition if isinstance(one, GMRES) else None)
        else:
            try:
                found = solve_by_cycles(*at, one, stop, unit)
            except RuntimeError as error:  # what the methods before it found is kept
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                notes.append(f"NormalCG, which differentiates step twice, could not be tried: {_first_line(error)}")
                break
        alone = len(methods) == 1 and whole
        left = held[:0] if alone else (found.status != Status.CONVERGED).nonzero().squeeze(1)
        if ledger is None:
            if whole and not len(left):  # the common cases are spared the rest
                solver = torch.full_like(found.status, _SOLVERS[type(one)])
                adjoint = Adjoint(
                    found.steps, found.residual, found.status, jacobian.evaluations, found.obstacle, solver
                )
                return _scaled_back(found.leaves, scales, cotangents), adjoint
            ledger = _Ledger(source, held, begin)
        ledger.enter(held, found, _SOLVERS[type(one)], first=not place)
        held = held[left]
    ledger = ledger or _Ledger(source, held, begin)  # no row could be solved
    return _scaled_back(ledger.leaves, scales, cotangents), ledger.adjoint(jacobian.evaluations, notes)


def _scaled_back(leaves: Sequence[Tensor], scales: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return [x.to(g.dtype) for x, g in zip(times(leaves, 1 / scales), like, strict=True)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Ledger:
    """The best that was found for each row, and how."""

    def __init__(self, source: Sequence[Tensor], rows: Tensor, begin: Sequence[Tensor]) -> None:
        """`begin` is where `rows` begin, those that have a solve."""
        count, device = len(source[0]), source[0].device
        wide = torch.float64 if any(g.dtype == torch.float64 for g in source) else torch.float32
        self.leaves = [g.clone() for g in source]
        self._begin = source
        if begin is not source:
            self._begin = [x.index_copy(0, rows, new) for x, new in zip(source, begin, strict=True)]
            self.leaves = [x.clone() for x in self._begin]
        self._steps = torch.zeros(count, dtype=torch.int64, device=device)
        self._residual = torch.full((count,), float("nan"), dtype=wide, device=device)
        self._status = torch.full((count,), Status.DIVERGED, dtype=torch.int8, device=device)
        self._obstacle, self._solver = torch.zeros_like(self._status), torch.zeros_like(self._status)
        self._lowest = torch.full_like(self._residual, float("inf"))

    def where(self, rows: Tensor, *, cold: bool) -> list[Tensor]:
        """Where rows go on: at the best that there is of them, or at their beginning if `cold`."""
        return [x[rows] for x in (self._begin if cold else self.leaves)]

    def enter(self, rows: Tensor, found: Solved, solver: AdjointSolver, *, first: bool) -> None:
        """A method's results. What diverged is no better than where the row began."""
        diverged = found.status == Status.DIVERGED
        size = torch.where(diverged, float("inf"), found.residual.to(self._residual.dtype))
        better = (found.status == Status.CONVERGED) | (size < self._lowest[rows]) | (~diverged & first)
        told = better | first
        for old, new in zip(self.leaves, found.leaves, strict=True):
            old[rows[better]] = new[better]
        self._lowest[rows] = torch.where(better, size, self._lowest[rows])
        self._residual[rows] = torch.where(told, found.residual.to(size.dtype), self._residual[rows])
        self._solver[rows[told]] = solver
        ended = told | ~diverged
        self._status[rows[ended]] = found.status[ended]
        # Another method may end otherwise on a singular system; it is singular all the same.
        singular = (self._obstacle[rows] == Obstacle.SINGULAR) & (found.status != Status.CONVERGED)
        obstacle = torch.where(singular & (found.obstacle == 0), self._obstacle[rows], found.obstacle.to(torch.int8))
        self._obstacle[rows[ended]] = obstacle[ended]
        self._steps[rows] += found.steps

    def adjoint(self, evaluations: int, notes: Sequence[str]) -> Adjoint:
        """How the solve went."""
        parts = (self._steps, self._residual, self._status, evaluations, self._obstacle, self._solver)
        return Adjoint(*parts, tuple(notes))
