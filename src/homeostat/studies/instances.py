"""Test instances of a task as examples: by the name of their difficulty, in batches whose memory is bounded."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from torch.utils import _pytree as pytree

from homeostat.tasks import Task

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
        shape = one.targets.shape[1:]
        # A label for a whole picture is one position; what fills memory then is the picture.
        space = [leaf.shape[2:].numel() for leaf in pytree.tree_leaves(one.inputs)]
        self.positions = max(shape.numel(), *space)
        """Of one instance."""
        self.side = max(shape, default=1)
        """Positions along the longest side."""

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        batch = self._task.sample(self._size, self.count, split="test", seed=self._seed)
        rows = max(2, _BATCH_POSITIONS // self.positions)
        # Even parts of two or more, so that no example is left alone: swapped starts need another example.
        parts = max(1, min(-(-self.count // rows), self.count // 2))
        ends = np.linspace(0, self.count, parts + 1).round().astype(int).tolist()
        for first, end in pairwise(ends):
            inputs, targets = batch[first:end]
            yield inputs, targets


def instances_of(task: Task, counts: Mapping[int, int], *, seed: int = 0) -> list[Instances]:
    """Test instances by size, the smallest size first.

    Args:
        counts: number of instances by size.
    """
    return [Instances(task, size, counts[size], seed=seed) for size in sorted(counts)]
