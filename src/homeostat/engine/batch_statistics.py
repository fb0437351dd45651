"""Refusing modules in `step` that let examples of a batch depend on one another, or on chance."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook

from homeostat.errors import ContractError, ConvergenceWarning


@contextmanager
def refuse_batch_statistics(*, dropout: bool = False) -> Iterator[None]:
    """While this lasts, a module that normalises by statistics of its batch raises.

    Args:
        dropout: warn of modules that draw new noise each time: a fixed point and its gradient need the same map.

    Raises:
        ContractError: (when the module is called) naming it.
    """

    def check(module: nn.Module, _: Any) -> None:
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise ContractError(
                f"step calls {type(module).__name__} in training mode: an example's answer would depend on who shares "
                "its batch. Put it in evaluation mode, or use GroupNorm or LayerNorm"
            )
        if dropout and isinstance(module, _DropoutNd) and module.training and module.p > 0:
            warnings.warn(
                f"step calls {type(module).__name__} in training mode: it draws new noise at every evaluation, so "
                "there is no fixed point to differentiate. Put a mask of nn.VariationalDropout into the context",
                ConvergenceWarning,
                stacklevel=2,
            )

    handle = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()
