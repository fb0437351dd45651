"""torchdeq's dropouts: one mask a solve, kept on the module until `reset_dropout`.

`homeostat.nn.VariationalDropout` puts the mask into the context instead, so that it leaves the batch with its row;
where no row leaves, as in `deq(f, z0)`, a mask on the module does.
"""

import torch
from torch import Tensor, nn

from homeostat.engine.stop import check_range
from homeostat.errors import ContractError


class _MaskedDropout(nn.Module):
    """A mask that is drawn at the first call in training and stays until it is reset."""

    dims = 0
    """Dimensions between batch and features; 0: any shape, each entry by itself."""
    tokens = False
    """Drops positions; otherwise features."""

    def __init__(self, dropout: float = 0.5, token_first: bool = True) -> None:
        super().__init__()
        self.dropout = check_range("dropout", dropout, 0, "a number from 0 to below 1", high=1 - 1e-6)
        self.token_first = token_first
        self.mask: Tensor | None = None

    def reset_mask(self, x: Tensor) -> None:
        """Draw the mask for inputs like `x`, on its device."""
        shape = list(x.shape)
        if self.dims:
            if x.ndim != self.dims + 2:
                raise ContractError(
                    f"{type(self).__name__} takes tensors of {self.dims + 2} dimensions, not {tuple(x.shape)}"
                )
            positions = range(1, self.dims + 1) if self.token_first else range(2, self.dims + 2)
            features = [self.dims + 1] if self.token_first else [1]
            for dim in features if self.tokens else positions:
                shape[dim] = 1
        self.mask = x.new_empty(shape).bernoulli_(1 - self.dropout) / (1 - self.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`x` with the mask applied in training; `x` itself in evaluation."""
        if not self.training or self.dropout == 0:
            return x
        if self.mask is None:
            with torch.no_grad():
                self.reset_mask(x)
        assert self.mask is not None
        return self.mask.expand_as(x) * x

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}, token_first={self.token_first}"


class VariationalDropout(_MaskedDropout):
    """Each entry by itself, for tensors of any shape.

    Example:
        >>> dropout = VariationalDropout(0.5)
        >>> x = torch.ones(2, 8)
        >>> bool((dropout(x) == dropout(x)).all())
        True
    """


class VariationalDropout1d(_MaskedDropout):
    """Whole features, `(B, L, D)`, or `(B, D, L)` with `token_first=False`."""

    dims = 1


class VariationalDropout2d(_MaskedDropout):
    """Whole features, `(B, H, W, D)`, or `(B, D, H, W)` with `token_first=False`."""

    dims = 2


class VariationalDropout3d(_MaskedDropout):
    """Whole features, `(B, T, H, W, D)`, or `(B, D, T, H, W)` with `token_first=False`."""

    dims = 3


class VariationalDropToken1d(_MaskedDropout):
    """Whole positions, `(B, L, D)`, or `(B, D, L)` with `token_first=False`."""

    dims, tokens = 1, True


class VariationalDropToken2d(_MaskedDropout):
    """Whole positions, `(B, H, W, D)`, or `(B, D, H, W)` with `token_first=False`."""

    dims, tokens = 2, True


class VariationalDropToken3d(_MaskedDropout):
    """Whole positions, `(B, T, H, W, D)`, or `(B, D, T, H, W)` with `token_first=False`."""

    dims, tokens = 3, True


def reset_dropout(model: nn.Module) -> None:
    """Forget all masks: once before each solve in training.

    Example:
        >>> dropout = VariationalDropout(0.5)
        >>> _ = dropout(torch.ones(2, 8))
        >>> reset_dropout(dropout)
        >>> dropout.mask is None
        True
    """
    for module in model.modules():
        if isinstance(module, _MaskedDropout):
            module.mask = None
