"""Inner products, row by row."""

import torch
from torch import Tensor

# Matrices with more entries than this are walked through row by row: a batched product of many thin matrices is slow,
# and an elementwise one would need as much memory again.
_LONG = 1 << 14


def dots(matrices: Tensor, vectors: Tensor) -> Tensor:
    """`(rows, m, n), (rows, n) -> (rows, m)`.

    Example:
        >>> dots(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]), torch.tensor([[2.0, 3.0]]))
        tensor([[2., 5.]])
    """
    if matrices[0].numel() > _LONG and not matrices.is_cuda:
        return torch.stack([matrix @ vector for matrix, vector in zip(matrices, vectors, strict=True)])
    if matrices.shape[1] == 1:
        return (matrices[:, 0] * vectors).sum(1, keepdim=True)
    return torch.bmm(vectors[:, None], matrices.transpose(1, 2))[:, 0]
