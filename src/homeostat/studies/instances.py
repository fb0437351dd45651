"""Instances of a task as examples: by the name of their difficulty, in batches whose memory is bounded."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch.utils import _pytree as pytree

from homeostat.errors import InputError
from homeostat.tasks import Batch, Task
from homeostat.training import Recipe, training_instances
from homeostat.training.instances import training_task

_BATCH_POSITIONS = 2**16
"""Positions of a batch, so that large instances come in small batches and memory stays bounded."""


class Instances:
    """Test instances of one size: batches `(inputs, targets)`, made anew each time they are gone through.

    Example:
        >>> from homeostat.tasks import PrefixSums
        >>> batches = Instances(PrefixSums(), 8, 3)
        >>> batches.name, [tuple(inputs.shape) for inputs, _ in batches]
        ('8 bits', [(3, 1, 8)])
    """

    def __init__(self, task: Task, size: int, count: int, *, seed: int = 0) -> None:
        self._task, self._size, self._seed = task, size, seed
        self.count = count
        self.name = f"{size} {task.size_name}"
        one = task.sample(size, 1, split="test", seed=seed)
        self.positions = _positions(one)
        """Of one instance."""
        self.side = max(one.targets.shape[1:], default=1)
        """Positions along the longest side."""

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield from _parts(self._task.sample(self._size, self.count, split="test", seed=self._seed), self.positions)


def instances_of(task: Task, counts: Mapping[int, int], *, seed: int = 0) -> list[Instances]:
    """Test instances by size, the smallest size first.

    Args:
        counts: number of instances by size.
    """
    return [Instances(task, size, counts[size], seed=seed) for size in sorted(counts)]


def training_examples(record: Mapping[str, Any], count: int) -> tuple[dict[str, list[tuple[Any, Any]]], bool]:
    """Up to `count` of the instances that a checkpoint was trained on, of its largest size, by the name of that size.

    Where the training drew new instances at every step, they are others of the same kind (see `training_instances`).

    Args:
        record: `training` of the checkpoint's configuration, with the recipe and the seed.

    Returns:
        The instances, and whether they are all that there were to train on.

    Raises:
        InputError: a record without a recipe that this version knows.

    Example:
        >>> from homeostat.training import get_recipe
        >>> recipe = get_recipe("fixed").changed(instances=5, batch=5)
        >>> found, whole = training_examples({"recipe": recipe.as_record(), "seed": 0}, 32)
        >>> {name: len(batches[0][0]) for name, batches in found.items()}, whole
        ({'32 bits': 5}, True)
    """
    try:
        recipe = Recipe.model_validate(record.get("recipe"))
    except ValidationError:
        raise InputError("the checkpoint's record has no recipe that this version knows") from None
    seed = record.get("seed")
    if not isinstance(seed, int):
        raise InputError("the checkpoint's record has no seed")
    size = max(recipe.sizes)
    batch = training_instances(recipe, seed=seed, count=count)
    whole = recipe.instances is not None and recipe.instances <= count and len(recipe.sizes) == 1
    name = f"{size} {training_task(recipe).size_name}"
    return {name: list(_parts(batch, _positions(batch)))}, whole


def _positions(batch: Batch) -> int:
    """Of one instance."""
    # A label for a whole picture is one position; what fills memory then is the picture.
    space = [leaf.shape[2:].numel() for leaf in pytree.tree_leaves(batch.inputs)]
    return max(batch.targets.shape[1:].numel(), *space)


def _parts(batch: Batch, positions: int) -> Iterator[tuple[Any, Any]]:
    """A batch in parts whose memory is bounded."""
    count, rows = len(batch), max(2, _BATCH_POSITIONS // positions)
    # Even parts of two or more, so that no example is left alone: swapped starts need another example.
    parts = max(1, min(-(-count // rows), count // 2))
    ends = np.linspace(0, count, parts + 1).round().astype(int).tolist()
    for first, end in pairwise(ends):
        inputs, targets = batch[first:end]
        yield inputs, targets
