"""Functions that PyTorch's compiler runs as they are, and does not look into."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """Break the graph around a function: inside of a compiled model it runs as it does outside.

    A solve decides by values, step after step. Compiled, it would be traced for minutes, and its decisions would be
    those of the first call. `torch.compiler.disable` does the same, but brings the whole compiler in when a module is
    imported; where its parts have moved, nothing is done here.

    Example:
        >>> @uncompiled
        ... def double(x):
        ...     return 2 * x
        >>> double(2)
        4
    """
    try:
        from torch._C._dynamo import eval_frame  # pyright: ignore[reportMissingImports]

        skip = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
        eval_frame.set_code_exec_strategy(function.__code__, skip)  # frames that it calls are skipped as well
    except (ImportError, AttributeError):
        return function
    function._torchdynamo_disable = True  # pyright: ignore[reportFunctionMemberAccess]
    function._torchdynamo_disable_msg = "homeostat decides by values"  # pyright: ignore[reportFunctionMemberAccess]
    return function


def eagerly() -> AbstractContextManager[object]:
    """Compiled functions run as they were written while this lasts.

    A compiled backward pass can be taken once, and cannot be differentiated; an adjoint solve needs both.
    """
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and the import takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
