"""Somebody's own model behind the service: examples are nested arrays of numbers, as the model's own examples are."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.errors import ContractError, InputError
from homeostat.models.contract import as_model
from homeostat.probes.examples import groups_of, moved, pairs_of
from homeostat.serving.refusal import Refusal
from homeostat.serving.subject import Question, Subject, check_elements, kind, plain


@dataclass(frozen=True)
class Leaf:
    """One tensor of an example's inputs, without the batch dimension.

    Attributes:
        shape: None where the model's examples differ, so that requests may too.
        dtype: of the tensor.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def read(self, value: Any, where: str, most: int) -> Tensor:
        """Nested lists of numbers as a tensor `(1, *shape)`.

        Raises:
            Refusal: another shape, another kind of number, or a number that the dtype cannot hold.

        Example:
            >>> Leaf((2,), torch.float32).read([1, 2.5], "inputs[0]", 10)
            tensor([[1.0000, 2.5000]])
            >>> Leaf((2,), torch.float32).read([1, 2, 3], "inputs[0]", 10)
            Traceback (most recent call last):
            homeostat.serving.refusal.Refusal: inputs[0] has shape (3,), the model takes (2,)
        """
        shape = _shape(value, where)
        check_elements(torch.Size(shape).numel(), where, most)
        fits = len(shape) == len(self.shape) and all(
            want in (None, size) for want, size in zip(self.shape, shape, strict=True)
        )
        if not fits or 0 in shape:
            wanted = "a number" if not self.shape else str(self).replace("None", "any")
            raise Refusal("refused", f"{where} has shape {shape}, the model takes {wanted}")
        numbers = list(_numbers(value, len(shape), where, self._check()))
        try:
            self._check_range(numbers)
            tensor = torch.tensor(numbers, dtype=self.dtype)
        except OverflowError:  # whole numbers of hundreds of digits
            raise Refusal("refused", f"{where} holds a number that {self._name} cannot hold") from None
        if not bool(torch.isfinite(tensor).all()):
            raise Refusal("refused", f"{where} holds a number that is not finite in {self._name}")
        return tensor.reshape(1, *shape)

    def __str__(self) -> str:
        return str(self.shape)

    def _check_range(self, numbers: list[Any]) -> None:
        if not self.dtype.is_floating_point and self.dtype != torch.bool:
            info = torch.iinfo(self.dtype)
            if not info.min <= min(numbers) <= max(numbers) <= info.max:  # torch would let -1 wrap around in uint8
                raise OverflowError

    @property
    def _name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def _check(self) -> tuple[tuple[type, ...], str]:
        if self.dtype == torch.bool:
            return (bool,), "true or false"
        if self.dtype.is_floating_point:
            return (int, float), "a number"
        return (int,), "a whole number"

    def describe(self) -> dict[str, Any]:
        """For clients: null in the shape is any size."""
        return {"shape": list(self.shape), "dtype": self._name}


class ArraySubject(Subject):
    """A model with the functions of the contract, and examples that say what its inputs look like.

    Args:
        subject: what `build()` returned.
        examples: batches `(inputs, targets)`, or such by difficulty; the first batch of each difficulty says what the
            inputs look like: structure, dtypes, shapes. A dimension in which these batches differ may have any size.
        device: where the model runs.
        blame: a context in which errors of the user's code are told with their place.

    Raises:
        InputError: inputs that are not tensors.
        ContractError: examples that differ in structure, dtype or number of dimensions.
    """

    def __init__(self, subject: Any, examples: Any, *, device: torch.device, blame: Callable[[], Any]) -> None:
        self.model, self.source, self.judge = as_model(subject), subject, None
        self.name = self.model.name
        self._device = device
        self._answers = getattr(subject, "answers", None)
        with blame():
            self._form = _form(examples)

    def read(self, entry: Any, where: str, most: int) -> Question:
        """See `Subject.read`."""
        found = [leaf.read(value, place, most) for leaf, value, place in _parts(self._form, entry, where)]
        check_elements(sum(tensor.numel() for tensor in found), where, most)
        inputs = pytree.tree_unflatten(found, pytree.tree_structure(self._form))
        return Question(moved(inputs, self._device))

    def write(self, question: Question, outputs: Any) -> dict[str, Any]:
        """See `Subject.write`: the outputs, and the answer where the model says what that is."""
        written = {
            "outputs": pytree.tree_map(lambda leaf: plain(leaf[0]) if isinstance(leaf, Tensor) else leaf, outputs)
        }
        if self._answers is not None:
            written["answer"] = plain(self._answers(outputs)[0])
        return written

    def describe(self) -> dict[str, Any]:
        """See `Subject.describe`."""
        return {"inputs": pytree.tree_map(Leaf.describe, self._form)}


