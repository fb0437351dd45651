"""Lengths of steps in the space of states: Euclidean, over all measured leaves together, in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from homeostat.engine.norms import row_rms

_UNITS = 64
"""A step shorter than so many units in the last place of the state may be rounding."""


def row_length(leaves: Sequence[Tensor]) -> Tensor:
    """`(rows,)` Euclidean length of each row over all leaves.

    Example:
        >>> row_length([torch.tensor([[3.0]]), torch.tensor([[4.0, 0.0]])]).round(decimals=6)
        tensor([5.], dtype=torch.float64)
    """
    squares = [row_rms(leaf).double().square() * leaf[0].numel() for leaf in leaves]
    return torch.stack(squares).sum(0).sqrt()


def rounding_length(leaves: Sequence[Tensor]) -> Tensor:
    """`(rows,)` length up to which a step to this state may be rounding, by the coarsest dtype among its leaves."""
    return _UNITS * max(torch.finfo(leaf.dtype).eps for leaf in leaves) * row_length(leaves)
