"""What to say of a step that fails when it gets other rows than at first: mostly it closes over a batch, and what is in
a closure cannot leave with the rows.
"""

import re
from typing import Any

from homeostat.engine.surroundings import closed_over
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
        return ContractError(f"{calls}. {HINT} ({str(error).strip().splitlines()[0]})")
    if isinstance(error, (*_SHAPE_ERRORS, ContractError)) and (suspects or whole is not None):
        error.add_note(f"{calls}. {HINT}")
    return error
