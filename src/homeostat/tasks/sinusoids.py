"""Sinusoids: regression tasks of a few shots each, the standard first test of meta-learning."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.checks import is_number, plain_numbers
from homeostat.errors import InputError
from homeostat.tasks.base import Batch, Split, Task
from homeostat.tasks.random_words import Words, random_words
from homeostat.tasks.split import TEST_ONE_IN, collect, in_split, instance_hash

_MOST = 1_000
_EDGE = 5.0
"""Inputs lie between minus this and this."""


@dataclass(frozen=True)
class Sinusoids(Task):
    """`y = amplitude * sin(x - phase)`, to be learned from a few support samples and answered at query points.

    An instance is a regression task of its own: an amplitude and a phase, both uniform in their range, and x uniform
    from -5 to 5 for every sample. The dial `size` is the number of support samples (shots). Inputs are a dictionary
    `support_inputs` (batch, shots, 1), `support_targets` (batch, shots, 1), `query_inputs` (batch, queries, 1); targets
    and outputs are y at the queries, (batch, queries, 1). All float32.

    The default ranges are those of jaxopt's example of implicit MAML; Finn et al. (2017) have amplitudes from 0.1 to
    5, phases from 0 to pi. The split is a hash of amplitude and phase as float32: a sinusoid of the test split is
    trained on with no support set at all.

    Args:
        queries: samples that are asked for.
        amplitude: lowest and highest amplitude.
        phase: lowest and highest phase, in radians.
        tolerance: in units of y. An answer is correct when its root mean squared error over the queries is at most
            this; a query is right when its absolute error is.

    Raises:
        InputError: a range that is not two numbers in order, fewer than 1 or more than 1,000 queries, a tolerance that
            is not above 0.

    Example:
        >>> inputs, targets = Sinusoids().sample(10, 3, split="train", seed=0)
        >>> {name: tuple(leaf.shape) for name, leaf in inputs.items()}
        {'support_inputs': (3, 10, 1), 'support_targets': (3, 10, 1), 'query_inputs': (3, 10, 1)}
        >>> Sinusoids().loss(torch.zeros(3, 10, 1), torch.ones(3, 10, 1))
        tensor([1., 1., 1.])
    """

    queries: int = 10
    amplitude: tuple[float, float] = (0.1, 0.5)
    phase: tuple[float, float] = (0.5, math.pi)
    tolerance: float = 0.1

    name: ClassVar[str] = "sinusoids"
    summary: ClassVar[str] = "a sine curve from a few of its points"
    size_name: ClassVar[str] = "shots"
    sizes: ClassVar[tuple[int, ...]] = (5, 10, 20)

    def __post_init__(self) -> None:
        plain_numbers(self)
        if isinstance(self.queries, bool) or not isinstance(self.queries, int) or not 1 <= self.queries <= _MOST:
            raise InputError(f"queries {self.queries!r} is impossible: a whole number from 1 to {_MOST:,}")
        for name in ("amplitude", "phase"):
            object.__setattr__(self, name, _range(name, getattr(self, name)))
        if not _is_number(self.tolerance) or not self.tolerance > 0:
            raise InputError(f"tolerance {self.tolerance!r} is impossible: an error in units of y, above 0")

    def sample(self, size: int, count: int, *, split: Split, seed: int) -> Batch:
        """`count` sinusoids with `size` support samples each.

        Raises:
            InputError: a size below 1 or above 1,000; a range so narrow that the split has no sinusoid in it.
        """
        if not 1 <= size <= _MOST:
            raise InputError(f"size {size} is impossible for {self.name}: 1 to {_MOST:,} shots")

        def draw(keys: Words) -> tuple[np.ndarray, ...]:
            curve = self._curves(keys)
            kept = in_split(_hash(curve), split)
            # The curve's own two numbers come first, so that x of a sample does not depend on the number of shots.
            x = _between(random_words(keys[kept], self.queries + size, first=2), (-_EDGE, _EDGE))
            return curve[kept], x.astype(np.float32)

        rate = 1 / TEST_ONE_IN if split == "test" else 1 - 1 / TEST_ONE_IN
        most = max(1, 2**20 // (self.queries + size))
        curve, x = collect(draw, count, size=size, split=split, seed=seed, rate=rate, most=most, what="sinusoid")
        wide = curve.astype(np.float64)
        y = (wide[:, :1] * np.sin(x - wide[:, 1:])).astype(np.float32)
        places, values = torch.from_numpy(x)[..., None], torch.from_numpy(y)[..., None]
        inputs = {
            "support_inputs": places[:, self.queries :],
            "support_targets": values[:, self.queries :],
            "query_inputs": places[:, : self.queries],
        }
        return Batch(inputs, values[:, : self.queries])

    def _curves(self, keys: Words) -> NDArray[np.float32]:
        """`(candidates, 2)`: amplitude and phase."""
        words = random_words(keys, 2)
        parts = [_between(words[:, i : i + 1], bounds) for i, bounds in enumerate((self.amplitude, self.phase))]
        return np.concatenate(parts, 1).astype(np.float32)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` bool: the root mean squared error over the queries is at most `tolerance`."""
        return self.loss(outputs, targets).sqrt() <= self.tolerance

    def symbols(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` float32: share of the queries with an absolute error of at most `tolerance`."""
        return ((outputs - targets).abs() <= self.tolerance).flatten(1).float().mean(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` squared error, mean over the queries, in squared units of y."""
        return (outputs - targets).square().flatten(1).mean(1)


def _is_number(value: object) -> bool:
    return is_number(value) and math.isfinite(value)


def _range(name: str, given: object) -> tuple[float, float]:
    """A range as a tuple, which a list in a checkpoint's record is not."""
    pair = tuple(given) if isinstance(given, list | tuple) else ()
    if len(pair) != 2 or not all(map(_is_number, pair)) or not pair[0] <= pair[1]:
        raise InputError(f"{name} {given!r} is impossible: the lowest and the highest, such as (0.1, 0.5)")
    return float(pair[0]), float(pair[1])


def _between(words: Words, bounds: tuple[float, float]) -> NDArray[np.float64]:
    """Numbers uniform between two bounds, from the high 53 bits of random words."""
    low, high = bounds
    return low + (high - low) * ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _hash(curve: NDArray[np.float32]) -> Words:
    """For the split: amplitude and phase, bit by bit."""
    data = np.ascontiguousarray(curve.astype("<f4")).view(np.uint8)
    return instance_hash(np.unpackbits(data, axis=1, bitorder="little").view(np.bool_))
