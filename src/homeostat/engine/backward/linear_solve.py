"""The linear system behind every implicit gradient, `u = J^T u + g`, solved per example: one entrance, five methods."""

from collections.abc import Sequence

import torch
from torch import Tensor

from homeostat.engine.backward.adjoint import JacobianRows
from homeostat.engine.backward.krylov import solve_by_cycles
from homeostat.engine.backward.linear_system import Products, Twin
from homeostat.engine.forward.run import run
from homeostat.engine.methods import AdjointMethod, Anderson, Picard
from homeostat.engine.norms import row_rms
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Adjoint
from homeostat.engine.stop import Stop


def solve_adjoint(
    jacobian: JacobianRows,
    rows: Tensor,
    cotangents: Sequence[Tensor],
    method: AdjointMethod,
    stop: Stop,
    *,
    transposed: bool = True,
) -> tuple[list[Tensor], Adjoint]:
    """Solve `u = J^T u + g` per example, with rows leaving as they finish.

    The residual is RMS(J^T u + g - u) over RMS(J^T u + g), the largest over the leaves, whatever the method; all of
    them begin at `u = g` and work in float32 at least.

    Args:
        jacobian: products with `J^T` and `J`, row by row.
        rows: `(rows,)` int64, which rows of that batch are to be solved.
        cotangents: `g`, one `(rows, ...)` per measured leaf.
        method: how it is solved.
        stop: when an example's solve stops.
        transposed: False solves the twin, `x = J x + b`, in the same way, with `cotangents` for `b`.

    Returns:
        `u`, one per measured leaf in the dtype of its `g`, and how the solve went. Rows that diverged have a `u`
        which is finite where `g` is, and means nothing.

    Example:
        >>> from homeostat.engine.methods import GMRES
        >>> from homeostat.engine.backward.tape import present_autocast, record
        >>> problem = Problem.of(lambda z, _: 0.75 * z + 1, torch.full((2, 3), 4.0), None)
        >>> jacobian = JacobianRows(problem, record(problem), present_autocast(torch.device("cpu")))
        >>> u, adjoint = solve_adjoint(jacobian, torch.arange(2), [torch.ones(2, 3)], GMRES(), Stop(1e-5))
        >>> u[0][0].round(decimals=3), adjoint.steps
        (tensor([4., 4., 4.]), tensor([3, 3]))
    """
    products: Products = jacobian if transposed else Twin(jacobian)
    source = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in cotangents]
    if isinstance(method, Picard | Anderson):

        def step(u: tuple[Tensor, ...], at: list[Tensor]) -> tuple[Tensor, ...]:
            present, *g = at
            return tuple(p + s for p, s in zip(products.pull(present, u), g, strict=True))

        # The system is linear: solved at a size of about 1, whatever the size of the gradient, and scaled back.
        scales = _powers_of_two(source)
        scaled = [_times(g, scales) for g in source]
        found = run(Problem.of(step, tuple(scaled), [rows, *scaled]), stop, method)
        leaves, steps, residual, status = found.leaves, found.steps, found.residual, found.status
        leaves = [_times(u, 1 / scales) for u in leaves]
        obstacle = torch.zeros_like(status)
    else:
        unit = jacobian.unit(cotangents)
        leaves, steps, residual, status, obstacle = solve_by_cycles(products, rows, source, method, stop, unit)
    adjoint = Adjoint(steps, residual, status, jacobian.evaluations, obstacle)
    return [u.to(g.dtype) for u, g in zip(leaves, cotangents, strict=True)], adjoint


def _powers_of_two(leaves: Sequence[Tensor]) -> Tensor:
    """`(rows,)`, what brings the largest leaf of each row to a root mean square of about 1 without rounding."""
    size = torch.stack([row_rms(x).to(torch.float64) for x in leaves]).amax(0)
    exponent = torch.where((size > 0) & size.isfinite(), size, 1.0).log2().round()
    return torch.exp2(-exponent.clamp(-120, 120))


def _times(leaf: Tensor, scales: Tensor) -> Tensor:
    return leaf * scales.to(leaf.dtype).view(-1, *[1] * (leaf.ndim - 1))
