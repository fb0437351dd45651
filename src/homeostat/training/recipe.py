"""A recipe is data: start distribution x depth schedule x gradient x optimiser x sizes. The loop reads it."""

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from homeostat.models.checkpoint import TaskReference
from homeostat.models.registry import ModelConfig
from homeostat.models.starts import Start, Zeros


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FixedDepth(_Data):
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


class RandomDepth(_Data):
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


Depth = Annotated[FixedDepth | RandomDepth, Field(discriminator="kind")]


class Optimiser(_Data):
    """AdamW with gradient clipping. `one-cycle` warms up for 30 % of the steps and falls to nothing along a cosine."""

    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Largest norm of the gradient over all parameters."""
    schedule: Literal["constant", "one-cycle"] = "constant"

    def rate(self, progress: float) -> float:
        """Learning rate at a share `progress`, 0 to 1, of the training."""
        if self.schedule == "constant":
            return self.learning_rate
        warm, low = 0.3, 0.04
        if progress < warm:
            return self.learning_rate * (low + (1 - low) * 0.5 * (1 - math.cos(math.pi * progress / warm)))
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


class Recipe(_Data):
    """How a model is trained; enough, with a seed, to train it again.

    Example:
        >>> from homeostat.models import RecallConfig
        >>> from homeostat.tasks import PrefixSums
        >>> bits, model = TaskReference(name="prefix-sums"), RecallConfig.of(PrefixSums())
        >>> Recipe(task=bits, model=model, depth=FixedDepth(steps=4), steps=10, sizes=(8, 16))
        Recipe(prefix-sums: zeros start, fixed depth, unrolled, 10 steps of 128)
    """

    name: str = "custom"
    description: str = ""
    task: TaskReference
    model: ModelConfig | None = None
    """None is the recall network in the sizes of the task."""
    start: Start = Zeros()
    depth: Depth
    gradient: Literal["unrolled", "implicit"] = "unrolled"
    """`unrolled` goes back through the graphed steps; `implicit` differentiates the fixed point where they end."""
    optimiser: Optimiser = Optimiser()
    steps: int = Field(ge=1)
    batch: int = Field(default=128, ge=1)
    sizes: tuple[int, ...] = Field(min_length=1)
    """Sizes of the training instances, easiest first."""
    growth: float = Field(default=0.0, ge=0, le=1)
    """Share of the training over which sizes join, one after the other; 0 uses all of them from the first step."""
    largest: float = Field(default=0.0, ge=0, le=1)
    """Share of the training steps that take the largest size that has joined; the others draw among all of them."""
    predict_steps: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """Most steps of a prediction, in multiples of the longest side of its input."""
    predict_damping: float = Field(default=1.0, gt=0, le=1)
    """Share of a step that a prediction takes at a time; training takes whole steps."""

    @property
    def horizon(self) -> int:
        """The most steps an example takes in training."""
        return self.depth.horizon(max(self.sizes))

    def draw(self, step: int, rng: np.random.Generator) -> tuple[int, int, int]:
        """Size, steps without a graph and steps with one, for training step `step` (from 0)."""
        span = self.growth * self.steps
        joined = len(self.sizes) if span == 0 else 1 + int(step / span * (len(self.sizes) - 1))
        sizes = self.sizes[: min(joined, len(self.sizes))]
        size = sizes[-1] if rng.random() < self.largest else int(rng.choice(sizes))
        return size, *self.depth.draw(size, rng)

    def __repr__(self) -> str:
        kind = f"{self.start.kind} start, {self.depth.kind} depth, {self.gradient}"
        return f"Recipe({self.task.name}: {kind}, {self.steps} steps of {self.batch})"

    def as_record(self) -> dict[str, Any]:
        """The recipe as plain data, as it stands in a checkpoint."""
        return self.model_dump(mode="json", exclude={"start": {"seed", "indices"}})
