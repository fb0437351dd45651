"""Bringing the vectors of a linear system to a size of about 1: exactly, by powers of two, and row by row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from homeostat.engine.backward.linear_system import Products, RowFunction
from homeostat.engine.norms import row_rms


def powers_of_two(leaves: Sequence[Tensor]) -> Tensor:
    """`(rows,)`, what brings the largest leaf of each row to a root mean square of about 1 without rounding."""
    size = torch.stack([row_rms(x).to(torch.float64) for x in leaves]).amax(0)
    exponent = torch.where((size > 0) & size.isfinite(), size, 1.0).log2().round()
    return torch.exp2(-exponent.clamp(-120, 120))


def times(leaves: Sequence[Tensor], scales: Tensor) -> list[Tensor]:
    """Each row times its scale."""
    return [x * scales.to(x.dtype).view(-1, *[1] * (x.ndim - 1)) for x in leaves]


def at_size_one(function: RowFunction) -> RowFunction:
    """A linear function that is only ever given vectors of a size of about 1.

    Example:
        >>> double = at_size_one(lambda rows, vectors: [(2 * x.half()).float() for x in vectors])
        >>> double(torch.arange(1), [torch.full((1, 2), 2.0**99)])  # float16 ends at 65504
        [tensor([[1.2677e+30, 1.2677e+30]])]
    """

    def scaled(rows: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
        scales = powers_of_two(vectors)
        return times(function(rows, times(vectors, scales)), 1 / scales)

    return scaled


class AtSizeOne:
    """Jacobian products of vectors of a size of about 1, whatever they are asked for.

    Half precision has little range: the product of a gradient of 1e5 is infinite in float16, and that of 1e-8 is 0.
    """

    def __init__(self, products: Products) -> None:
        self._pull, self._push = at_size_one(products.pull), at_size_one(products.push)

    def pull(self, rows: Tensor, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """`J^T u`."""
        return self._pull(rows, cotangents)

    def push(self, rows: Tensor, tangents: Sequence[Tensor]) -> list[Tensor]:
        """`J v`."""
        return self._push(rows, tangents)
