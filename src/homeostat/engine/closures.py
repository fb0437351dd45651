"""What to say of a step that fails when it gets other rows than at first: mostly it closes over a batch, and what is in
a closure cannot leave with the rows.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.surroundings import Surroundings, closed_over
from homeostat.errors import ContractError

HINT = (
    "What belongs to each example must be part of the context and not of a closure, noise must come in as context, "
    "what is the same for all examples is marked homeostat.Shared there, and where all rows are one problem (nodes of "
    "a graph, a mean over the batch) it is solved with batched=False"
)

# So many tensors of a closure are named.
_NAMED = 3

# What PyTorch raises where shapes do not fit.
_SHAPE_ERRORS = (RuntimeError, IndexError, ValueError)


# And where dtypes do not.
_OF_DTYPES = re.compile(r"dtype|scalar type|\btype \(")


def explain_dtypes(error: Exception, step: Any, arguments: Sequence[tuple[str, Any]]) -> Exception:
    """What to raise for an error of a step: one that names the dtypes where they do not fit, or the error as it is.

    Args:
        error: what was raised.
        step: the map.
        arguments: names and leaves of the state that it got, and of the context.

    Example:
        >>> weight, z = torch.eye(2), torch.zeros(1, 2, dtype=torch.float64)
        >>> print(explain_dtypes(RuntimeError("must have the same dtype"), lambda z: z @ weight, [("state", z)]))
        step mixes dtypes: state is float64, weight is float32: bring them to one of these (must have the same dtype)
    """
    if not isinstance(error, RuntimeError) or not _OF_DTYPES.search(str(error)):
        return error
    first: dict[torch.dtype, str] = {}
    for name, x in (*arguments, *Surroundings(step).tensors().items()):
        if isinstance(x, Tensor) and x.is_floating_point():
            first.setdefault(x.dtype, name)
    if len(first) < 2:
        return error
    parts = ", ".join(f"{name} is {str(dtype).removeprefix('torch.')}" for dtype, name in first.items())
    return ContractError(f"step mixes dtypes: {parts}: bring them to one of these ({_first_line(error)})")


def explain(error: Exception, step: Any, rows: int, whole: int | None, name: str = "step") -> Exception:
    """What to raise for an error that a function raised on some of its rows: with a note, or one that says more.

    Args:
        error: what was raised.
        step: the map, or another function that gets rows of the batch.
        rows: that it was called with.
        whole: rows of the batch that these are from; None in a stream, where rows come and go.
        name: what it is called.
    """
    kept = {place: x for place, x in closed_over(step).items() if x.ndim and len(x) not in (1, rows)}
    kept = {place: x for place, x in kept.items() if whole in (None, len(x))}
    sizes = {len(x) for x in kept.values()} if whole is None else {whole}
    suspects = ", ".join(f"{place} {tuple(x.shape)}" for place, x in list(kept.items())[:_NAMED])
    if len(kept) > _NAMED:
        suspects = f"{suspects} and {len(kept) - _NAMED} more"
    what = f"{name} closes over {suspects} and" if suspects else name
    count = f"{rows} row{'s' * (rows != 1)}"
    calls = f"{what} is called with {count}" + ("" if whole is None else f" of {whole}: finished rows leave")
    if isinstance(error, _SHAPE_ERRORS) and sizes & {
        int(number) for number in re.findall(r"(?<!\d)\d{1,12}(?!\d)", str(error))
    }:
        return ContractError(f"{calls}. {HINT} ({_first_line(error)})")
    if isinstance(error, (*_SHAPE_ERRORS, ContractError)) and (suspects or whole is not None):
        error.add_note(f"{calls}. {HINT}")
    return error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
