"""Conjugate gradients: on the system itself, where it is symmetric, and on its normal equations."""

import torch
from torch import Tensor

from homeostat.engine.backward.linear_system import Cycle, Rows, System
from homeostat.engine.solution import Obstacle

# Asymmetry of a matrix, relative to its products, that rounding and a nearly solved state explain.
_ASYMMETRY = 1e-3
# Rounding of a product `J^T p`, in units in the last place of `p`: what an inner product has to exceed to be trusted.
_NOISE = 32
# Difference of two ways to compute an inner product that shows that they are not of the same matrix.
_MISMATCH = 1e-2
# A residual of this share of a unit in the last place of the solution adds nothing to it.
_NOTHING = 0.01


def cg(system: System, x: Tensor, r: Tensor, source: Tensor, left: Tensor, unit: float) -> Cycle:
    """Conjugate gradients on `A x = W g`, which need a symmetric and positive definite `A`, and look whether it is.

    For a symmetric matrix `p . A q` is `q . A p`. Both are at hand for every direction and the one before it, and for
    the start and the first direction, so that the test costs no product. Where it fails, or where `p . A p` is not
    above 0, the row ends with the solution that it had.

    Args:
        system: with one scale for all leaves of a row.
        x: `(rows, n)`, where it begins.
        r: its residual.
        source: `W g`.
        left: `(rows,)`, most steps; a step is a product.
        unit: one unit in the last place of what products are computed in.
    """
    rows = Rows(x, left)
    tolerance, noise = max(_ASYMMETRY, 4 * unit**0.5), _NOISE * unit
    p, size = r, _dot(r, r)
    before, its_product = x, source - r
    for _ in range(int(left.max())):
        q = system.apply(p)
        length_p, length_q = _length(p), _length(q)
        curvature = _dot(p, q)
        gap = (_dot(before, q) - _dot(p, its_product)).abs()
        scale = _length(before) * length_q + length_p * _length(its_product)
        skew = gap > tolerance * scale + noise * _length(before) * length_p
        flat = curvature <= 2 * unit * length_p**2
        # A semidefinite matrix that bends a direction by no more than rounding maps it to little more than that.
        null = flat & (curvature >= -2 * unit * length_p**2) & (length_q <= 2 * unit**0.5 * length_p)
        obstacle = torch.where(flat, Obstacle.INDEFINITE, Obstacle.NONE)
        obstacle = torch.where(null, Obstacle.SINGULAR, obstacle)
        obstacle = torch.where(skew, Obstacle.NOT_SYMMETRIC, obstacle)
        usable = rows.busy & (obstacle == Obstacle.NONE)
        # Finished rows ride along with steps of length 0.
        length = torch.where(usable, size / torch.where(curvature == 0, 1, curvature), 0)
        x = x + length[:, None] * p
        r = r - length[:, None] * q
        rows.advance(x, obstacle)
        nothing_left = _length(r) <= _NOTHING * unit * _length(x)
        rows.finish(nothing_left | system.done(x, system.leaf_norms(r)))
        if not bool(rows.busy.any()):
            break
        stay = rows.compact()
        if stay is not None:
            system, x, r, p, q, size = system.subset(stay), x[stay], r[stay], p[stay], q[stay], size[stay]
        before, its_product = p, q
        former, size = size, _dot(r, r)
        p = r + (size / torch.where(former > 0, former, 1))[:, None] * p
    return rows.result()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _length(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a, dim=1)


def normal_cg(system: System, x: Tensor, r: Tensor, left: Tensor, unit: float) -> Cycle:
    """Conjugate gradients on `A^T A x = A^T W g`, from `x` with residual `r`, until every row is done or used up.

    Raises:
        RuntimeError: what should be products with `J` are not: not every `step` that cannot be differentiated twice
            says so when it is.
    """
    rows = Rows(x, left)
    tiny = 10 * torch.finfo(x.dtype).eps
    p = s = system.transpose(r)
    size = (s * s).sum(1)
    for _ in range(int(left.max())):
        q = system.apply(p)
        if p is s:  # the first step: r . A s is s . s, if s is A^T r
            gap = (_dot(r, q) - size).abs()
            if bool((gap > max(_MISMATCH, _NOISE * unit) * (_length(r) * _length(q) + size)).any()):
                raise RuntimeError("the products with J are not those of a transposed J^T")
        curvature = (q * q).sum(1)
        regular = curvature > tiny**2 * (p * p).sum(1)  # or the matrix maps this direction to nothing but rounding
        # Finished rows ride along with steps of length 0.
        length = torch.where(rows.busy & regular, size / torch.where(regular, curvature, 1), 0)
        x = x + length[:, None] * p
        r = r - length[:, None] * q
        rows.advance(x, torch.where(regular, Obstacle.NONE, Obstacle.SINGULAR))
        rows.finish(system.done(x, system.leaf_norms(r)))
        if not bool(rows.busy.any()):
            break
        stay = rows.compact()
        if stay is not None:
            system, x, r, p, size = system.subset(stay), x[stay], r[stay], p[stay], size[stay]
        s = system.transpose(r)
        former, size = size, (s * s).sum(1)
        p = s + (size / torch.where(former > 0, former, 1))[:, None] * p
    return rows.result()
