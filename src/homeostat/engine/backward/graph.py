"""The graph that a recorded evaluation left: its nodes, the tensors that it comes from, and whether it still holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree

from homeostat.engine.norms import norm_dtype
from homeostat.errors import ContractError

_SUMMED = (torch.float32, torch.float64)

Edge = tuple[Node, int]

# Sums of the same numbers that were added up in another order differ by no more than this share of their sizes.
_SAME_SUM = 1e-5


def mark() -> int:
    """Number of the next node that this thread records; what has a lower one was there before.

    Example:
        >>> before, x = mark(), torch.ones(1, requires_grad=True)
        >>> (2 * x).grad_fn._sequence_nr() >= before
        True
    """
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Graph:
    """What lies between some outputs and what they were computed from.

    Attributes:
        nodes: of the recorded evaluation itself.
        sources: tensors that gradients flow to beside `inputs`: parameters, and known tensors that have a graph of
            their own.
        foreign: edges into graphs from before, of tensors that nobody named.
    """

    nodes: list[Node]
    sources: list[Tensor]
    foreign: list[Edge]

    @classmethod
    def of(cls, outputs: Sequence[Tensor], inputs: Sequence[Tensor], known: Sequence[Tensor], first: int) -> "Graph":
        """Follow the graph from `outputs` backwards.

        Args:
            outputs: recorded tensors.
            inputs: leaves that are not counted as sources.
            known: tensors with a graph of their own that the outputs may come from.
            first: what `mark` gave before they were recorded.

        Example:
            >>> weight, z = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
            >>> first = mark()
            >>> Graph.of([torch.tanh(weight * z)], [z], [], first).sources[0] is weight
            True
        """
        own = {id(x) for x in inputs}
        places = {edge: x for x in known if (edge := _edge(x)) is not None}
        nodes: list[Node] = []
        sources: dict[int, Tensor] = {}
        foreign: list[Edge] = []
        seen: set[Any] = set()
        for output in outputs:
            if output.is_leaf and output.requires_grad and id(output) not in own:
                sources[id(output)] = output
        waiting = [edge for x in outputs if (edge := _edge(x)) is not None]
        while waiting:
            edge = waiting.pop()
            node = edge[0]
            leaf = getattr(node, "variable", None)  # only nodes that accumulate into a leaf have one
            if leaf is not None:
                if id(leaf) not in own:
                    sources[id(leaf)] = leaf
            elif edge in places:
                sources[id(places[edge])] = places[edge]
            elif node._sequence_nr() < first:  # pyright: ignore[reportAttributeAccessIssue]
                if edge not in seen:
                    seen.add(edge)
                    foreign.append(edge)
            elif node not in seen:
                seen.add(node)
                nodes.append(node)
                waiting += [(fn, nr) for fn, nr in node.next_functions if fn is not None]
        return cls(nodes, list(sources.values()), foreign)


def _edge(tensor: Tensor) -> Edge | None:
    return None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


class Seal:
    """The values that a graph keeps for its backward pass, in a few sums, and the question whether they are the same.

    PyTorch notices that a kept tensor was changed in place, by its version. A change through `.data`, NumPy or another
    process leaves the version as it was, and gradients would be those of another map.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._sums = _together([_sums(x) for x in _kept(nodes)])

    def check(self) -> None:
        """Compare with what is kept now.

        Raises:
            ContractError: some value is another one.
        """
        try:
            kept = list(_kept(self._nodes))
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):  # freed, by a backward pass before this one
                raise
            raise _changed(str(error).split(". ")[0]) from error
        sums = _together([_sums(x) for x in kept])
        if torch.equal(sums, self._sums):
            return
        if len(sums) != len(self._sums):
            raise _changed("a tensor has another shape")
        # Another order of adding up gives other roundings; and a NaN is not equal to itself.
        sizes = _together([_sums(x, sizes=True) for x in kept])
        alike = torch.isclose(sums, self._sums, rtol=0, atol=0, equal_nan=True) | (
            (sums - self._sums).abs() <= _SAME_SUM * sizes
        )
        if not bool(alike.all()):
            ends = torch.tensor([len(_sums(x)) for x in kept]).cumsum(0)
            first = kept[int((ends <= int((~alike).nonzero()[0])).sum())]
            raise _changed(f"a {str(first.dtype)[6:]} tensor of shape {tuple(first.shape)}")


