"""Krylov methods for `u = J^T u + g`, a batch of systems at once and every decision per row.

Vectors here are `(rows, n)`: the leaves of a row side by side, each divided by the size it had at the start, so that
leaves of very different scale count alike and no square leaves the range of float32. With `W` that scaling, the matrix
is `A = W (I - J^T) W^-1`, and the norm of a residual bounds the largest relative residual of a row's leaves.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from homeostat.engine.methods import GMRES, NormalCG
from homeostat.engine.norms import finite_rows, out_of_bounds, residuals
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop

# A cycle that leaves more than this share of the residual will not get anywhere by being repeated.
_NO_PROGRESS = 0.999
# The residual that a method carries along drifts from the true one; aiming a little lower makes a second go rare.
_AIM = 0.9


class Products(Protocol):
    """Jacobian products of chosen rows of the batch."""

    def pull(self, rows: Tensor, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """`J^T u`."""
        ...

    def push(self, rows: Tensor, tangents: Sequence[Tensor]) -> list[Tensor]:
        """`J v`."""
        ...


class _System:
    """`A x = W g` for some rows of the batch, with the test of when such a row is done."""

    def __init__(self, products: Products, rows: Tensor, after: Sequence[Tensor], sizes: Sequence[Tensor], stop: Stop):
        self.rows, self._products, self._stop = rows, products, stop
        self._shapes = [x.shape[1:] for x in after]
        self._lengths = [x[0].numel() for x in after]
        self._dtypes = [x.dtype for x in after]
        self.dtype = max(self._dtypes, key=lambda dtype: torch.finfo(dtype).bits)
        # A leaf that is 0 so far has no scale of its own yet; it gets that of the largest.
        scales = torch.stack([size.to(self.dtype) for size in sizes], 1)
        largest = scales.amax(1, keepdim=True)
        scales = torch.where(scales > 0, scales, torch.where(largest > 0, largest, 1))
        counts = torch.tensor([max(n, 1) for n in self._lengths], dtype=self.dtype, device=rows.device)
        self._scales = scales * counts.sqrt()
        self._atol = stop.atol / scales

    def subset(self, index: Tensor) -> "_System":
        """The systems of some of the rows."""
        part = copy.copy(self)
        part.rows, part._scales, part._atol = self.rows[index], self._scales[index], self._atol[index]
        return part

    def join(self, leaves: Sequence[Tensor], *, inverse: bool = False) -> Tensor:
        """Leaves as one scaled vector a row; with `inverse`, multiplied by the scale that is otherwise divided by."""
        scales = 1 / self._scales if inverse else self._scales
        parts = [x.flatten(1) if x.ndim > 1 else x[:, None] for x in leaves]
        return torch.cat([x.to(self.dtype) / scales[:, i, None] for i, x in enumerate(parts)], 1)

    def split(self, vectors: Tensor, *, inverse: bool = False) -> list[Tensor]:
        """What `join` joined."""
        scales = 1 / self._scales if inverse else self._scales
        parts = vectors.split(self._lengths, 1)
        leaves = [x * scales[:, i, None] for i, x in enumerate(parts)]
        return [
            x.unflatten(1, shape).to(dtype) if len(shape) else x[:, 0].to(dtype)
            for x, shape, dtype in zip(leaves, self._shapes, self._dtypes, strict=True)
        ]

    def apply(self, x: Tensor) -> Tensor:
        """`A x`."""
        return x - self.join(self._products.pull(self.rows, self.split(x)))

    def transpose(self, x: Tensor) -> Tensor:
        """`A^T x`."""
        return x - self.join(self._products.push(self.rows, self.split(x, inverse=True)), inverse=True)

    def done(self, x: Tensor, residual: Tensor | Sequence[Tensor]) -> Tensor:
        """`(rows,)` bool: within tolerance in every leaf.

        Args:
            x: the present solution.
            residual: norms `(rows,)` of the residual's leaves, or one norm that bounds them all.
        """
        met = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for i, part in enumerate(x.split(self._lengths, 1)):
            norm = residual if isinstance(residual, Tensor) else residual[i]
            size = torch.linalg.vector_norm(part, dim=1)
            # The size that counts is that of J^T u + g, which is u plus the residual.
            met &= (norm <= _AIM * (self._atol[:, i] + self._stop.rtol * (size - norm))) | (size == 0) & (norm == 0)
        return met

    def leaf_norms(self, x: Tensor) -> list[Tensor]:
        """`(rows,)` for each leaf."""
        return [torch.linalg.vector_norm(part, dim=1) for part in x.split(self._lengths, 1)]


class _Cycle(NamedTuple):
    """Where a cycle has brought its rows: solutions, products that each of them took, and which are not finite."""

    x: Tensor
    steps: Tensor
    broken: Tensor


def solve_by_cycles(
    products: Products, batch: Tensor, source: Sequence[Tensor], method: GMRES | NormalCG, stop: Stop
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Solve `u = J^T u + g` per row: cycles of a Krylov method, with the true residual taken between them.

    Args:
        products: Jacobian products.
        batch: `(rows,)` int64, which rows the products are asked for.
        source: `g`, one `(rows, ...)` per leaf, in float32 or float64.
        method: `GMRES` (a step is a product; true residuals count) or `NormalCG` (a step is a product of each kind).
        stop: when a row stops.

    Returns:
        `u`, steps `(rows,)`, relative residual `(rows,)` and status `(rows,)`. A row whose residual a full cycle
        could not lower is STALLED; one whose `g` or whose products are not finite is DIVERGED.
    """
    device, count = source[0].device, len(source[0])
    assert isinstance(stop.max_steps, int)
    solution = [g.clone() for g in source]
    steps = torch.zeros(count, dtype=torch.int64, device=device)
    status = torch.full((count,), Status.MAX_STEPS, dtype=torch.int8, device=device)
    wide = torch.float64 if any(g.dtype == torch.float64 for g in source) else torch.float32
    residual = torch.full((count,), float("nan"), dtype=wide, device=device)
    former = torch.full((count,), float("inf"), dtype=wide, device=device)
    finite = torch.stack([finite_rows(g) for g in source]).all(0)
    status[~finite] = Status.DIVERGED
    rows = finite.nonzero().squeeze(1) if stop.max_steps else torch.zeros_like(steps[:0])

    while len(rows):
        u, g = [x[rows] for x in solution], [x[rows] for x in source]
        after = [p + s for p, s in zip(products.pull(batch[rows], u), g, strict=True)]
        changes, sizes, relative = residuals(u, after)
        steps[rows] += 1
        residual[rows] = relative.to(wide)
        diverged = out_of_bounds(after, sizes) | ~torch.isfinite(relative)
        met = torch.ones_like(diverged)
        for change, size in zip(changes, sizes, strict=True):
            met &= change <= stop.atol + stop.rtol * size
        size = torch.stack([c.to(wide) for c in changes]).square().sum(0).sqrt()
        stuck = size > _NO_PROGRESS * former[rows]
        former[rows] = size
        spent = steps[rows] + 2 > stop.max_steps  # no room for a step and the true residual after it
        kinds = torch.where(stuck & ~spent, Status.STALLED, Status.MAX_STEPS)
        kinds = torch.where(diverged, Status.DIVERGED, torch.where(met, Status.CONVERGED, kinds))
        status[rows] = kinds.to(torch.int8)
        stay = (~(diverged | met | stuck | spent)).nonzero().squeeze(1)
        if not len(stay):
            break
        rows = rows if len(stay) == len(rows) else rows[stay]
        u, after, sizes = ([x[stay] for x in xs] for xs in (u, after, sizes))
        system = _System(products, batch[rows], after, sizes, stop)
        x = system.join(u)
        r = system.join(after) - x
        left = stop.max_steps - steps[rows] - 1
        found = _gmres(system, x, r, left, method.restart) if isinstance(method, GMRES) else _cg(system, x, r, left)
        for old, new in zip(solution, system.split(found.x), strict=True):
            old[rows] = new
        steps[rows] += found.steps
        status[rows[found.broken]] = Status.DIVERGED
        rows = rows[~found.broken]
    return solution, steps, residual, status