def _form(examples: Any) -> Any:
    """What one example looks like, as a nest of `Leaf`, from the first batch of each difficulty."""
    found: Any = None
    for name, batches in groups_of(examples).items():
        first = next(itertools.islice(pairs_of(name, batches), 1), None)
        if first is None:
            raise InputError(f"difficulty {name!r} has no batch that says what inputs look like")
        form = pytree.tree_map(lambda leaf, name=name: _leaf(leaf, name), first[0])
        if found is None:
            found = form
            continue
        ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(form)
        if pytree.tree_structure(found) != pytree.tree_structure(form) or not all(map(_alike, ours, theirs)):
            raise ContractError(f"inputs of {name!r} have another structure, dtype or number of dimensions than others")
        found = pytree.tree_map(_common, found, form)
    if not pytree.tree_leaves(found):
        raise InputError("inputs that are served must hold a tensor; these hold none")
    return found


def _leaf(leaf: Any, name: str) -> Leaf:
    if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.is_complex():
        what = f"a tensor of {leaf.ndim} dimensions, {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
        raise InputError(f"inputs that are served must be real tensors, batch first; {name!r} has {what}")
    return Leaf(tuple(leaf.shape[1:]), leaf.dtype)


def _alike(first: Leaf, second: Leaf) -> bool:
    return first.dtype == second.dtype and len(first.shape) == len(second.shape)


def _common(first: Leaf, second: Leaf) -> Leaf:
    sizes = zip(first.shape, second.shape, strict=True)
    return Leaf(tuple(a if a == b else None for a, b in sizes), first.dtype)


def _parts(form: Any, entry: Any, where: str) -> Iterator[tuple[Leaf, Any, str]]:
    """Each leaf with its value and where that stands: objects stand for dicts, lists for tuples."""
    if isinstance(form, Leaf):
        yield form, entry, where
    elif isinstance(form, dict):
        if not isinstance(entry, dict) or set(entry) != set(form):
            raise Refusal("refused", f"{where} must be an object with {', '.join(map(str, form))}, {_given(entry)}")
        for name, part in form.items():
            yield from _parts(part, entry[name], f"{where}.{name}")
    else:
        if not isinstance(entry, list) or len(entry) != len(form):
            raise Refusal("refused", f"{where} must be a list of {len(form)} parts, {_given(entry)}")
        for place, part in enumerate(form):
            yield from _parts(part, entry[place], f"{where}[{place}]")


def _given(entry: Any) -> str:
    if isinstance(entry, dict):
        return f"not with {', '.join(map(repr, list(entry)[:8])) or 'nothing'}"
    return f"not {len(entry)}" if isinstance(entry, list) else f"not {kind(entry)}"


def _shape(value: Any, where: str) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > 16:
            raise Refusal("refused", f"{where} is nested more than 16 deep")
        value = value[0] if value else None
    return tuple(shape)


def _numbers(value: Any, depth: int, where: str, check: tuple[tuple[type, ...], str]) -> Any:
    """All numbers of nested lists that are `depth` deep, in order; checks that they are as long as their neighbours."""
    level = [value]
    for _ in range(depth):
        lengths = {len(part) if isinstance(part, list) else None for part in level}
        if len(lengths) > 1 or None in lengths:
            raise Refusal("refused", f"{where} is ragged: lists side by side have different lengths")
        level = [item for part in level for item in part]
    kinds, words = check
    for number in level:
        if type(number) not in kinds:
            raise Refusal("refused", f"{where} must hold {words} in every place, not {kind(number)}")
    return level