def _together(sums: Sequence[Tensor]) -> Tensor:
    """One vector, on the device of the first."""
    if len({x.device for x in sums}) > 1:
        sums = [x.to(sums[0].device) for x in sums]
    return torch.cat(list(sums)) if sums else torch.zeros(0)


def _kept(nodes: Sequence[Node]) -> Iterator[Tensor]:
    """Tensors that the nodes keep; not those that somebody's hooks recompute or fetch: see `is_opaque`."""
    for node in nodes:
        for name in _names(type(node), node):
            raw = getattr(node, name)
            for place, saved in enumerate(raw if isinstance(raw, tuple | list) else [raw]):
                if saved is None or getattr(saved, "unpack_hook", None) is not None:
                    continue
                # A function of Python's own is asked by another name.
                found = getattr(node, "saved_tensors" if name == "_raw_saved_tensors" else name.removeprefix("_raw"))
                value = found[place] if isinstance(raw, tuple | list) else found
                if isinstance(value, Tensor) and value.layout == torch.strided and value.numel():
                    yield value


def is_opaque(nodes: Sequence[Node]) -> bool:
    """Whether derivatives depend on more than the tensors that a seal can look at.

    Somebody's hooks recompute or fetch what is kept (a checkpoint, a tensor that was offloaded), or a function of
    Python's own keeps what it likes (`ctx.weight = weight`).

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> with torch.autograd.graph.saved_tensors_hooks(lambda x: x.numpy(force=True), torch.from_numpy):
        ...     product = weight * weight
        >>> is_opaque([product.grad_fn]), is_opaque([(weight * weight).grad_fn])
        (True, False)
    """
    for node in nodes:
        for name in _names(type(node), node):
            raw = getattr(node, name)
            for saved in raw if isinstance(raw, tuple | list) else [raw]:
                if getattr(saved, "unpack_hook", None) is not None:
                    return True
        own = getattr(node, "__dict__", None)
        nested = own and "recording" in own  # a solve within the step makes sure of its own
        if own and not nested and any(isinstance(x, Tensor) or callable(x) for x in pytree.tree_leaves(own)):
            return True
    return False


_KEPT: dict[type, tuple[str, ...]] = {}


def _names(kind: type, node: Node) -> tuple[str, ...]:
    """Attributes of a kind of node that hold what it keeps."""
    if kind not in _KEPT:
        _KEPT[kind] = tuple(name for name in dir(node) if name.startswith("_raw_saved_"))
    return _KEPT[kind]


def _sums(tensor: Tensor, *, sizes: bool = False) -> Tensor:
    """Weighted sums of a tensor's slices along its first dimension that has several; with `sizes`, of absolute values.

    The weights are all different: one-hot rows, probabilities and normalised rows have equal plain sums.
    """
    x = tensor.detach()
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if x.ndim == 2 and x.dtype in _SUMMED and x.shape[0] > 1 and not autocast and not sizes:  # most are, in one product
        return x @ _weights(x.shape[1], x.dtype, x.device)
    if x.is_complex():
        x = torch.view_as_real(x)
    dtype = norm_dtype(x.dtype) if x.is_floating_point() else torch.float64
    keep = next((d for d, n in enumerate(x.shape) if n > 1), 0)
    x = x.flatten(0, keep) if x.ndim else x[None]
    x = x[:, None] if x.ndim == 1 else x.flatten(1)
    x = x.to(dtype)
    weights = _weights(x.shape[1], dtype, x.device)
    if autocast:
        with torch.autocast(kind, enabled=False):
            return (x.abs() if sizes else x) @ weights
    return (x.abs() if sizes else x) @ weights


@lru_cache(maxsize=64)
def _weights(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """So many numbers from 0.5 to 1.5, no two of them alike."""
    places = torch.arange(count, dtype=torch.float64, device=device)
    return (places * 0.6180339887498949).frac().add(0.5).to(dtype)


def _changed(what: str) -> ContractError:
    detail = f" ({what})" if what else ""
    return ContractError(
        f"what step was recorded with has been changed before backward(){detail}: a weight, a buffer or a part of the "
        "context, in place, through .data or through NumPy. Call backward() before that, or change a copy"
    )