class _Rows:
    """Which rows of a cycle are still at work, and where the finished ones have got to.

    A finished row rides along, its result kept, until a quarter of the rows have finished; then they leave together.
    """

    def __init__(self, x: Tensor, left: Tensor) -> None:
        self.x, self.left = x.clone(), left
        self.steps = torch.zeros_like(left)
        self.broken = torch.zeros_like(left, dtype=torch.bool)
        self.held = torch.arange(len(x), device=x.device)
        self.busy = torch.ones_like(self.broken)  # among the held

    def advance(self, x: Tensor, usable: Tensor) -> None:
        """Take `x` over for the busy rows where it is finite; the others that are not are broken and finished.

        Args:
            x: `(held, n)`, the solutions after one more step.
            usable: `(held,)` bool; where it is not, the former solution stays.
        """
        finite = torch.isfinite(x).all(1)
        good = self.busy & finite & usable
        index = self.held[good]
        self.x[index] = x[good]
        self.steps[self.held[self.busy]] += 1
        self.broken[self.held[self.busy & ~finite]] = True
        self.busy = good

    def finish(self, done: Tensor) -> None:
        """These of the held rows, and those whose steps are used up, are finished."""
        self.busy &= ~done & (self.steps[self.held] < self.left[self.held])

    def compact(self) -> Tensor | None:
        """Positions among the held rows of those that stay, if it is time for the others to leave."""
        stay = self.busy.nonzero().squeeze(1)
        if not len(stay) or 4 * len(stay) > 3 * len(self.held):
            return None
        self.held, self.busy = self.held[stay], self.busy[stay]
        return stay

    def result(self) -> _Cycle:
        return _Cycle(self.x, self.steps, self.broken)


