"""States and contexts: tensors or nests of tensors, batch first.

The engine works on the list of leaves; a `Layout` remembers the nest, which leaves are measured, and their names, so
that an error can say which leaf it means. Nothing is inferred from a size: what is not per example says so (`Shared`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.errors import ContractError

Kind = Literal["measured", "carried", "shared"]


@dataclass(frozen=True)
class Shared:
    """Marks a part of a context that is the same for every example: a mask, a rotary table, a scalar.

    `step` receives the bare value; the engine never selects rows of it.

    Example:
        >>> import torch, homeostat as hs
        >>> context = {"input": torch.ones(4, 3), "gain": hs.Shared(torch.tensor(0.5))}
        >>> solution = hs.solve(lambda z, c: c["gain"] * z + c["input"], torch.zeros(4, 3), context)
        >>> solution.state[0].round(decimals=2)
        tensor([2., 2., 2.])
    """

    value: Any


@dataclass(frozen=True)
class Carry:
    """Marks a floating leaf of a state that is carried along but not measured; to `Implicit` it is a constant.

    `step` receives the bare tensor and may return it bare; `Solution.state` has the mark again.

    Example:
        >>> import torch, homeostat as hs
        >>> state = (torch.zeros(2, 3), hs.Carry(torch.zeros(2)))  # the second leaf counts steps
        >>> solution = hs.solve(lambda s, _: (0.5 * s[0] + 1, s[1] + 1), state)
        >>> bool((solution.state[1].value == solution.steps).all())
        True
    """

    value: Tensor


def is_mark(node: Any) -> bool:
    """Whether this is a marked part: a leaf, whatever is in it."""
    return isinstance(node, Shared | Carry)


@dataclass(frozen=True)
class Layout:
    """How a list of leaves makes up a nest."""

    role: Literal["state", "context"]
    spec: pytree.TreeSpec
    kinds: tuple[Kind, ...]
    marked: tuple[bool, ...]
    names: tuple[str, ...]
    single: bool = False
    """The batch has one row that the caller never sees: shapes are told without it."""

    @cached_property
    def lone(self) -> bool:
        """The nest is one bare tensor: the common case, which is spared the taking apart and putting together."""
        return self.spec.is_leaf() and not self.marked[0]

    def measured(self) -> list[int]:
        """Positions of the leaves that residuals are taken over."""
        return [i for i, kind in enumerate(self.kinds) if kind == "measured"]

    def build(self, leaves: Sequence[Any], *, marks: bool = False) -> Any:
        """The nest with these leaves; with `marks`, carried leaves are wrapped in `Carry` again."""
        if self.lone:
            return leaves[0]
        if marks:
            leaves = [Carry(x) if m else x for x, m in zip(leaves, self.marked, strict=True)]
        return pytree.tree_unflatten(list(leaves), self.spec)

    def read(self, tree: Any, like: Sequence[Tensor]) -> list[Tensor]:
        """Leaves of what `step` returned, which must match the leaves `like` in structure, shape, dtype and device.

        Raises:
            ContractError: naming the leaf that differs.
        """
        if self.lone and isinstance(tree, Tensor):
            old = like[0]
            if tree.shape == old.shape and tree.dtype == old.dtype and tree.device == old.device:
                return [tree]
        try:
            found = self.spec.flatten_up_to(tree)
        except ValueError:
            raise ContractError(self._structure_error(tree)) from None
        leaves = [x.value if isinstance(x, Carry) else x for x in found]
        for i, (new, old) in enumerate(zip(leaves, like, strict=True)):
            if isinstance(new, Tensor) and new.shape == old.shape and new.device == old.device:
                if new.dtype == old.dtype:
                    continue
                if new.is_floating_point() and torch.is_autocast_enabled(new.device.type):
                    leaves[i] = new.to(old.dtype)
                    continue
            raise ContractError(self._leaf_error(self.names[i], old, new))
        return leaves

    def _leaf_error(self, name: str, old: Tensor, new: Any) -> str:
        hint = ""
        if new is None:
            hint = "; does step return its new state?"
        elif isinstance(new, Tensor) and not self.single and new.shape[:1] != old.shape[:1]:
            hint = f"; the first dimension is the batch: {_ONE}"
        return f"step changed {name}: {describe(old, self.single)} became {describe(new, self.single)}{hint}"

    def _structure_error(self, tree: Any) -> str:
        paths = {_name(self.role, path) for path, _ in pytree.tree_flatten_with_path(tree, is_leaf=is_mark)[0]}
        missing = [name for name in self.names if name not in paths]
        extra = sorted(paths.difference(self.names))
        parts = [f"{name} is missing" for name in missing[:1]] + [f"{name} is new" for name in extra[:1]]
        return f"step changed the structure of its state: {' and '.join(parts) or 'the containers differ'}"


_ONE = "if all of it is one problem, solve it with batched=False"


def _name(role: str, path: Any) -> str:
    return role + pytree.keystr(path)


def describe(value: Any, single: bool = False) -> str:
    """What a value is, for an error: `float32 (2, 3) on cpu`; `single` leaves out the row of a single problem."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype} {tuple(value.shape[single:])} on {value.device}"
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def flatten(tree: Any, role: Literal["state", "context"]) -> tuple[list[Any], Layout]:
    """Leaves of a state or context, bare of marks, and the layout that puts them together again.

    Raises:
        ContractError: a leaf that is neither a tensor nor marked, a complex state, or one without a floating leaf.
    """
    pairs, spec = pytree.tree_flatten_with_path(tree, is_leaf=is_mark)
    leaves: list[Any] = []
    kinds: list[Kind] = []
    names: list[str] = []
    for path, node in pairs:
        name = _name(role, path)
        names.append(name)
        if isinstance(node, Shared):
            if role == "state":
                raise ContractError(f"{name} is marked Shared; every part of a state is per example")
            leaves.append(node.value)
            kinds.append("shared")
            continue
        value = node.value if isinstance(node, Carry) else node
        if value is None and role == "context":
            leaves.append(None)
            kinds.append("shared")
            continue
        if not isinstance(value, Tensor):
            hint = "wrap it in homeostat.Shared" if role == "context" else "a state holds tensors only"
            raise ContractError(f"{name} is {describe(value)}, not a tensor: {hint}")
        if value.ndim == 0:
            hint = "wrap it in homeostat.Shared" if role == "context" else f"a state is batch first; {_ONE}"
            raise ContractError(f"{name} has no batch dimension: {hint}")
        if value.is_complex() and role == "state":
            raise ContractError(f"{name} is complex; give it as torch.view_as_real(...)")
        leaves.append(value)
        kinds.append("carried" if isinstance(node, Carry) or not value.is_floating_point() else "measured")
    layout = Layout(role, spec, tuple(kinds), tuple(isinstance(n, Carry) for _, n in pairs), tuple(names))
    if role == "state" and "measured" not in kinds:
        raise ContractError("the state has no floating leaf to measure convergence by")
    return leaves, layout


