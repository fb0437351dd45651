"""Segment training: a pool of instances that keep their states from one training step to the next.

A training step takes the pool of the drawn size, gives a share of its rows the state of another row, replaces another
share by new instances, and goes on from there. Rows live for many training steps, so that a model learns from states
that it reached long ago and far from any start, while only the last few steps keep a graph.

Which rows change, and how instances are numbered, comes from the seed and the number of the training step. So the
pools of several processes are parts of the pool that one process would have.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.errors import HomeostatError
from homeostat.tasks import Task
from homeostat.tasks.base import Batch
from homeostat.training.data import Data
from homeostat.training.visit import Carried, Stream, Visit

_BLOCK = 512
"""Instances that are drawn at a time: many at once are made far faster than a few."""


class Segments(Data):
    """Rows that are carried from one training step to the next, in a pool of `batch` rows for each size.

    A row lives for `1 / fresh` training steps of its size on average (a geometric distribution).

    Source:
        The pool is that of neural cellular automata (Mordvintsev et al., "Growing neural cellular automata", Distill
        2020), which damages samples where this one swaps states.

    Example:
        >>> Segments(fresh=0.125)
        Segments(fresh=0.125, swap=0.0)
    """

    fresh: float = Field(gt=0, le=1)
    """Chance of each row, at each training step, to be replaced by a new instance with a start of its own."""
    swap: float = Field(default=0.0, ge=0, lt=1)
    """Chance of each other row to go on from the state of the row before it: a confident start, and a wrong one."""


class Pool:
    """The rows of one size that this process holds.

    Attributes:
        inputs, targets: nests, batch first.
        numbers: which instance each row holds, counted in the order in which instances of this size were drawn.
        state: leaves of the states that the rows reached, without a graph; none before the first training step.
        ages: `(rows,)` int64, steps of the model that each row has taken since it got its start.
        drawn: instances of this size that were drawn so far, over all processes.
    """

    def __init__(self, inputs: Any, targets: Any, numbers: list[int], drawn: int) -> None:
        self.inputs, self.targets, self.numbers, self.drawn = inputs, targets, numbers, drawn
        self.state: list[Tensor] = []
        self.ages = torch.zeros(len(numbers), dtype=torch.int64)


class Pools:
    """The pools of all sizes, and the instances that wait to enter them.

    Args:
        segments: shares of rows.
        task: where instances come from.
        batch: rows of a pool over all processes.
        seed: of the whole training.
        fabric: of whose processes this one holds a share of the rows.
    """

    def __init__(self, segments: Segments, task: Task, *, batch: int, seed: int, fabric: Fabric) -> None:
        self._segments, self._task, self._batch, self._seed, self._fabric = segments, task, batch, seed, fabric
        share = batch // fabric.world_size
        self._mine = range(fabric.global_rank * share, (fabric.global_rank + 1) * share)
        self._pools: dict[int, Pool] = {}
        self._blocks: dict[int, tuple[int, Batch]] = {}
        self._oldest = 0

    def enter(self, size: int, visit: Visit) -> tuple[Any, Any]:
        """Make the pool of a size ready for a training step.

        Returns:
            Inputs and targets of its rows; `visit` is told what they carry and which of them begin.

        Raises:
            HomeostatError: instances of this size do not have one shape.
        """
        pool = self._pools.get(size)
        if pool is None:
            pool = self._pools[size] = self._filled(size)
            new = np.ones(self._batch, dtype=np.bool_)
        else:
            rng = np.random.default_rng(visit.stream(Stream.POOL))
            new = rng.random(self._batch) < self._segments.fresh
            swapped = (rng.random(self._batch) < self._segments.swap) & ~new
            # Before rows are replaced: what is handed on is a state that was reached, not a start.
            self._swap(pool, swapped[self._mine.start : self._mine.stop])
            self._replace(pool, size, new)
        mine = np.flatnonzero(new[self._mine.start : self._mine.stop])
        visit.indices = pool.numbers
        visit.carried = Carried(pool.state, torch.from_numpy(mine).to(self._fabric.device))
        return pool.inputs, pool.targets

    def leave(self, size: int, state: Sequence[Tensor], steps: int) -> None:
        """Take back the state that the rows reached in so many steps."""
        pool = self._pools[size]
        pool.state = [leaf.detach() for leaf in state]
        pool.ages += steps
        self._oldest = max(self._oldest, int(pool.ages.max()))

    def _filled(self, size: int) -> Pool:
        numbers = list(self._mine)
        inputs, targets = self._instances(size, numbers)
        return Pool(inputs, targets, numbers, self._batch)

    def _replace(self, pool: Pool, size: int, new: NDArray[np.bool_]) -> None:
        numbers = pool.drawn + np.cumsum(new) - 1
        pool.drawn += int(new.sum())
        rows = [row for row, place in enumerate(self._mine) if new[place]]
        if not rows:
            return
        entering = [int(numbers[self._mine[row]]) for row in rows]
        index = torch.tensor(rows, device=self._fabric.device)
        batch = self._instances(size, entering)

        def put(old: Tensor, fresh: Tensor) -> Tensor:
            if old.shape[1:] != fresh.shape[1:]:
                raise HomeostatError(
                    f"instances of size {size} come in several shapes ({tuple(old.shape[1:])} and "
                    f"{tuple(fresh.shape[1:])}); segments need one shape a size"
                )
            return old.index_copy(0, index, fresh)

        pool.inputs = pytree.tree_map(put, pool.inputs, batch.inputs)
        pool.targets = pytree.tree_map(put, pool.targets, batch.targets)
        pool.ages[rows] = 0
        for row, number in zip(rows, entering, strict=True):
            pool.numbers[row] = number

    def _swap(self, pool: Pool, swapped: NDArray[np.bool_]) -> None:
        """Give rows the state of the row before them, which for the first row is another process' last."""
        if not self._segments.swap:
            return
        before = [leaf[-1:] for leaf in pool.state]
        if self._fabric.world_size > 1:  # every process takes part, whether its rows are swapped or not
            previous = (self._fabric.global_rank - 1) % self._fabric.world_size
            before = [self._gathered(leaf)[previous : previous + 1] for leaf in before]
        rows = torch.from_numpy(np.flatnonzero(swapped)).to(self._fabric.device)
        for i, leaf in enumerate(pool.state):
            rolled = torch.cat([before[i], leaf[:-1]])
            pool.state[i] = leaf.index_copy(0, rows, rolled.index_select(0, rows))
        pool.ages[torch.from_numpy(swapped)] = 0

    def _instances(self, size: int, numbers: Sequence[int]) -> Batch:
        """The instances of these numbers, which rise."""
        parts = []
        for block, group in groupby(numbers, key=lambda number: number // _BLOCK):
            if self._blocks.get(size, (None,))[0] != block:
                seed = Stream.DATA.seed(self._seed, size, block)
                self._blocks[size] = block, self._task.sample(size, _BLOCK, split="train", seed=seed)
            rows = torch.tensor([number % _BLOCK for number in group])
            parts.append([leaf.index_select(0, rows) for leaf in pytree.tree_leaves(list(self._blocks[size][1]))])
        leaves = [torch.cat(column).to(self._fabric.device) for column in zip(*parts, strict=True)]
        spec = pytree.tree_structure(list(self._blocks[size][1]))
        return Batch(*pytree.tree_unflatten(leaves, spec))

    def _gathered(self, leaf: Tensor) -> Tensor:
        """The rows of all processes, one behind the other."""
        if self._fabric.world_size == 1:
            return leaf
        parts: Any = self._fabric.all_gather(leaf.to(self._fabric.device))
        return parts.flatten(0, 1)

    def oldest(self) -> int:
        """Most steps of the model that any row of any process took from its start. Every process has to call this."""
        return int(self._gathered(torch.tensor([self._oldest])).max())

    def tensors(self) -> dict[str, Tensor]:
        """All there is to know, of all processes, each of which has to call this."""
        found = {"oldest": torch.tensor(self.oldest())}
        for size, pool in self._pools.items():
            parts = {"inputs": pytree.tree_leaves(pool.inputs), "targets": pytree.tree_leaves(pool.targets)}
            parts |= {"state": pool.state, "ages": [pool.ages], "numbers": [torch.tensor(pool.numbers)]}
            for name, leaves in parts.items():
                found |= {f"{size}.{name}.{i}": self._gathered(leaf) for i, leaf in enumerate(leaves)}
            found[f"{size}.drawn"] = torch.tensor(pool.drawn)
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Bring the pools back to what `tensors` gave; in any number of processes."""
        if not tensors:
            return
        self._oldest = int(tensors["oldest"])
        for size in sorted({int(name.split(".")[0]) for name in tensors if "." in name}):

            def rows(part: str, size: int = size) -> list[Tensor]:
                count = sum(name.startswith(f"{size}.{part}.") for name in tensors)
                return [tensors[f"{size}.{part}.{i}"][self._mine.start : self._mine.stop] for i in range(count)]

            # The tensors do not say how they make up the nests of an instance: another instance does.
            example = self._task.sample(size, 1, split="train", seed=0)
            nests = []
            for part, like in (("inputs", example.inputs), ("targets", example.targets)):
                leaves = [leaf.to(self._fabric.device) for leaf in rows(part)]
                nests.append(pytree.tree_unflatten(leaves, pytree.tree_structure(like)))
            pool = Pool(nests[0], nests[1], rows("numbers")[0].tolist(), int(tensors[f"{size}.drawn"]))
            pool.state = [leaf.to(self._fabric.device) for leaf in rows("state")]
            pool.ages = rows("ages")[0].clone()
            self._pools[size] = pool
