"""Former differences of an iteration, orthogonalised: what Anderson acceleration extrapolates from."""

import torch
from torch import Tensor

# Matrices with more entries than this are walked through row by row: a batched product of many thin matrices is slow.
_LONG = 1 << 14
_STRETCH = 1 << 13
# A new difference that lies in the span of the former ones but for this share is not used: its direction is noise.
_INDEPENDENT = 1e-4


class TruncatedGramSchmidt:
    """Orthogonal differences of the residual, and what belongs to them, `memory` at most.

    For differences dF of the residual and dG of the map's value it keeps Q, orthogonal, and V with the same combinations
    of the dG. The least-squares problem of Anderson acceleration is then one product, `Q^T F`. A new difference is
    orthogonalised against those that are kept, not against all that have been; for linear problems with a symmetric
    matrix nothing is lost by that (Tang, Xu, He, Saad, Xi, arXiv 2403.14961).
    """

    def __init__(self, like: Tensor, memory: int, *, functional: bool) -> None:
        """`functional`: write no tensor in place that a graph may hold."""
        rows, unknowns = like.shape
        self._unknowns, self._functional = unknowns, functional
        self._long = memory * unknowns > _LONG
        self._pairs = like.new_zeros(rows, memory, 2, unknowns)  # Q and V
        self._sizes = like.new_zeros(rows, memory)  # |q|, or 0 where a slot is not used
        self._weights = like.new_zeros(rows, memory)  # 1 / |q|^2, or 0
        self._coefficients = like.new_zeros(rows, memory)  # of the latest residual in Q
        # What removes a slot from a vector of coefficients before that slot is written anew.
        self._others = 1 - torch.eye(memory, dtype=like.dtype, device=like.device)

    def extrapolate(
        self, slot: int, residual: Tensor, former: Tensor, value: Tensor, former_value: Tensor, gate: Tensor | None
    ) -> Tensor:
        """`value` less what the differences explain of it, the latest difference taking the place of `slot`.

        Args:
            slot: from 0 to memory - 1.
            residual, former: F at this step and at the one before, `(rows, unknowns)`.
            value, former_value: G at the same steps.
            gate: `(rows, 1)` bool, False for rows that keep their plain value; None where none does.
        """
        others = self._others[slot]
        coefficients = _dots(self._pairs[:, :, 0], residual) * self._weights * others
        overlap = coefficients - self._coefficients * others
        both = torch.stack([overlap, coefficients], 1)
        replace = self._replace_in_pieces if self._long and not self._functional else self._replace
        new, explained = replace(slot, both, residual, former, value, former_value)
        direction, partner = new.unbind(1)
        size = torch.linalg.vector_norm(direction, dim=1)
        used = size > _INDEPENDENT * torch.linalg.vector_norm(overlap * self._sizes, dim=1)
        size = torch.where(used, size, torch.inf)
        weight = size**-2
        latest = (direction * residual).sum(1) * weight
        explained = torch.addcmul(explained, partner, latest[:, None])
        self._set(slot, torch.where(used, size, 0), weight, latest, coefficients)
        return value - (explained if gate is None else torch.where(gate, explained, 0))

    def _replace(
        self, slot: int, both: Tensor, residual: Tensor, former: Tensor, value: Tensor, former_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put the orthogonalised new pair into its slot, in one pass over the history.

        Returns:
            The new pair `(rows, 2, unknowns)`, and what the former differences explain of the value.
        """
        taken = torch.bmm(both, self._pairs.flatten(2)).view(len(both), 2, 2, self._unknowns)
        new = torch.stack([residual - former, value - former_value], 1) - taken[:, 0]
        if self._functional:
            self._pairs = self._pairs.index_copy(1, torch.tensor([slot], device=new.device), new[:, None])
        else:
            self._pairs[:, slot] = new
        return new, taken[:, 1, 1]

    def _replace_in_pieces(
        self, slot: int, both: Tensor, residual: Tensor, former: Tensor, value: Tensor, former_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same without copies of long rows: a stretch of unknowns after the other."""
        explained = torch.empty_like(value)
        for start in range(0, self._unknowns, _STRETCH):
            at = slice(start, start + _STRETCH)
            q, v = self._pairs[:, :, 0, at], self._pairs[:, :, 1, at]
            taken = torch.bmm(both[:, :1], q)[:, 0]
            torch.sub(residual[:, at] - former[:, at], taken, out=q[:, slot])
            taken, explained[:, at] = torch.bmm(both, v).unbind(1)
            torch.sub(value[:, at] - former_value[:, at], taken, out=v[:, slot])
        return self._pairs[:, slot], explained

    def _set(self, slot: int, size: Tensor, weight: Tensor, latest: Tensor, coefficients: Tensor) -> None:
        if self._functional:
            at = torch.tensor([slot], device=size.device)
            self._sizes = self._sizes.index_copy(1, at, size[:, None])
            self._weights = self._weights.index_copy(1, at, weight[:, None])
            self._coefficients = coefficients.index_copy(1, at, latest[:, None])
        else:
            self._sizes[:, slot], self._weights[:, slot], coefficients[:, slot] = size, weight, latest
            self._coefficients = coefficients

    def forget(self, rows: Tensor) -> None:
        """Empty the history of some rows, `(rows,)` bool."""
        if not self._functional:  # long histories are not copied
            self._pairs[rows] = 0
            self._sizes[rows] = self._weights[rows] = self._coefficients[rows] = 0
            return
        self._pairs = torch.where(rows[:, None, None, None], 0, self._pairs)
        self._sizes, self._weights, self._coefficients = (
            torch.where(rows[:, None], 0, x) for x in (self._sizes, self._weights, self._coefficients)
        )

    def keep(self, index: Tensor) -> None:
        """Drop the rows that left."""
        self._pairs, self._sizes = self._pairs[index], self._sizes[index]
        self._weights, self._coefficients = self._weights[index], self._coefficients[index]


def _dots(matrices: Tensor, vectors: Tensor) -> Tensor:
    """`(rows, m, n), (rows, n) -> (rows, m)`."""
    if matrices.shape[1] * matrices.shape[2] > _LONG:
        return torch.stack([matrix @ vector for matrix, vector in zip(matrices, vectors, strict=True)])
    return torch.bmm(vectors[:, None], matrices.transpose(1, 2))[:, 0]
