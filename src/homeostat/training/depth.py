"""How many steps of the model a training step takes, and how many of them keep a graph: data, and a draw.

Every schedule draws a pair, the steps without a graph and then those with one, from a generator that the loop seeds
with the number of the training step.
"""

import math
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator
from scipy.stats import poisson

from homeostat.training.data import Data


class Walk(NamedTuple):
    """One run of the model from a start, and its weight in the loss."""

    weight: float
    free: int
    """Steps without a graph."""
    graphed: int
    """Steps with one, after those."""


class _Depth(Data):
    def walks(self, free: int, graphed: int) -> tuple[Walk, ...]:
        """The runs that a training step makes when `(free, graphed)` was drawn; the last reaches the deepest state."""
        return (Walk(1.0, free, graphed),)


class FixedDepth(_Depth):
    """Every training step takes `steps` steps of the model, all of them with a graph.

    Example:
        >>> FixedDepth(steps=14).draw(32, np.random.default_rng(0))
        (0, 14)
    """

    kind: Literal["fixed"] = "fixed"
    steps: int = Field(ge=1)

    def draw(self, size: int, rng: np.random.Generator) -> tuple[int, int]:
        """Steps without and with a graph."""
        return 0, self.steps

    def horizon(self, size: int) -> int:
        """The most steps that can be drawn."""
        return self.steps

    def expected(self, size: int) -> float:
        """Expected steps of a draw."""
        return self.steps


class RandomDepth(_Depth):
    """Uniformly many steps without a graph, then uniformly many with one (both ends included).

    Example:
        >>> RandomDepth(free=(0, 29), graphed=(5, 19)).horizon(32)
        48
    """

    kind: Literal["random"] = "random"
    free: tuple[float, float]
    """Least and most steps without a graph."""
    free_unit: Literal["steps", "sizes"] = "steps"
    """`"sizes"` counts `free` in multiples of the size of the instances."""
    graphed: tuple[int, int]

    @model_validator(mode="after")
    def _ordered(self) -> "RandomDepth":
        if not 0 <= self.free[0] <= self.free[1] < math.inf:
            raise ValueError(f"free must be least and most steps, 0 <= least <= most, not {self.free}")
        if not 1 <= self.graphed[0] <= self.graphed[1]:
            raise ValueError(f"graphed must be least and most steps, 1 <= least <= most, not {self.graphed}")
        return self

    def _free_range(self, size: int) -> tuple[int, int]:
        unit = size if self.free_unit == "sizes" else 1
        return round(self.free[0] * unit), round(self.free[1] * unit)

    def draw(self, size: int, rng: np.random.Generator) -> tuple[int, int]:
        """Steps without and with a graph."""
        low, high = self._free_range(size)
        return int(rng.integers(low, high + 1)), int(rng.integers(self.graphed[0], self.graphed[1] + 1))

    def horizon(self, size: int) -> int:
        """The most steps that can be drawn."""
        return self._free_range(size)[1] + self.graphed[1]

    def expected(self, size: int) -> float:
        """Expected steps of a draw."""
        return (sum(self._free_range(size)) + sum(self.graphed)) / 2


