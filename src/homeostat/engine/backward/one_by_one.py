"""A whole Jacobian's rows at once, `jacrev` or `is_grads_batched=True`: each is a solve with its own steps, which
`vmap` could not take together, so that they are taken one after another.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, _add_batch_dim, _remove_batch_dim  # pyright: ignore[reportPrivateImportUsage]
from torch._C._functorch import is_legacy_batchedtensor

from homeostat.errors import ContractError

Vectors = Sequence[Tensor]

# Levels of that `vmap` in one another.
_DEEP = 64


class OneByOne(torch.autograd.Function):
    """A transform of vectors that come as a whole Jacobian's rows (`jacrev`, `is_grads_batched`): one after another.

    Each is a solve with its own steps, which `vmap` could not take together.
    """

    @staticmethod
    def forward(transform: Callable[[Vectors], list[Tensor]], *vectors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(transform(vectors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: it is called without gradients."""

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], transform: Any, *vectors: Tensor) -> tuple[Any, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = []
        for k in range(info.batch_size):
            one = [g if d is None else g.select(d, k) for g, d in zip(vectors, dims[1:], strict=True)]
            found.append(OneByOne.apply(transform, *one))
        return tuple(torch.stack(leaf) for leaf in zip(*found, strict=True)), (0,) * len(vectors)


def each_alone(function: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """A `backward` or `jvp` of an autograd function that takes what PyTorch maps over one by one.

    `torch.autograd.grad(..., is_grads_batched=True)`, and `jacobian` and `hessian` with `vectorize=True`, have a `vmap`
    of their own beside that of `torch.func`, which knows no rule for most operations.
    """

    @wraps(function)
    def alone(ctx: Any, *vectors: Any) -> tuple[Tensor | None, ...]:
        mapped = [is_legacy_batchedtensor(x) if isinstance(x, Tensor) else False for x in vectors]
        if not any(mapped):
            return function(ctx, *vectors)
        level = next(_level(x) for x, m in zip(vectors, mapped, strict=True) if m)
        parts = [_remove_batch_dim(x, level, 1, 0) if m else x for x, m in zip(vectors, mapped, strict=True)]
        count = next(len(x) for x, m in zip(parts, mapped, strict=True) if m)
        found = [alone(ctx, *(x[k] if m else x for x, m in zip(parts, mapped, strict=True))) for k in range(count)]
        return tuple(_together(leaf, level) for leaf in zip(*found, strict=True))

    return alone


def _level(x: Tensor) -> int:
    """At which a tensor is mapped over."""
    for level in range(1, _DEEP):
        if not is_legacy_batchedtensor(_remove_batch_dim(x, level, 1, 0)):
            return level
    raise ContractError("gradients in batches of batches (is_grads_batched=True) are not known here: give one batch")


def _together(values: Sequence[Tensor | None], level: int) -> Tensor | None:
    one = next((x for x in values if x is not None), None)
    if one is None:
        return None
    whole = torch.stack([torch.zeros_like(one) if x is None else x for x in values])
    return _add_batch_dim(whole, 0, level)
