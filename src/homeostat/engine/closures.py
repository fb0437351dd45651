"""What to say of a step that fails when it gets other rows than at first: mostly it closes over a batch, and what is in
a closure cannot leave with the rows.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from homeostat.engine.step_function import StateOnly
from homeostat.errors import ContractError

HINT = (
    "What belongs to each example must be part of the context and not of a closure, what is the same for all of them "
    "is marked homeostat.Shared there, and where all rows are one problem it is solved with batched=False"
)

# What PyTorch raises where shapes do not fit.
_SHAPE_ERRORS = (RuntimeError, IndexError, ValueError)
_DEPTH = 3


def closed_over(step: Any, depth: int = _DEPTH) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors that a step has beside its arguments: in its closure or those of functions in it, among the
    globals that it names, bound to it, or as attributes of the object that it is. Parameters and buffers do not count.

    Example:
        >>> import torch
        >>> inputs = torch.ones(4, 2)
        >>> [name for name, _ in closed_over(lambda z: z + inputs)]
        ['inputs']
    """
    while isinstance(step, StateOnly):
        step = step.step
    if not depth:
        return
    inner: list[Any]
    if isinstance(step, FunctionType):
        code = step.__code__
        cells = dict(zip(code.co_freevars, map(_content, step.__closure__ or ()), strict=False))
        yield from _tensors(cells)
        yield from _tensors({name: step.__globals__[name] for name in code.co_names if name in step.__globals__})
        inner = list(cells.values())
    elif isinstance(step, partial):
        yield from _tensors({f"argument {i}": x for i, x in enumerate(step.args)} | step.keywords)
        inner = [step.func]
    elif isinstance(step, MethodType):
        yield from _tensors(getattr(step.__self__, "__dict__", {}))
        inner = [step.__func__]
    else:
        attributes = getattr(step, "__dict__", {})
        yield from _tensors(attributes)
        name = "forward" if isinstance(step, nn.Module) else "__call__"
        inner = [getattr(type(step), name, None), *attributes.values()]
    for held in inner:
        function = getattr(held, "__dict__", {}).get("step", held)  # what the engine itself wraps around a step has it
        if isinstance(function, FunctionType | MethodType | partial):
            yield from closed_over(function, depth - 1)


def _tensors(named: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    return ((name, x) for name, x in named.items() if isinstance(x, Tensor) and not isinstance(x, nn.Parameter))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def explain(error: Exception, step: Any, rows: int, whole: int | None) -> Exception:
    """What to raise for an error that a step raised on some of its rows: the error with a note, or one that says more.

    Args:
        error: what was raised.
        step: the map.
        rows: that it was called with.
        whole: rows of the batch that these are from; None in a stream, where rows come and go.
    """
    kept = {name: x for name, x in closed_over(step) if x.ndim and len(x) not in (1, rows)}
    kept = {name: x for name, x in kept.items() if whole in (None, len(x))}
    sizes = {len(x) for x in kept.values()} if whole is None else {whole}
    suspects = ", ".join(f"{name} {tuple(x.shape)}" for name, x in kept.items())
    what = f"step closes over {suspects} and" if suspects else "step"
    count = f"{rows} row{'s' * (rows != 1)}"
    calls = f"{what} is called with {count}" + ("" if whole is None else f" of {whole}: finished rows leave")
    if isinstance(error, _SHAPE_ERRORS) and sizes & {int(number) for number in re.findall(r"\b\d{1,12}\b", str(error))}:
        return ContractError(f"{calls}. {HINT} ({str(error).strip().splitlines()[0]})")
    if isinstance(error, (*_SHAPE_ERRORS, ContractError)) and (suspects or whole is not None):
        error.add_note(f"{calls}. {HINT}")
    return error