class LogNormalPoissonDepth(_Depth):
    """A depth with a long tail, as recurrent-depth language models are trained with; the last steps keep a graph.

    `steps = 1 + Poisson(exp(tau))` with `tau ~ Normal(log(mean) - sigma^2 / 2, sigma)`, so that a draw is `mean + 1`
    in expectation before the clip. Draws beyond the 99.9 % quantile are set to it: that is the horizon.

    Args:
        mean: expectation of `exp(tau)`.
        sigma: standard deviation of `tau`.
        graphed: most steps with a graph; steps before the last `graphed` are taken without one.

    Source:
        Geiping et al., "Scaling up test-time compute with latent reasoning", arXiv 2502.05171 (mean 32, sigma 1/2,
        8 steps with a graph).

    Example:
        >>> LogNormalPoissonDepth(mean=12, graphed=8).horizon(32)
        54
    """

    kind: Literal["lognormal-poisson"] = "lognormal-poisson"
    mean: float = Field(gt=0, le=10_000)
    sigma: float = Field(default=0.5, gt=0, le=2)
    graphed: int = Field(default=8, ge=1)

    def draw(self, size: int, rng: np.random.Generator) -> tuple[int, int]:
        """Steps without and with a graph."""
        rate = math.exp(rng.normal(math.log(self.mean) - self.sigma**2 / 2, self.sigma))
        steps = min(1 + int(rng.poisson(rate)), self.horizon(size))
        graphed = min(steps, self.graphed)
        return steps - graphed, graphed

    def horizon(self, size: int) -> int:
        """The most steps that can be drawn: the 99.9 % quantile of the unclipped draw."""
        return 1 + _quantile(self.mean, self.sigma)

    def expected(self, size: int) -> float:
        """Expected steps of a draw, without the clip."""
        return 1 + self.mean


class ProgressiveDepth(_Depth):
    """Deep-thinking's progressive loss: at most `steps` steps, and a part of them from a state of its own making.

    The loss is `(1 - alpha) * full + alpha * progressive`. The full run takes `steps` steps, all with a graph. The
    progressive run takes n ~ U{0, ..., steps - 1} steps without a graph and then k ~ U{1, ..., steps - n} with one, so
    that a step learns to improve any state on the way, wherever it came from. With `alpha` 1 there is only that run,
    with 0 only the full one.

    Source:
        Bansal et al., "End-to-end algorithm synthesis with recurrent networks", NeurIPS 2022, arXiv 2202.05826, and
        its code (prefix sums: 30 steps, alpha 1; mazes: 30 steps, alpha 0.01).

    Example:
        >>> ProgressiveDepth(steps=30, alpha=0.25).walks(10, 5)
        (Walk(weight=0.25, free=10, graphed=5), Walk(weight=0.75, free=0, graphed=30))
    """

    kind: Literal["progressive"] = "progressive"
    steps: int = Field(ge=1)
    alpha: float = Field(default=1.0, ge=0, le=1)

    def draw(self, size: int, rng: np.random.Generator) -> tuple[int, int]:
        """Steps without and with a graph of the progressive run."""
        free = int(rng.integers(0, self.steps))
        return free, int(rng.integers(1, self.steps - free + 1))

    def horizon(self, size: int) -> int:
        """The most steps that can be drawn."""
        return self.steps

    def expected(self, size: int) -> float:
        """Expected steps of the full run, or of the progressive one where it is alone."""
        # E[n] = (steps - 1) / 2, and E[k | n] = (steps - n + 1) / 2.
        return self.steps if self.alpha < 1 else (self.steps - 1) / 2 + (self.steps + 3) / 4

    def walks(self, free: int, graphed: int) -> tuple[Walk, ...]:
        """The progressive run and the full one, without that whose weight is 0."""
        both = (Walk(self.alpha, free, graphed), Walk(1 - self.alpha, 0, self.steps))
        return tuple(walk for walk in both if walk.weight > 0)


Depth = Annotated[FixedDepth | RandomDepth | LogNormalPoissonDepth | ProgressiveDepth, Field(discriminator="kind")]

_TAIL = 1e-3


@lru_cache
def _quantile(mean: float, sigma: float) -> int:
    """The smallest n with P(Poisson(exp(tau)) <= n) of 99.9 % or more, by Gauss-Hermite quadrature over tau."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(96)
    rates = np.exp(math.log(mean) - sigma**2 / 2 + sigma * nodes)
    weights = weights / weights.sum()
    low, high = 0, 1

    def covered(n: int) -> bool:
        return float(weights @ poisson.cdf(n, rates)) >= 1 - _TAIL

    while not covered(high):
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if covered(middle) else (middle + 1, high)
    return low
