"""Checks of batches: does an example's answer depend on who shares its batch?"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine.nest import Carry, Shared, flatten
from homeostat.models.conformance.case import Case, Untested, Wrong, examples, said
from homeostat.models.conformance.differences import Difference, largest, named_leaves, rows_of
from homeostat.models.conformance.repeats import shared_is_shared


def context_rows(case: Case) -> str:
    """Every part of the context has one row an example, or is marked `Shared`."""
    case.need("encode")
    leaves, layout = flatten(case.context, "context")
    for name, kind, leaf in zip(layout.names, layout.kinds, leaves, strict=True):
        if kind != "shared" and len(leaf) != case.rows:
            raise Wrong(
                f"encode: {name} has {len(leaf)} rows for {examples(case.rows)}; its first dimension must be the "
                "batch, or it must be marked homeostat.Shared if it is the same for all"
            )
    if case.rows < 2:
        raise Untested("needs 2 examples")
    fewer = list(range(case.rows - 1))
    part = case.model.encode(rows_of(case.inputs, fewer))
    found = named_leaves(part, "context")
    for name, kind, leaf in zip(layout.names, layout.kinds, leaves, strict=True):
        here = found.get(name)
        if kind == "shared" or not isinstance(here, Tensor):
            continue
        if here.ndim and len(here) == case.rows and len(leaf) == case.rows:
            raise Wrong(
                f"encode: {name} has {len(here)} rows for {examples(len(fewer))} as for {examples(case.rows)}: it is "
                "not per example, it only happens to have as many rows. Mark it homeostat.Shared"
            )
    if found.keys() != named_leaves(case.context, "context").keys():
        raise Wrong(f"encode gives another structure for {examples(len(fewer))} than for {examples(case.rows)}")
    shared_is_shared(case, part, fewer)
    return "one row an example, or Shared"


def same_in_any_batch(case: Case) -> tuple[str, Difference]:
    """Each function gives an example the same alone, in another order, and among copies of itself."""
    case.need("encode", "initial_state", "step")
    if case.random:
        raise Untested("two calls differ anyway, see repeatable")
    if case.rows < 2:
        raise Untested("needs 2 examples")
    last = case.rows - 1
    batches = {f"example {row} alone": [row] for row in sorted({0, case.rows // 2, last})}
    batches["the examples in reverse order"] = [*reversed(range(case.rows))]
    batches["example 0 among copies of itself"] = [0] * case.rows
    batches["example 0 with other neighbours"] = [0, *range(case.rows // 2 + 1, case.rows)]
    worst = Difference("", 0.0, 0.0)
    for state in (case.state, case.later):
        after = case.step(state, case.context)
        calls: dict[str, tuple[str, Any, Callable[[list[int]], Any]]] = {
            "encode": ("context", case.context, lambda rows: case.model.encode(rows_of(case.inputs, rows))),
            "initial_state": ("state", case.state, lambda rows: case.start(rows_of(case.context, rows), rows)),
            "step": ("state", after, lambda rows, state=state: case.step(*_cut(case, state, rows))),
        }
        for name, role in (("decode", "outputs"), ("score", "score")):
            if name not in case.unsure and (whole := case.read(name, state, case.context)) is not None:
                calls[name] = (
                    role,
                    whole,
                    lambda rows, state=state, name=name: case.read(name, *_cut(case, state, rows)),
                )
        for function, (role, whole, call) in calls.items():
            for what, rows in batches.items():
                found = _compared(case, function, role, whole, call, what, rows)
                worst = max(worst, found, key=lambda d: (d.size, d.tolerance))
    return "alone, in another order, among copies and with other neighbours", worst


def _compared(
    case: Case, function: str, role: str, whole: Any, call: Callable[[list[int]], Any], what: str, rows: list[int]
) -> Difference:
    try:
        part = call(rows)
    except Exception as error:
        raise Wrong(f"{function} fails for {what}: {said(error)}; it must take any batch of examples") from error
    found = largest(_own(part), _own(rows_of(whole, rows)), role, case.rtol)
    if found.beyond:
        raise Wrong(
            f"{function} gives something else for {what} than in the batch of {case.rows}: {found}. It must treat "
            "every example by itself: no mean over the batch, no batch norm in training mode, no row by its number",
            found,
        )
    return found


def _cut(case: Case, state: Any, rows: list[int]) -> tuple[Any, Any]:
    return rows_of(state, rows), rows_of(case.context, rows)


def _own(tree: Any) -> Any:
    """What belongs to examples: what is shared has a check of its own."""
    return pytree.tree_map(
        lambda leaf: None if isinstance(leaf, Shared) else leaf, tree, is_leaf=lambda x: isinstance(x, Shared | Carry)
    )


def few_rows(case: Case) -> str:
    """A batch of one example runs, and one of none gives nothing or says so."""
    case.need("encode", "initial_state", "step")
    note = ""
    for count in (1, 0):
        rows = list(range(count))
        try:
            context = case.model.encode(rows_of(case.inputs, rows))
            state = case.start(context, rows)
            state = case.step(state, context)
            outputs = case.read("decode", state, context) if "decode" not in case.unsure else state
        except Exception as error:
            if count == 0:
                note = f"; an empty one is refused ({said(error)}), which is never asked for"
                continue
            raise Wrong(f"a batch of one example fails: {said(error)}; it must run like any other") from error
        for role, tree in (("state", state), ("outputs", outputs)):
            for name, leaf in named_leaves(tree, role).items():
                if isinstance(leaf, Tensor) and (leaf.ndim == 0 or len(leaf) != count):
                    raise Wrong(f"{name} has shape {tuple(leaf.shape)} for a batch of {examples(count)}; its first "
                                "dimension must be the batch")  # fmt: skip
    return "a batch of one runs" + (note or ", and so does an empty one")
