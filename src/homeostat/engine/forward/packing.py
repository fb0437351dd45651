"""Measured leaves of a state as one matrix, a row an example: what histories and extrapolations work on."""

import torch
from torch import Tensor

from homeostat.engine.norms import norm_dtype


class Packing:
    """Between leaves and a `(rows, unknowns)` matrix in float32 at least (float64 where a leaf is)."""

    def __init__(self, state: list[Tensor], measured: list[int]) -> None:
        self._measured = measured
        self._shapes = [state[i].shape[1:] for i in measured]
        self._dtypes = [state[i].dtype for i in measured]
        self._sizes = [shape.numel() for shape in self._shapes]
        self.dtype = max((norm_dtype(d) for d in self._dtypes), key=lambda d: torch.finfo(d).bits)
        self.plain = len(measured) == 1 and self._dtypes[0] == self.dtype
        """The matrix is the one measured leaf itself, up to its shape."""
        self._flat = self.plain and state[measured[0]].ndim == 2
        self.unknowns = sum(self._sizes)

    def pack(self, leaves: list[Tensor]) -> Tensor:
        """`(rows, unknowns)`; shares memory with the leaf where there is one of the right dtype."""
        if self._flat:
            return leaves[self._measured[0]]
        flat = [leaves[i].reshape(len(leaves[i]), -1) for i in self._measured]
        return flat[0] if self.plain else torch.cat([x.to(self.dtype) for x in flat], 1)

    def unpack(self, matrix: Tensor, like: list[Tensor]) -> list[Tensor]:
        """Leaves with the measured ones from `matrix`, the others from `like`."""
        leaves = list(like)
        if self._flat:
            leaves[self._measured[0]] = matrix
            return leaves
        parts = matrix.split(self._sizes, 1) if len(self._sizes) > 1 else (matrix,)
        for i, part, shape, dtype in zip(self._measured, parts, self._shapes, self._dtypes, strict=True):
            leaves[i] = part.reshape(len(matrix), *shape).to(dtype)
        return leaves
