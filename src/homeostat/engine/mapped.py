"""`solve` under `torch.vmap`: what is mapped over becomes rows of one batch, and the answer is mapped again.

A solve decides row by row when it is done, which `vmap` cannot do with its own examples. They are rows like others, so
that they are taken out of the map, solved beside one another, and put back. What is not per example (`Shared`) and is
mapped over, as the weights of several models are, is handed to `step` row by row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    CVmapInterpreterPtr,
    TransformType,
    _add_batch_dim,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_bdim,
    maybe_get_level,
    peek_interpreter_stack,
)
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from homeostat.engine.nest import Carry, Layout, Shared, count_rows, flatten, is_mark
from homeostat.engine.solution import Solution
from homeostat.engine.stop import Stop
from homeostat.engine.surroundings import Surroundings
from homeostat.errors import ContractError

Step = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Mapping:
    """One level of `vmap` around a solve."""

    level: int
    size: int

    @classmethod
    def around(cls, step: Step, state: Any, context: Any, stop: Stop) -> "Mapping | None":
        """The innermost `vmap`, where it has to be taken off; None where nothing is mapped over.

        Raises:
            ContractError: what `step` closes over is mapped, or `vmap` is outside of `grad` or `jvp`.
        """
        top = peek_interpreter_stack()
        if top is None:
            return None
        tensors = _tensors((state, context, stop.rtol, stop.max_steps))
        closed = {name: _levels(x) for name, x in Surroundings(step).tensors().items()}
        mapped = [name for name, levels in closed.items() if levels]
        if mapped:
            raise ContractError(
                f"step closes over {', '.join(mapped)}, which vmap maps over: pass it in the context, marked "
                "homeostat.Shared where it is not per example"
            )
        if not any(_levels(x) for x in tensors):
            return None
        if top.key() != TransformType.Vmap:
            raise ContractError(
                "solve cannot run under a vmap that is outside of grad, vjp or jvp: put the vmap inside of them, or "
                "give those examples as rows of the batch"
            )
        return cls(top.level(), CVmapInterpreterPtr(top).batchSize())

    def solve(self, solve: Callable[..., Solution], step: Step, state: Any, context: Any, stop: Stop) -> Solution:
        """The solution for all that is mapped over, mapped again.

        Args:
            solve: solves one batch: from a step, its state and context, and a stop.
            step, state, context, stop: see `homeostat.solve`.
        """
        leaves, layout = flatten(state, "state")
        given, context_layout = flatten(context, "context")
        rows = count_rows(leaves, layout, given, context_layout)
        given = [pytree.tree_map_only(Tensor, self._bare, x) for x in given]
        leaves = [self._bare(x) for x in leaves]
        stop = replace(stop, rtol=self._limits(stop.rtol), max_steps=self._limits(stop.max_steps))
        with temporarily_pop_interpreter_stack():
            merged = layout.build([_merge(self._whole(x)) for x in leaves], marks=True)
            parts, one = self._parts(given, context_layout, rows)
            known = _without_strays(step)
            inner = _for_each_row(known, layout, one) if one.declared else _for_rows(known, one)
            found = solve(inner, merged, parts, stop)
            fields = ("steps", "residual", "status", "trace")
            values = {name: self._split(getattr(found, name), rows) for name in fields}
            nest = _each_leaf(lambda x: self._split(x, rows), found.state)
        wrapped = {name: self._mapped(x) for name, x in values.items()}
        return replace(found, state=_each_leaf(self._mapped, nest), **wrapped)

    def _parts(self, given: list[Any], layout: Layout, rows: int) -> tuple[list[Any], "_Context"]:
        """The context as a list of leaves for the rows of all that is mapped over, and how it is put together."""
        parts: list[Any] = []
        declared: list[int] = []
        for i, (leaf, kind) in enumerate(zip(given, layout.kinds, strict=True)):
            if kind != "shared":
                parts.append(_merge(self._whole(leaf)))
            elif any(isinstance(x, _Bare) for x in pytree.tree_leaves(leaf)):
                declared.append(i)
                parts.append(Shared(pytree.tree_map_only((_Bare, Tensor), self._whole, leaf)))
            else:
                parts.append(Shared(leaf))
        device = next(x.device for x in _tensors([*parts, torch.zeros(0)]))
        owner = torch.arange(self.size, device=device).repeat_interleave(rows)
        return [*parts, owner], _Context(layout, tuple(declared))

    def _bare(self, leaf: Tensor) -> "Tensor | _Bare":
        if is_batchedtensor(leaf) and maybe_get_level(leaf) == self.level:
            return _Bare(get_unwrapped(leaf), maybe_get_bdim(leaf))
        return leaf

    def _whole(self, leaf: "Tensor | _Bare") -> Tensor:
        """With what is mapped over as its first dimension."""
        if isinstance(leaf, _Bare):
            return leaf.tensor.movedim(leaf.place, 0)
        return leaf.unsqueeze(0).expand(self.size, *leaf.shape)

    def _limits(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        bare = self._bare(value)
        with temporarily_pop_interpreter_stack():
            return _merge(self._whole(bare))

    def _split(self, value: Tensor | None, rows: int) -> Tensor | None:
        return None if value is None else value.unflatten(0, (self.size, rows))

    def _mapped(self, value: Tensor | None) -> Tensor | None:
        return None if value is None else _add_batch_dim(value, 0, self.level)


@dataclass(frozen=True)
class _Bare:
    """A mapped tensor taken apart."""

    tensor: Tensor
    place: int


@dataclass(frozen=True)
class _Context:
    """How the leaves of a context that `Mapping` made go back together."""

    layout: Layout
    declared: tuple[int, ...]
    """Leaves that are not per example but mapped over."""


def unmapped(step: Step) -> Step:
    """The step of a solve none of whose parts is seen to be mapped over, and of which nothing else may be.

    Raises:
        ContractError: (the step) its result is mapped over, by something that was not found.
    """
    if not any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or ()):
        return step

    @wraps(step, assigned=(), updated=())
    def checked(state: Any, context: Any) -> Any:
        after = step(state, context)
        if any(_levels(x) for x in _tensors(after)):
            raise _hidden()
        return after

    return checked


def _without_strays(step: Step) -> Step:
    """The step, which says so where it uses what is mapped over outside of its arguments."""

    @wraps(step, assigned=(), updated=())
    def guarded(state: Any, context: Any) -> Any:
        with _NoStrays():
            return step(state, context)

    return guarded


class _NoStrays(TorchFunctionMode):
    """While this lasts, a tensor that a `vmap` maps over which is not at work raises: it came in past the arguments."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for x in pytree.tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and is_functorch_wrapped_tensor(x) and _is_stray(x):
                raise _hidden(x)
        return func(*args, **(kwargs or {}))


