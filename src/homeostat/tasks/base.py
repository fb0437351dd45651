"""What a task is: instances with a difficulty dial and an exact checker; puzzles have a text form too.

A task knows no model. It makes tensors, judges outputs, and reads and writes what people type.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

Split = Literal["train", "test"]

IGNORE = -100
"""Target value of positions where no answer is asked (the walls of a maze); cross-entropy skips it."""


@dataclass(frozen=True, repr=False)
class Batch:
    """Instances of one size: tensors or nests of tensors, batch first."""

    inputs: Any
    targets: Any

    def __len__(self) -> int:
        return len(pytree.tree_leaves(self.inputs)[0])

    def __getitem__(self, rows: slice) -> "Batch":
        """Some of the instances."""
        return Batch(*(pytree.tree_map(lambda leaf: leaf[rows], part) for part in self))

    def at(self, rows: np.ndarray) -> "Batch":
        """The instances at some places."""
        index = torch.from_numpy(rows)
        return Batch(*(pytree.tree_map(lambda leaf: leaf[index], part) for part in self))

    def to(self, device: torch.device) -> "Batch":
        """The same instances on a device."""
        return Batch(*(pytree.tree_map(lambda leaf: leaf.to(device), part) for part in self))

    def __iter__(self) -> Iterator[Any]:
        """Unpack as `inputs, targets = batch`, the form in which examples travel everywhere."""
        return iter((self.inputs, self.targets))

    def __repr__(self) -> str:
        inputs, targets = (", ".join(str(tuple(leaf.shape)) for leaf in pytree.tree_leaves(part)) for part in self)
        return f"Batch({len(self)} instances, inputs {inputs}, targets {targets})"


@dataclass(frozen=True)
class Puzzle:
    """One instance that a user handed in: `inputs` `(channels, *space)` and `where` it came from (`"line 3"`)."""

    inputs: Tensor
    where: str


@dataclass(frozen=True)
class Legend:
    """What the codes of `Task.cells` mean: for each code a label and a colour (`#rrggbb`)."""

    labels: tuple[str, ...]
    colours: tuple[str, ...]


class Task(ABC):
    """Instances of one kind, with a difficulty dial and a checker.

    Every method is a pure function of its arguments: the same seed gives the same instances. Inputs and targets are
    tensors or nests of tensors, batch first.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    size_name: ClassVar[str]
    """What the difficulty dial counts, in words: `"bits"`, `"rooms a side"`."""
    sizes: ClassVar[tuple[int, ...]]
    """Sizes that an audit uses when none are asked for, easiest first."""

    @abstractmethod
    def sample(self, size: int, count: int, *, split: Split, seed: int) -> Batch:
        """`count` instances of one size. The first ones stay the same when `count` grows.

        No instance of the split `"train"` is ever one of the split `"test"`, whatever the seeds.

        Raises:
            InputError: a size that is impossible, or that has no instance in this split.
        """

    def span(self, size: int) -> int | None:
        """Distance, in positions of the input, that information must cross before every answer can be right; None
        where there is no such distance.
        """
        return None

    @abstractmethod
    def correct(self, outputs: Any, targets: Any) -> Tensor:
        """`(batch,)` bool: right in full."""

    @abstractmethod
    def symbols(self, outputs: Any, targets: Any) -> Tensor:
        """`(batch,)` float32: share of an instance's symbols that are right."""

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """`(batch,)`: what training lowers; its unit is the task's."""


class ClassificationTask(Task):
    """A label, out of several, for each of an instance's positions, or one for the whole instance.

    Targets `(batch, *positions)` int64, `IGNORE` where no answer is asked; outputs `(batch, classes, *positions)`
    logits.
    """

    def answers(self, outputs: Tensor) -> Tensor:
        """`(batch, classes, *positions)` logits to `(batch, *positions)` int64 answers."""
        return outputs.argmax(1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` bool: every asked position is right."""
        asked = targets != IGNORE
        return ((self.answers(outputs) == targets) | ~asked).reshape(len(targets), -1).all(1)

    def symbols(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` float32: share of the asked positions that are right."""
        asked = (targets != IGNORE).reshape(len(targets), -1)
        right = (self.answers(outputs) == targets).reshape(len(targets), -1) & asked
        return right.sum(1) / asked.sum(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` cross-entropy in nats, mean over the asked positions."""
        asked = (targets != IGNORE).reshape(len(targets), -1)
        each = F.cross_entropy(outputs, targets, ignore_index=IGNORE, reduction="none").reshape(len(targets), -1)
        return each.sum(1) / asked.sum(1)


class LabelTask(ClassificationTask):
    """A label for each position of a grid, or for the whole input.

    Inputs `(batch, in_channels, *space)` float32; targets and outputs as every `ClassificationTask` has them.
    """

    spatial_dims: ClassVar[int]
    in_channels: ClassVar[int]
    classes: ClassVar[int]


class PuzzleTask(LabelTask):
    """Puzzles that people can type or draw, with answers that can be checked without a model."""

    legend: ClassVar[Legend]

    @abstractmethod
    def in_test_split(self, inputs: Tensor) -> np.ndarray:
        """`(batch,)` bool: which instances `(batch, channels, *space)`, a user's own too, belong to the test split."""

    @abstractmethod
    def parse(self, data: bytes, *, name: str) -> list[Puzzle]:
        """Read what a user handed in; `name` says where it came from, in errors.

        Raises:
            InputError: what cannot be read, with the line or pixel where it stands.
        """

    @abstractmethod
    def text(self, inputs: Tensor, answer: Tensor) -> str:
        """One solved instance as text; `inputs` `(channels, *space)`, `answer` `(*space)`."""

    @abstractmethod
    def picture(self, inputs: Tensor, answer: Tensor) -> Image:
        """One solved instance as a picture, without a target to compare with."""

    @abstractmethod
    def cells(self, inputs: Tensor, answer: Tensor, target: Tensor) -> np.ndarray:
        """One answer compared with its target, as a 2-D uint8 array of codes into `legend`."""

    @abstractmethod
    def solves(self, inputs: Tensor, answer: Tensor) -> bool:
        """Whether an answer `(*space)` is right for one puzzle `(channels, *space)`, found without a model."""


def stack(puzzles: Sequence[Puzzle]) -> Tensor:
    """Puzzles of one shape as a batch of inputs `(batch, channels, *space)`."""
    return torch.stack([puzzle.inputs for puzzle in puzzles])
