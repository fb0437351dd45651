"""Refusing operations in `step` that let examples of a batch depend on one another, or on chance."""

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from homeostat.errors import ContractError, ConvergenceWarning, warn_caller

_NORMS = {functional.batch_norm: "training", torch.batch_norm: 5}
_NOISE = {
    functional.dropout: "training",
    functional.dropout1d: "training",
    functional.dropout2d: "training",
    functional.dropout3d: "training",
    functional.alpha_dropout: "training",
    functional.feature_alpha_dropout: "training",
    torch.dropout: 2,
}


def refuse_batch_statistics(*, dropout: bool = False) -> AbstractContextManager[Any]:
    """While this lasts, a call of this thread that normalises by statistics of its batch raises.

    It is a mode of PyTorch's, which belongs to the thread that is in it: modules that others train are left alone.

    Args:
        dropout: warn of what draws new noise each time: a fixed point and its gradient need the same map.

    Raises:
        ContractError: (at the call) naming the module.
    """
    return _Refusal(dropout)


class _Refusal(TorchFunctionMode):
    def __init__(self, dropout: bool) -> None:
        super().__init__()
        self._dropout = dropout

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _NORMS and _argument(func, _NORMS[func], args, kwargs):
            raise ContractError(
                f"step calls {_caller(func)} in training mode: an example's answer would depend on who shares its "
                "batch. Put it in evaluation mode, or use GroupNorm or LayerNorm"
            )
        if self._dropout and func in _NOISE and _argument(func, _NOISE[func], args, kwargs):
            share = _argument(func, 1 if isinstance(_NOISE[func], int) else "p", args, kwargs)
            if share:
                warn_caller(
                    f"step calls {_caller(func)} in training mode: it draws new noise at every evaluation, so there is "
                    "no fixed point to differentiate. Put a mask of hs.nn.VariationalDropout into the context",
                    ConvergenceWarning,
                )
        return func(*args, **kwargs)


def _argument(func: Callable[..., Any], which: str | int, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An argument of a call, by its name, or by its place where the function has no signature."""
    if isinstance(which, int):
        return args[which] if which < len(args) else True
    bound = _signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments[which]


@cache
def _signature(func: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(func)


def _caller(func: Callable[..., Any]) -> str:
    """The kind of module that called the function, or the function's own name."""
    frame = sys._getframe(2)
    for _ in range(4):
        if frame is None:
            break
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return type(owner).__name__
        frame = frame.f_back
    return func.__name__