def _is_stray(tensor: Tensor) -> bool:
    sizes = {
        level.level(): CVmapInterpreterPtr(level).batchSize()
        for level in get_interpreter_stack() or ()
        if level.key() == TransformType.Vmap
    }
    while is_functorch_wrapped_tensor(tensor):
        inside = get_unwrapped(tensor)
        # A `vmap` over single rows may have the level of the one that was taken off.
        if is_batchedtensor(tensor) and sizes.get(maybe_get_level(tensor)) != inside.shape[maybe_get_bdim(tensor)]:
            return True
        tensor = inside
    return False


def _hidden(tensor: Tensor | None = None) -> ContractError:
    what = "what vmap maps over" if tensor is None else f"a tensor of shape {tuple(tensor.shape)} that vmap maps over"
    return ContractError(
        f"step uses {what}, and it was found neither in the state, the context nor the closure: pass it in the "
        "context, marked homeostat.Shared where it is not per example"
    )


def _for_rows(step: Step, context: _Context) -> Step:
    """The step, for the rows of all that is mapped over."""

    @wraps(step, assigned=(), updated=())
    def rows(state: Any, leaves: list[Any]) -> Any:
        return step(state, context.layout.build(leaves[:-1]))

    return rows


def _for_each_row(step: Step, layout: Layout, context: _Context) -> Step:
    """The step as a map over single rows, each with what was declared for it."""

    @wraps(step, assigned=(), updated=())
    def rows(state: Any, leaves: list[Any]) -> Any:
        *parts, owner = leaves
        for i in context.declared:
            parts[i] = pytree.tree_map_only(Tensor, lambda x: x.index_select(0, owner), parts[i])
        kinds = context.layout.kinds
        per_row = [kind != "shared" or i in context.declared for i, kind in enumerate(kinds)]

        def one(single: list[Tensor], own: list[Any]) -> list[Tensor]:
            mine = iter(own)
            alone = [x.unsqueeze(0) for x in single]
            whole = [
                (next(mine) if kind == "shared" else next(mine).unsqueeze(0)) if mapped else part
                for kind, mapped, part in zip(kinds, per_row, parts, strict=True)
            ]
            after = layout.read(step(layout.build(alone), context.layout.build(whole)), alone)
            return [x.squeeze(0) for x in after]

        flat = layout.spec.flatten_up_to(state) if not layout.lone else [state]
        own = [part for mapped, part in zip(per_row, parts, strict=True) if mapped]
        return layout.build(torch.vmap(one)(flat, own), marks=True)

    return rows


def _each_leaf(change: Callable[[Tensor], Any], nest: Any) -> Any:
    """A nest with its leaves changed, those in marks too."""

    def changed(leaf: Any) -> Any:
        return Carry(change(leaf.value)) if isinstance(leaf, Carry) else change(leaf)

    return pytree.tree_map(changed, nest, is_leaf=is_mark)


def _merge(leaf: Tensor) -> Tensor:
    return leaf.flatten(0, 1)


def _tensors(tree: Any) -> list[Tensor]:
    """All tensors of a nest, those in marks too."""
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "value"):
            found += _tensors(leaf.value)
    return found


def _levels(tensor: Tensor) -> list[int]:
    """The levels of `vmap` that map over a tensor."""
    levels = []
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            levels.append(maybe_get_level(tensor))
        tensor = get_unwrapped(tensor)
    return levels