def _gmres(system: _System, x: Tensor, r: Tensor, left: Tensor, restart: int) -> _Cycle:
    """One cycle of GMRES from `x` with residual `r`; the Givens rotations are kept as their product, one a row."""
    rows = _Rows(x, left)
    count, n = x.shape
    size = min(restart, int(left.max()))
    norm = torch.linalg.vector_norm(r, dim=1)
    basis = x.new_empty(count, size + 1, n)
    basis[:, 0] = r / norm[:, None]
    triangle = x.new_zeros(count, size, size)
    rotation = torch.eye(size + 1, dtype=x.dtype, device=x.device).repeat(count, 1, 1)
    tiny = 10 * torch.finfo(x.dtype).eps
    for k in range(size):
        w = system.apply(basis[:, k])
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
        new = x + torch.bmm(former.transpose(1, 2), weights)[:, :, 0]
        # A step that adds a direction the matrix maps to nothing is not taken; a product that is not finite ends a row.
        rows.advance(torch.where(torch.isfinite(whole)[:, None], new, torch.nan), regular | ~torch.isfinite(whole))
        rows.finish(closed | system.done(new, norm * rotation[:, k + 1, 0].abs()))
        if not bool(rows.busy.any()):
            break
        stay = rows.compact()
        if stay is not None:
            system, x, norm = system.subset(stay), x[stay], norm[stay]
            basis, triangle, rotation = basis[stay], triangle[stay], rotation[stay]
    return rows.result()


def _cg(system: _System, x: Tensor, r: Tensor, left: Tensor) -> _Cycle:
    """Conjugate gradients on `A^T A x = A^T W g`, from `x` with residual `r`, until every row is done or used up."""
    rows = _Rows(x, left)
    tiny = 10 * torch.finfo(x.dtype).eps
    p = s = system.transpose(r)
    size = (s * s).sum(1)
    for _ in range(int(left.max())):
        q = system.apply(p)
        curvature = (q * q).sum(1)
        regular = curvature > tiny**2 * (p * p).sum(1)  # or the matrix maps this direction to nothing but rounding
        # Finished rows ride along with steps of length 0.
        length = torch.where(rows.busy & regular, size / torch.where(regular, curvature, 1), 0)
        x = x + length[:, None] * p
        r = r - length[:, None] * q
        rows.advance(x, regular)
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
