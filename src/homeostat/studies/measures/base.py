"""What every measurement of a net has in common: it needs the training, and all use the same test instances."""

from abc import abstractmethod
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from torch.utils import _pytree as pytree

from homeostat.models.checkpoint import Checkpoint
from homeostat.studies.jobs import Job, Place
from homeostat.studies.nets import Net
from homeostat.tasks import Batch, Task, get_task

SEED = 7
"""Of the test instances and of noise starts, in every measurement of the study."""

_BATCH_POSITIONS = 2**16
"""Positions of a batch, so that memory stays bounded."""


class Measure(Job):
    """Something measured of one net on `count` test instances of one size, with `steps` steps."""

    net: Net
    size: int
    count: int
    steps: int
    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of the task that differ from the training, such as `percolation` for mazes."""
    expected: float = Field(default=10.0, exclude=True)

    word: ClassVar[str]

    @property
    def label(self) -> str:
        options = "".join(f", {name} {value}" for name, value in self.options.items())
        return f"{self.word} of {self.net.label}, size {self.size}{options}, {self.steps} steps"

    @property
    def code(self) -> tuple[str, ...]:
        return (*self.net.code, type(self).__module__)

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.net,)

    @property
    def seconds(self) -> float:
        return self.expected

    def run(self, place: Place) -> dict[str, Any]:
        checkpoint, task = self.net.load(place)
        if self.options:
            task = get_task(task.name, **{**self.net.recipe.task.options, **self.options})
        return self.measure(checkpoint, task, place)

    @abstractmethod
    def measure(self, checkpoint: Checkpoint, task: Task, place: Place) -> dict[str, Any]:
        """What is found, as plain values."""

    def batches(self, task: Task) -> list[tuple[Any, Any]]:
        """The test instances, in batches of even size, so that none is left alone."""
        return in_parts(task.sample(self.size, self.count, split="test", seed=SEED))


def in_parts(whole: Batch) -> list[tuple[Any, Any]]:
    """Instances in batches of even size that fit into memory; none is left alone.

    Example:
        >>> import torch
        >>> [len(inputs) for inputs, _ in in_parts(Batch(torch.zeros(5, 1), torch.zeros(5, 2**15)))]
        [2, 3]
    """
    count = len(whole)
    positions = max(1, max(leaf[0].numel() for leaf in pytree.tree_leaves(whole.targets)))
    parts = max(1, min(-(-count * positions // _BATCH_POSITIONS), count // 2))
    ends = np.linspace(0, count, parts + 1).round().astype(int).tolist()
    return [tuple(whole[first:end]) for first, end in pairwise(ends)]
