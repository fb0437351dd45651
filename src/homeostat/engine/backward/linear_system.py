"""The linear system `u = J^T u + g` as Krylov methods see it, a batch of them at once and every decision per row.

Vectors here are `(rows, n)`: the leaves of a row side by side, each divided by the size it had at the start, so that
leaves of very different scale count alike and no square leaves the range of float32. With `W` that scaling, the matrix
is `A = W (I - J^T) W^-1`, and the norm of a residual bounds the largest relative residual of a row's leaves.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from homeostat.engine.solution import Obstacle
from homeostat.engine.stop import Stop

# The residual that a method carries along drifts from the true one; aiming a little lower makes a second go rare.
_AIM = 0.9


RowFunction = Callable[[Tensor, Sequence[Tensor]], list[Tensor]]
"""From vectors of the rows `(rows,)` int64, one `(rows, ...)` per measured leaf, to other such vectors."""


class Products(Protocol):
    """Jacobian products of chosen rows of the batch."""

    def pull(self, rows: Tensor, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """`J^T u`."""
        ...

    def push(self, rows: Tensor, tangents: Sequence[Tensor]) -> list[Tensor]:
        """`J v`."""
        ...


class Twin:
    """Products in which the Jacobian and its transpose have changed places."""

    def __init__(self, products: Products) -> None:
        self._products = products

    def pull(self, rows: Tensor, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """`J v`, for which the twin's Jacobian is transposed."""
        return self._products.push(rows, cotangents)

    def push(self, rows: Tensor, tangents: Sequence[Tensor]) -> list[Tensor]:
        """`J^T u`."""
        return self._products.pull(rows, tangents)


class System:
    """`A x = W g` for some rows of the batch, with the test of when such a row is done.

    Args:
        products: Jacobian products.
        rows: `(rows,)` int64, which rows they are asked for.
        after: `J^T u + g`, one per leaf.
        sizes: the root mean square of each, `(rows,)`.
        stop: when a row is done.
        alike: one scale for all leaves of a row, under which a symmetric matrix stays symmetric.
        precondition: what is near the inverse of `I - J^T`, if anything is known to be.
    """

    def __init__(
        self,
        products: Products,
        rows: Tensor,
        after: Sequence[Tensor],
        sizes: Sequence[Tensor],
        stop: Stop,
        *,
        alike: bool = False,
        precondition: RowFunction | None = None,
    ) -> None:
        self.rows, self._products, self._stop, self._precondition = rows, products, stop, precondition
        self._shapes = [x.shape[1:] for x in after]
        self._lengths = [x[0].numel() for x in after]
        self._dtypes = [x.dtype for x in after]
        self.dtype = max(self._dtypes, key=lambda dtype: torch.finfo(dtype).bits)
        # A leaf that is 0 so far has no scale of its own yet; it gets that of the largest.
        scales = torch.stack([size.to(self.dtype) for size in sizes], 1)
        largest = scales.amax(1, keepdim=True)
        scales = torch.where(scales > 0, scales, torch.where(largest > 0, largest, 1))
        counts = lengths = torch.tensor([max(n, 1) for n in self._lengths], dtype=self.dtype, device=rows.device)
        if alike:
            scales, counts = scales.amax(1, keepdim=True).expand_as(scales), counts.sum().expand_as(counts)
        self._scales = scales * counts.sqrt()
        self._atol = stop.atol * lengths.sqrt() / self._scales

    def subset(self, index: Tensor) -> "System":
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

    @property
    def preconditioned(self) -> bool:
        """Whether there is a preconditioner."""
        return self._precondition is not None

    def precondition(self, x: Tensor) -> Tensor:
        """What is near `A^-1 x`; `x` itself where there is no preconditioner."""
        return x if self._precondition is None else self.join(self._precondition(self.rows, self.split(x)))

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


class Cycle(NamedTuple):
    """Where a cycle has brought its rows."""

    x: Tensor
    """`(rows, n)`, solutions."""
    steps: Tensor
    """`(rows,)` int64, products that each of them took."""
    broken: Tensor
    """`(rows,)` bool, not finite."""
    obstacle: Tensor
    """`(rows,)` int8 of `Obstacle`."""


class Rows:
    """Which rows of a cycle are still at work, and where the finished ones have got to.

    A finished row rides along, its result kept, until a quarter of the rows have finished; then they leave together.
    """

    def __init__(self, x: Tensor, left: Tensor) -> None:
        self.x, self.left = x.clone(), left
        self.steps = torch.zeros_like(left)
        self.broken = torch.zeros_like(left, dtype=torch.bool)
        self.obstacle = torch.zeros_like(left, dtype=torch.int8)
        self.held = torch.arange(len(x), device=x.device)
        self.busy = torch.ones_like(self.broken)  # among the held

    def advance(self, x: Tensor, obstacle: Tensor) -> None:
        """Take `x` over for the busy rows where it is finite; the others that are not are broken and finished.

        Args:
            x: `(held, n)`, the solutions after one more step.
            obstacle: `(held,)` of `Obstacle`; where there is one, the former solution stays.
        """
        finite = torch.isfinite(x).all(1)
        good = self.busy & finite & (obstacle == Obstacle.NONE)
        self.obstacle[self.held[self.busy]] = obstacle[self.busy].to(torch.int8)
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

    def result(self) -> Cycle:
        return Cycle(self.x, self.steps, self.broken, self.obstacle)