def count_rows(state: Sequence[Tensor], layout: Layout, context: Sequence[Any], context_layout: Layout) -> int:
    """Number of examples, the same in every leaf that is per example.

    Raises:
        ContractError: naming the leaf whose first dimension differs.
    """
    rows = state[0].shape[0]
    entries = list(zip(layout.names, layout.kinds, state, strict=True))
    entries += list(zip(context_layout.names, context_layout.kinds, context, strict=True))
    for name, kind, leaf in entries:
        if kind != "shared" and leaf.shape[0] != rows:
            hint = "mark it homeostat.Shared if it is not per example; " if name.startswith("context") else ""
            raise ContractError(f"{name} has {leaf.shape[0]} rows, {layout.names[0]} has {rows}; {hint}{_ONE}")
    return rows


def select(leaves: Sequence[Any], layout: Layout, index: Tensor) -> list[Any]:
    """The rows `index` of every leaf that is per example."""
    return [
        leaf if kind == "shared" else leaf.index_select(0, index)
        for leaf, kind in zip(leaves, layout.kinds, strict=True)
    ]


def append(parts: Sequence[Sequence[Any]], layout: Layout) -> list[Any]:
    """The rows of several batches with one layout, one behind the other; what is shared is taken from the first."""
    return [
        pieces[0] if kind == "shared" else torch.cat(pieces) for kind, *pieces in zip(layout.kinds, *parts, strict=True)
    ]


def zero_rows(leaf: Tensor, count: int) -> Tensor:
    """The leaf with so many rows of zeros behind its own."""
    return torch.cat([leaf, leaf.new_zeros(count, *leaf.shape[1:])])


def merge_rows(leaves: Sequence[Tensor], index: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
    """`leaves` with their rows `index` replaced by `rows`; gradients flow to both."""
    return [old.index_copy(0, index, new) for old, new in zip(leaves, rows, strict=True)]
