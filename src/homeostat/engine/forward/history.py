"""Former differences of an iteration, orthogonalised: what Anderson acceleration extrapolates from."""

import torch
from torch import Tensor

# Matrices with more entries than this are walked through row by row: a batched product of many thin matrices is slow.
_LONG = 1 << 14
# A new difference that lies in the span of the former ones but for this share is not kept: its direction is noise.
_INDEPENDENT = 1e-4


class TruncatedGramSchmidt:
    """Orthonormal differences of the residual, and what belongs to them, `memory` at most.

    For differences dF of the residual and dG of the map's value it keeps Q, orthonormal, and V with the same combinations
    of the dG. The least-squares problem of Anderson acceleration is then one product, `Q^T F`. A new difference is
    orthogonalised against those that are kept, not against all that have been; for linear problems with a symmetric
    matrix nothing is lost by that (Tang, Xu, He, Saad, Xi, arXiv 2403.14961).
    """

    def __init__(self, like: Tensor, memory: int, *, functional: bool) -> None:
        """`functional`: write no tensor in place that a graph may hold."""
        rows, unknowns = like.shape
        self._memory, self._unknowns, self._functional = memory, unknowns, functional
        self._pairs = like.new_zeros(rows, memory, 2, unknowns)
        self._coefficients = like.new_zeros(rows, memory)  # Q^T of the latest residual

    def add(self, slot: int, residual: Tensor, former: Tensor, value: Tensor, former_value: Tensor) -> Tensor:
        """Replace the pair in `slot` by the latest difference; returns `Q^T residual`, `(rows, memory)`."""
        pairs = self._pairs
        products = _dots(pairs[:, :, 0], residual)
        overlap = products - self._coefficients
        overlap[:, slot] = 0
        new = torch.stack([residual - former, value - former_value], 1)
        flat = pairs.view(len(pairs), self._memory, 2 * self._unknowns)
        new = torch.baddbmm(new.view(len(new), 1, -1), overlap[:, None], flat, alpha=-1).view_as(new)
        size = torch.linalg.vector_norm(new[:, 0], dim=1)
        keeps = size > _INDEPENDENT * torch.linalg.vector_norm(overlap, dim=1)
        scale = torch.where(keeps, 1 / size.where(keeps, 1), 0)
        new = new * scale[:, None, None]
        products[:, slot] = (new[:, 0] * residual).sum(1)
        if self._functional:
            self._pairs = pairs.index_copy(1, torch.tensor([slot], device=new.device), new[:, None])
        else:
            pairs[:, slot] = new
        self._coefficients = products
        return products

    def extrapolate(self, value: Tensor, coefficients: Tensor) -> Tensor:
        """`value - V coefficients`."""
        return torch.baddbmm(value[:, None], coefficients[:, None], self._pairs[:, :, 1], alpha=-1)[:, 0]

    def forget(self, rows: Tensor) -> None:
        """Empty the history of some rows, `(rows,)` bool."""
        if self._functional:
            self._pairs = torch.where(rows[:, None, None, None], 0, self._pairs)
        else:
            self._pairs[rows] = 0
        self._coefficients = torch.where(rows[:, None], 0, self._coefficients)

    def keep(self, index: Tensor) -> None:
        """Drop the rows that left."""
        self._pairs, self._coefficients = self._pairs[index], self._coefficients[index]


def _dots(matrices: Tensor, vectors: Tensor) -> Tensor:
    """`(rows, m, n), (rows, n) -> (rows, m)`."""
    if matrices.shape[1] * matrices.shape[2] > _LONG:
        return torch.stack([matrix @ vector for matrix, vector in zip(matrices, vectors, strict=True)])
    return torch.bmm(vectors[:, None], matrices.transpose(1, 2))[:, 0]
