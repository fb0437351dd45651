"""Edge copy: give back the feature of every edge of a graph.

Read from the edge itself this is the identity, solved in one step. It is a task for networks whose edges hear of their
input through the nodes alone: all edges that meet in a node have to pass through its state together, and the more
there are, the more often they have to be told what is still wrong. The number of nodes is the difficulty dial.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.checks import plain_numbers
from homeostat.errors import InputError
from homeostat.tasks.base import Batch, Split, Task
from homeostat.tasks.random_words import Words, random_words
from homeostat.tasks.split import TEST_ONE_IN, collect, in_split, instance_hash

_MOST_NODES = 1_024
_BITS = 24
"""Features are odd multiples of 2**-24, which float32 holds exactly, so that the split hashes what the network sees."""


@dataclass(frozen=True)
class EdgeCopy(Task):
    """Graphs with a random feature on every directed edge; the answer of an edge is its feature.

    The graphs are those of Du et al., "Learning Iterative Reasoning through Energy Minimization" (2022), by their
    public code: complete, with an edge from every node to every node and to itself, and one feature an edge, uniform
    from -1 to 1. They train on 2 to 10 nodes; harder sets have more. `degree` thins the graphs out to that many
    incoming edges a node, from different nodes chosen at random, so that the load of a node no longer grows with the
    graph.

    Inputs, a dict: `edges` `(batch, 2, e)` int64, source above target, e = size * size or size * degree;
    `features` `(batch, e, 1)` float32; `nodes` `(batch, size, identifiers)` float32. Targets and outputs have the
    shape of `features`.

    `nodes` are random identifiers, uniform from -1 to 1, by which edges that meet in a node can be told apart. The
    source has none (its nodes are all zeros), so that a network must first find them from the features.

    The task is a regression because the source's is: bits would hide whether an answer converges or merely rounds to
    the right side. The split is a hash of edges and features.

    Args:
        degree: incoming edges of a node; None for all.
        identifiers: length of a node's identifier.
        tolerance: an edge is right when its error is at most this; the features have a standard deviation of 0.58.

    Raises:
        InputError: an impossible degree, number of identifiers, or tolerance.

    Example:
        >>> inputs, targets = EdgeCopy().sample(3, 5, split="train", seed=0)
        >>> inputs["edges"][0]
        tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2],
                [0, 1, 2, 0, 1, 2, 0, 1, 2]])
        >>> bool((targets == inputs["features"]).all())
        True
        >>> task = EdgeCopy(degree=2)
        >>> task.sample(8, 5, split="train", seed=0).inputs["edges"].shape
        torch.Size([5, 2, 16])
        >>> task.symbols(targets[:2] + torch.tensor([0.01, 0.3])[:, None, None], targets[:2])
        tensor([1., 0.])
    """

    degree: int | None = None
    identifiers: int = 16
    tolerance: float = 0.1

    name: ClassVar[str] = "edge-copy"
    summary: ClassVar[str] = "the feature of every edge of a graph, through its nodes"
    size_name: ClassVar[str] = "nodes"
    sizes: ClassVar[tuple[int, ...]] = (4, 8, 12, 16, 24, 32)
    features: ClassVar[int] = 1

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.degree is not None and not (_whole(self.degree) and 1 <= self.degree <= _MOST_NODES):
            raise InputError(f"degree {self.degree!r} is impossible: None, or a whole number from 1 to {_MOST_NODES:,}")
        if not (_whole(self.identifiers) and 1 <= self.identifiers <= 1024):
            raise InputError(f"identifiers {self.identifiers!r} is impossible: a whole number from 1 to 1,024")
        number = isinstance(self.tolerance, int | float) and not isinstance(self.tolerance, bool)
        if not number or not 0 < self.tolerance < math.inf:
            raise InputError(f"tolerance {self.tolerance!r} is impossible: an error above 0, such as 0.1")

    def sample(self, size: int, count: int, *, split: Split, seed: int) -> Batch:
        """`count` graphs of `size` nodes.

        Raises:
            InputError: fewer than 2 nodes, more than 1,024, or fewer than `degree`.
        """
        least = max(2, self.degree or 0)
        if not least <= size <= _MOST_NODES:
            raise InputError(f"size {size} is impossible for {self.name}: {least:,} to {_MOST_NODES:,} nodes")

        def draw(keys: Words) -> tuple[np.ndarray, ...]:
            edges, first = self._edges(keys, size)
            drawn = random_words(keys, edges.shape[2], first=first) >> np.uint64(64 - _BITS)
            kept = in_split(_hash(edges, drawn), split)
            count = size * self.identifiers
            names = random_words(keys[kept], count, first=first + edges.shape[2]) >> np.uint64(64 - _BITS)
            return edges[kept], _uniform(drawn[kept]), _uniform(names).reshape(-1, size, self.identifiers)

        rate = 1 / TEST_ONE_IN if split == "test" else 1 - 1 / TEST_ONE_IN
        most = max(1, 2**20 // size**2)
        edges, features, nodes = collect(
            draw, count, size=size, split=split, seed=seed, rate=rate, most=most, what="graph"
        )
        values = torch.from_numpy(features)[..., None]
        inputs = {"edges": torch.from_numpy(edges), "features": values, "nodes": torch.from_numpy(nodes)}
        return Batch(inputs, values.clone())

    def _edges(self, keys: Words, size: int) -> tuple[NDArray[np.int64], int]:
        """`(candidates, 2, e)` edges, and the number of random words of a key that they took."""
        if self.degree is None:
            pairs = np.indices((size, size), dtype=np.int64).reshape(2, -1)
            return np.broadcast_to(pairs, (len(keys), *pairs.shape)), 0
        # The order of random words is a uniform permutation of all nodes, one for each target.
        order = random_words(keys, size * size).reshape(-1, size, size).argsort(axis=2, kind="stable")
        sources = order[:, :, : self.degree].reshape(len(keys), -1)
        targets = np.broadcast_to(np.repeat(np.arange(size), self.degree), sources.shape)
        return np.stack([sources, targets], axis=1).astype(np.int64), size * size

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` bool: every edge is right within `tolerance`."""
        return self._right(outputs, targets).all(1)

    def symbols(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` float32: share of the edges that are right within `tolerance`."""
        return self._right(outputs, targets).float().mean(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` squared error, mean over the edges; to answer 0 everywhere costs 1/3."""
        return (outputs - targets).square().mean((1, 2))

    def _right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() <= self.tolerance).all(2)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _uniform(words: Words) -> NDArray[np.float32]:
    """Words of 24 bits as the middles of 2**24 equal parts of -1 to 1."""
    return ((2 * words.astype(np.float64) + 1) * 2.0**-_BITS - 1).astype(np.float32)


def _hash(edges: NDArray[np.int64], drawn: Words) -> Words:
    """Hash edges and features for the split; every edge is 16 + 16 + 32 bits."""
    packed = edges[:, 0].astype(np.uint64) << np.uint64(48) | edges[:, 1].astype(np.uint64) << np.uint64(32) | drawn
    data = np.ascontiguousarray(packed, dtype="<u8").view(np.uint8)
    return instance_hash(np.unpackbits(data, axis=1, bitorder="little").view(np.bool_))
