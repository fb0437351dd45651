"""What language models are given, and what their layers are given beside the hidden states, as parts of a context."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from homeostat.engine.nest import Shared
from homeostat.errors import ContractError
from homeostat.models.adapters.stand_in import Recorder

INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
"""What a sequence may come with; all are `(batch, length)`."""

_PER_SEQUENCE = ("attention_mask", "position_ids", "position_embeddings")
"""Tensors, or pairs of them, that layers take beside the hidden states, batch first or with a first dimension of 1."""


def read_tokens(inputs: Any) -> dict[str, Tensor]:
    """Token ids `(batch, length)`, or a mapping with `input_ids` and what else there is per sequence.

    Raises:
        ContractError: something else, unknown names, or shapes that differ.

    Example:
        >>> read_tokens({"ids": torch.zeros(2, 3, dtype=torch.long)})
        Traceback (most recent call last):
        homeostat.errors.ContractError: inputs of a language model have no 'ids'; they are token ids (batch, length), \
or a dict of input_ids, attention_mask, position_ids, token_type_ids
    """
    found = dict(inputs) if isinstance(inputs, Mapping) else {"input_ids": inputs}
    found = {name: value for name, value in found.items() if value is not None}
    for name in found:
        if name not in INPUTS:
            raise ContractError(
                f"inputs of a language model have no {name!r}; they are token ids (batch, length), or a dict of "
                f"{', '.join(INPUTS)}"
            )
    ids = found.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        what = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise ContractError(f"input_ids must be whole numbers of shape (batch, length), not {what}")
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.shape != ids.shape:
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ContractError(f"{name} must have the shape of input_ids, {tuple(ids.shape)}, not {what}")
    return found


def layer_arguments(recorded: Recorder, layer: nn.Module, inputs: Mapping[str, Tensor], *, causal: bool) -> dict:
    """What a layer was called with beside its hidden states, as a part of a context: tensors per sequence, the rest
    `Shared`.

    A mask that the model left out because this batch has no padding is put in: another batch may have some, and rows of
    both may share a batch one day.

    Raises:
        ContractError: a tensor that is not known to be one per sequence.
    """
    bound = inspect.signature(layer.forward).bind(*(recorded.args or ()), **recorded.kwargs)
    given: dict[str, Any] = {}
    extra = {p.name for p in inspect.signature(layer.forward).parameters.values() if p.kind is p.VAR_KEYWORD}
    for name, value in list(bound.arguments.items())[1:]:
        given |= value if name in extra else {name: value}
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name == "attention_mask" and value is None and "attention_mask" in inputs:
            value = _full_mask(inputs["attention_mask"], causal)
        leaves = pytree.tree_leaves(value)
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            found[name] = Shared(value)
        elif name in _PER_SEQUENCE:
            found[name] = pytree.tree_map(lambda leaf, name=name: _rows_of(name, leaf, len(inputs["input_ids"])), value)
        else:
            raise ContractError(
                f"{type(layer).__name__} takes a tensor {name!r}, which may be per sequence or not; known are "
                f"{', '.join(_PER_SEQUENCE)}. Write its prelude, core and coda for recurrent_depth"
            )
    return found


def bare(context: Any) -> Any:
    """A context without its marks, as `step` receives it."""
    return pytree.tree_map(
        lambda leaf: leaf.value if isinstance(leaf, Shared) else leaf, context, is_leaf=lambda x: isinstance(x, Shared)
    )


def _rows_of(name: str, leaf: Any, rows: int) -> Tensor:
    if not isinstance(leaf, Tensor) or leaf.ndim < 2 or leaf.shape[0] not in (1, rows):
        what = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
        raise ContractError(f"{name} of the layers must have one entry a sequence, {rows}, or one for all, not {what}")
    return leaf.expand(rows, *leaf.shape[1:])


def _full_mask(padding: Tensor, causal: bool) -> Tensor:
    """`(batch, 1, length, length)` bool: every position hears of all, or of those up to itself, but for padding."""
    rows, length = padding.shape
    mask = torch.ones(length, length, dtype=torch.bool, device=padding.device)
    return (mask.tril() if causal else mask).expand(rows, 1, length, length) & padding.bool()[:, None, None]
