"""Generalised minimal residual, one cycle."""

import torch
from torch import Tensor

from homeostat.engine.backward.linear_system import Cycle, Rows, System
from homeostat.engine.solution import Obstacle


def gmres(system: System, x: Tensor, r: Tensor, left: Tensor) -> Cycle:
    """One cycle of GMRES, preconditioned from the right, so that its residual is the system's own.

    What the preconditioner makes of the basis is kept beside it: it may then be any, one that rounds too (FGMRES). The
    Givens rotations are kept as their product, one a row.

    Args:
        system: with its preconditioner, if it has one.
        x: `(rows, n)`, where it begins.
        r: its residual.
        left: `(rows,)`, most steps; a step is a product.

    Source:
        Y. Saad, "A flexible inner-outer preconditioned GMRES algorithm", SIAM J. Sci. Comput. 14 (1993).
    """
    rows = Rows(x, left)
    count, n = x.shape
    size = int(left.max())
    norm = torch.linalg.vector_norm(r, dim=1)
    basis = x.new_empty(count, size + 1, n)
    basis[:, 0] = r / norm[:, None]
    directions = x.new_empty(count, size, n) if system.preconditioned else basis
    triangle = x.new_zeros(count, size, size)
    rotation = torch.eye(size + 1, dtype=x.dtype, device=x.device).repeat(count, 1, 1)
    tiny = 10 * torch.finfo(x.dtype).eps
    for k in range(size):
        if system.preconditioned:
            directions[:, k] = system.precondition(basis[:, k])
        w = system.apply(directions[:, k])
        whole = torch.linalg.vector_norm(w, dim=1)
        # Gram-Schmidt against all of the basis at once, twice: as orthogonal as the sequential one, and two products.
        former = basis[:, : k + 1]
        column = x.new_zeros(len(w), k + 2)
        for _ in range(2):
            share = torch.bmm(former, w[:, :, None])
            w = w - torch.bmm(former.transpose(1, 2), share)[:, :, 0]
            column[:, : k + 1] += share[:, :, 0]
        height = torch.linalg.vector_norm(w, dim=1)
        closed = height <= tiny * whole  # the space holds the solution: the next vector would be rounding alone
        column[:, k + 1] = torch.where(closed, 0, height)
        basis[:, k + 1] = torch.where(closed[:, None], 0, w / height[:, None])

        column = torch.bmm(rotation[:, : k + 2, : k + 2], column[:, :, None])[:, :, 0]
        a, b = column[:, k], column[:, k + 1]
        radius = torch.hypot(a, b)
        regular = radius > tiny * whole
        safe = torch.where(regular, radius, 1)
        cosine, sine = (a / safe)[:, None], (b / safe)[:, None]
        upper, lower = rotation[:, k].clone(), rotation[:, k + 1].clone()
        rotation[:, k], rotation[:, k + 1] = cosine * upper + sine * lower, cosine * lower - sine * upper
        triangle[:, :k, k], triangle[:, k, k] = column[:, :k], safe
        weights = torch.linalg.solve_triangular(
            triangle[:, : k + 1, : k + 1], (norm[:, None] * rotation[:, : k + 1, 0])[:, :, None], upper=True
        )
        new = x + torch.bmm(directions[:, : k + 1].transpose(1, 2), weights)[:, :, 0]
        # A step that adds a direction the matrix maps to nothing is not taken; a product that is not finite ends a row.
        finite = torch.isfinite(whole)
        obstacle = torch.where(regular | ~finite, Obstacle.NONE, Obstacle.SINGULAR)
        rows.advance(torch.where(finite[:, None], new, torch.nan), obstacle)
        rows.finish(closed | system.done(new, norm * rotation[:, k + 1, 0].abs()))
        if not bool(rows.busy.any()):
            break
        stay = rows.compact()
        if stay is not None:
            system, x, norm = system.subset(stay), x[stay], norm[stay]
            basis, triangle, rotation = basis[stay], triangle[stay], rotation[stay]
            directions = directions[stay] if system.preconditioned else basis
    return rows.result()
