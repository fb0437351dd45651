"""The examples that a probe runs on, and the model as a probe runs it: in evaluation mode, on a device."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from homeostat.checks import is_number, is_whole
from homeostat.errors import ContractError, InputError

Examples = Iterable[tuple[Any, Any]]

MOST_STEPS = 10_000_000
"""A larger budget is a slip of the keyboard."""


@dataclass(frozen=True, repr=False)
class ExampleBatch:
    """One batch of a difficulty, on the device."""

    inputs: Any
    targets: Any
    indices: range
    """Place of each row among the examples of its difficulty."""

    @property
    def rows(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"ExampleBatch({self.rows} examples from {self.indices.start})"


def groups_of(examples: Any) -> dict[str, Examples]:
    """The examples by the name of their difficulty.

    Raises:
        InputError: a mapping of nothing.
    """
    if isinstance(examples, Mapping):
        groups = {str(name): batches for name, batches in examples.items()}
    else:
        groups = {"all examples": examples}
    if not groups:
        raise InputError("there are no examples: give batches (inputs, targets), or such lists by name")
    return groups


def pairs_of(name: str, batches: Any) -> Iterator[tuple[Any, Any]]:
    """The batches of a difficulty, with what is none named."""
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise ContractError(
            f"examples of {name!r} must be batches (inputs, targets), such as a list of them, not {_kind(batches)}"
        )
    for number, batch in enumerate(batches, start=1):
        try:
            inputs, targets = batch
        except (TypeError, ValueError):
            raise ContractError(f"batch {number} of {name!r} must be (inputs, targets), not {_kind(batch)}") from None
        yield inputs, targets


def batches_of(name: str, batches: Any, device: torch.device) -> Iterator[ExampleBatch]:
    """The batches of a difficulty on the device, streamed; those without a row are passed over.

    Raises:
        ContractError: something that is no batch.
        InputError: no example at all, known when the last batch has been read.
    """
    first = 0
    for inputs, targets in pairs_of(name, batches):
        leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
        if not leaves:
            raise ContractError("inputs must be a tensor or a nest of tensors, batch first")
        rows = len(leaves[0])
        for leaf in pytree.tree_leaves(targets):
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) != rows:
                raise ContractError(f"a batch of {name!r} has {rows} rows of inputs and {len(leaf)} rows of targets")
        if rows:
            yield ExampleBatch(moved(inputs, device), moved(targets, device), range(first, first + rows))
        first += rows
    if first == 0:
        raise InputError(f"difficulty {name!r} has no examples; give at least one batch with one row")


def moved(tree: Any, device: torch.device) -> Any:
    """The nest with its tensors on the device."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)


def rows_at(tree: Any, rows: Tensor) -> Any:
    """Some rows of a nest of tensors, batch first."""
    return pytree.tree_map(lambda leaf: leaf[rows.to(leaf.device)] if isinstance(leaf, Tensor) else leaf, tree)


@contextmanager
def evaluating(model: Any, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """The model in evaluation mode, and every part of it back in its own mode afterwards.

    Yields:
        Where to run: `device`, or where the model's parameters are when that is None.

    Example:
        >>> model = nn.Dropout(0.5)
        >>> with evaluating(model) as device:
        ...     print(device, model.training)
        cpu False
        >>> model.training
        True
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    if device is None:
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = torch.device("cpu") if first is None else first.device
    modes = [(module, module.training) for module in modules]
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield torch.device(device)
    finally:
        for module, mode in modes:
            module.training = mode


def whole_number(name: str, value: Any, *, least: int = 1, most: int = MOST_STEPS) -> int:
    """A count that makes sense.

    Example:
        >>> whole_number("steps", 0)
        Traceback (most recent call last):
        homeostat.errors.InputError: steps must be a whole number from 1 to 10,000,000, not 0
    """
    if not is_whole(value) or not least <= value <= most:
        raise InputError(f"{name} must be a whole number from {least} to {most:,}, not {value!r}")
    return int(value)


def positive(name: str, value: Any) -> float:
    """A finite number above 0.

    Example:
        >>> positive("radius", float("nan"))
        Traceback (most recent call last):
        homeostat.errors.InputError: radius must be a finite number above 0, not nan
    """
    if not is_number(value) or not 0 < value < float("inf"):
        raise InputError(f"{name} must be a finite number above 0, not {value!r}")
    return float(value)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{len(value)} values" if isinstance(value, tuple | list) else f"a {type(value).__name__}"
