"""Refusing modules in `step` that let examples of a batch depend on one another, or on chance."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from homeostat.errors import ContractError, ConvergenceWarning, warn_caller


class _Looking(threading.local):
    """What is looked for in the modules that this thread calls now.

    Modules that other threads call at the same time are left alone. A thread's own variable rather than a context's,
    because PyTorch's compiler can read it: a compiled cell is traced with the hook.
    """

    def __init__(self) -> None:  # called once in every thread
        self.active = False
        self.dropout = False


_looking = _Looking()


@contextmanager
def refuse_batch_statistics(*, dropout: bool = False) -> Iterator[None]:
    """While this lasts, a module that this thread calls and that normalises by statistics of its batch raises.

    Args:
        dropout: warn of modules that draw new noise each time: a fixed point and its gradient need the same map.

    Raises:
        ContractError: (when the module is called) naming it.
    """
    outer = _looking.active, _looking.dropout
    _looking.active, _looking.dropout = True, dropout or _looking.dropout
    _hook.acquire()
    try:
        yield
    finally:
        _hook.release()
        _looking.active, _looking.dropout = outer


class _Hook:
    """PyTorch's hooks on modules are those of the whole process: one is there while any thread needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._handle: RemovableHandle | None = None

    def acquire(self) -> None:
        """One more user."""
        with self._lock:
            if not self._users:
                self._handle = register_module_forward_pre_hook(_check)
            self._users += 1

    def release(self) -> None:
        """One user less."""
        with self._lock:
            self._users -= 1
            if not self._users and self._handle is not None:
                self._handle.remove()
                self._handle = None


_hook = _Hook()


def _check(module: nn.Module, _: Any) -> None:
    if not _looking.active:
        return
    if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
        raise ContractError(
            f"step calls {type(module).__name__} in training mode: an example's answer would depend on who shares "
            "its batch. Put it in evaluation mode, or use GroupNorm or LayerNorm"
        )
    if _looking.dropout and isinstance(module, _DropoutNd) and module.training and module.p > 0:
        warn_caller(
            f"step calls {type(module).__name__} in training mode: it draws new noise at every evaluation, so "
            "there is no fixed point to differentiate. Put a mask of hs.nn.VariationalDropout into the context",
            ConvergenceWarning,
        )
