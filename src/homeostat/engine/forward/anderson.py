"""Former differences of an iteration, orthogonalised: what Anderson acceleration extrapolates from."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.dots import dots
from homeostat.engine.nest import zero_rows

# Histories with more entries than this a row are walked through in pieces.
_LONG = 1 << 14
_STRETCH = 1 << 13
# A new difference that lies in the span of the former ones but for this share is not used: its direction is noise.
_INDEPENDENT = 1e-4


class TruncatedGramSchmidt:
    """Orthogonal differences of the residual, and what belongs to them, `memory` at most.

    For differences dF of the residual and dG of the map's value it keeps Q, orthogonal, and V with the same
    combinations of the dG. The least-squares problem of Anderson acceleration is then one product, `Q^T F`. A new
    difference is orthogonalised against those that are kept, not against all that have been; for linear problems with a
    symmetric matrix nothing is lost by that (Tang, Xu, He, Saad, Xi, arXiv 2403.14961).
    """

    def __init__(self, like: Tensor, memory: int, *, noise: float, functional: bool) -> None:
        """Room for rows and unknowns as `like` has them.

        Args:
            like: `(rows, unknowns)`.
            memory: most differences that are kept.
            noise: differences of the residual below this share of the value can be rounding alone, and are not used: a
                map without a fixed point, z + 1, has no others, and would be extrapolated to where 1 is small.
            functional: write nothing in place, a graph may hold it.
        """
        rows, unknowns = like.shape
        # More differences than unknowns depend on one another, and the new one would be left out for the old ones.
        memory = min(memory, max(unknowns, 1))
        self._memory, self._unknowns = memory, unknowns
        self._noise, self._functional = noise, functional
        self._in_pieces = memory * unknowns > _LONG and not functional
        self._pairs = like.new_zeros(rows, memory, 2 * unknowns)  # Q beside V
        self._sizes = like.new_zeros(rows, memory)  # |q|, or 0 where a slot is not used
        self._weights = like.new_zeros(rows, memory)  # 1 / |q|^2, or 0
        self._coefficients = like.new_zeros(rows, memory)  # of the latest residual in Q
        # What removes a slot from a vector of coefficients before that slot is written anew.
        self._others = (1 - torch.eye(memory, dtype=like.dtype, device=like.device)).unbind()

    def propose(self, step: int, residual: Tensor, former: Tensor, value: Tensor, former_value: Tensor) -> Tensor:
        """`value` less what the differences explain of it; see `History.propose`."""
        slot = step % self._memory
        weights = self._weights * self._others[slot]
        coefficients = dots(self._pairs[:, :, : self._unknowns], residual) * weights
        overlap = torch.addcmul(coefficients, self._coefficients, self._others[slot], value=-1)
        both = torch.stack([overlap, coefficients], 1)
        replace = self._replace_in_pieces if self._in_pieces else self._replace
        new, explained = replace(slot, both, residual, former, value, former_value)
        direction, partner = new[:, : self._unknowns], new[:, self._unknowns :]  # of any length, 0 too
        size = torch.linalg.vector_norm(direction, dim=1)
        removed = torch.linalg.vector_norm(overlap * self._sizes, dim=1)
        least = torch.maximum(_INDEPENDENT * removed, self._noise * torch.linalg.vector_norm(value, dim=1))
        size = torch.where(size > least, size, torch.inf)
        latest = dots(direction[:, None], residual)[:, 0] / size**2
        self._set(slot, size, latest, coefficients)
        if self._in_pieces:
            return torch.sub(value, explained, out=explained).addcmul_(partner, latest[:, None], value=-1)
        return torch.addcmul(value - explained, partner, latest[:, None], value=-1)

    def _replace(
        self, slot: int, both: Tensor, residual: Tensor, former: Tensor, value: Tensor, former_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put the orthogonalised new pair into its slot, in one pass over the history.

        Returns:
            The new pair `(rows, 2 unknowns)`, and what the former differences explain of the value.
        """
        taken, explained = torch.bmm(both, self._pairs).unbind(1)
        new = torch.cat([residual - former, value - former_value], 1) - taken
        if self._functional:
            self._pairs = self._pairs.index_copy(1, torch.tensor([slot], device=new.device), new[:, None])
        else:
            self._pairs[:, slot] = new
        return new, explained[:, self._unknowns :]

    def _replace_in_pieces(
        self, slot: int, both: Tensor, residual: Tensor, former: Tensor, value: Tensor, former_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same without copies of long rows: a stretch of unknowns after the other.

        `former` is of no use afterwards, and what is explained is written over it.
        """
        for start in range(0, self._unknowns, _STRETCH):
            at = slice(start, min(start + _STRETCH, self._unknowns))
            beside = slice(at.start + self._unknowns, at.stop + self._unknowns)
            taken = torch.bmm(both[:, :1], self._pairs[:, :, at])[:, 0]
            torch.sub(residual[:, at] - former[:, at], taken, out=self._pairs[:, slot, at])
            taken, former[:, at] = torch.bmm(both, self._pairs[:, :, beside]).unbind(1)
            torch.sub(value[:, at] - former_value[:, at], taken, out=self._pairs[:, slot, beside])
        return self._pairs[:, slot], former

    def _set(self, slot: int, size: Tensor, latest: Tensor, coefficients: Tensor) -> None:
        used = torch.where(size < torch.inf, size, 0)
        if self._functional:
            at = torch.tensor([slot], device=size.device)
            self._sizes = self._sizes.index_copy(1, at, used[:, None])
            self._weights = self._weights.index_copy(1, at, size[:, None] ** -2)
            self._coefficients = coefficients.index_copy(1, at, latest[:, None])
        else:
            self._sizes[:, slot], self._weights[:, slot], coefficients[:, slot] = used, size**-2, latest
            self._coefficients = coefficients

    def forget(self, rows: NDArray[np.int64]) -> None:
        """See `History.forget`."""
        at = torch.from_numpy(rows).to(self._pairs.device)
        if self._functional:
            self._pairs, self._sizes, self._weights, self._coefficients = (
                x.index_fill(0, at, 0) for x in (self._pairs, self._sizes, self._weights, self._coefficients)
            )
        else:  # long histories are not copied
            for x in (self._pairs, self._sizes, self._weights, self._coefficients):
                x.index_fill_(0, at, 0)

    def keep(self, positions: NDArray[np.int64], index: Tensor) -> None:
        """See `History.keep`."""
        self._pairs, self._sizes = self._pairs[index], self._sizes[index]
        self._weights, self._coefficients = self._weights[index], self._coefficients[index]

    def join(self, count: int) -> None:
        """See `History.join`."""
        self._pairs, self._sizes, self._weights, self._coefficients = (
            zero_rows(x, count) for x in (self._pairs, self._sizes, self._weights, self._coefficients)
        )
