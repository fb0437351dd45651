"""Two results of one function, compared leaf by leaf."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine.nest import Carry, Shared

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_LESS_EXACT = 50.0
"""Times so much on devices other than a CPU, whose convolutions may round to TF32."""


@dataclass(frozen=True)
class Difference:
    """The leaf that differs most."""

    leaf: str
    size: float
    """Largest difference over the root mean square of the leaf; of whole numbers the share that differs; infinite where
    shapes or what is finite differ."""
    tolerance: float

    @property
    def beyond(self) -> bool:
        return not self.size <= self.tolerance

    def __str__(self) -> str:
        if self.size == float("inf"):
            return f"{self.leaf} has another shape, or is finite in one and not in the other"
        return f"{self.leaf} differs by {self.size:.2g} of its root mean square (tolerance {self.tolerance:.0e})"


def named_leaves(tree: Any, role: str) -> dict[str, Any]:
    """Leaves without their marks, by name: `state['hidden']`."""
    pairs = pytree.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, Shared | Carry))[0]
    return {role + pytree.keystr(path): x.value if isinstance(x, Shared | Carry) else x for path, x in pairs}


def largest(first: Any, second: Any, role: str, rtol: float | None, *, exact: bool = False) -> Difference:
    """Where two nests differ most. `exact`: nothing but the device may have changed an order."""
    ours, theirs = named_leaves(first, role), named_leaves(second, role)
    if ours.keys() != theirs.keys():
        return Difference(f"the structure of {role}", float("inf"), 0.0)
    found = [_difference(name, ours[name], theirs[name], rtol, exact) for name in ours]
    return max(found, key=lambda d: (d.beyond, d.size), default=Difference(role, 0.0, 0.0))


def _difference(name: str, a: Any, b: Any, rtol: float | None, exact: bool) -> Difference:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        same = type(a) is type(b) and (isinstance(a, Tensor) or a is b or a == b)
        return Difference(name, 0.0 if same else float("inf"), 0.0)
    if a.shape != b.shape or a.dtype != b.dtype:
        return Difference(name, float("inf"), 0.0)
    if a.numel() == 0:
        return Difference(name, 0.0, 0.0)
    if not a.is_floating_point():
        return Difference(name, float((a != b).double().mean()), 0.0)
    tolerance = tolerance_of(a, rtol, exact)
    a, b = a.double(), b.double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return Difference(name, float("inf"), tolerance)
    a, b = a[a.isfinite()], b[b.isfinite()]
    if a.numel() == 0:
        return Difference(name, 0.0, tolerance)
    scale = float(b.square().mean().sqrt()) or 1.0
    return Difference(name, float((a - b).abs().max()) / scale, tolerance)


def tolerance_of(leaf: Tensor, rtol: float | None, exact: bool = False) -> float:
    """What rounding may do: batches of other sizes are added up in another order."""
    if rtol is not None:
        return rtol
    if exact:
        return 64 * torch.finfo(leaf.dtype).eps
    allowed = _TOLERANCES.get(leaf.dtype, 1e-1)
    return allowed if leaf.device.type == "cpu" else min(0.2, _LESS_EXACT * allowed)


def rows_of(tree: Any, rows: Sequence[int]) -> Any:
    """Some rows of every tensor of a nest; what is `Shared` stays, and so does what is no tensor."""

    def cut(leaf: Any) -> Any:
        if isinstance(leaf, Shared) or not isinstance(leaf, Carry | Tensor):
            return leaf
        if isinstance(leaf, Carry):
            return Carry(cut(leaf.value))
        return leaf[torch.tensor(list(rows), dtype=torch.long, device=leaf.device)] if leaf.ndim else leaf

    return pytree.tree_map(cut, tree, is_leaf=lambda node: isinstance(node, Shared | Carry))


def copied(tree: Any) -> Any:
    """The nest with copies of its tensors."""

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, Shared | Carry):
            return type(leaf)(copy(leaf.value))
        return leaf.clone() if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(copy, tree, is_leaf=lambda node: isinstance(node, Shared | Carry))
