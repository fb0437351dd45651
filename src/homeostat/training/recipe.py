"""A recipe is data: start distribution x depth schedule x gradient x interventions x optimiser x sizes."""

import math
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from homeostat.models.checkpoint import TaskReference
from homeostat.models.registry import ModelConfig
from homeostat.models.starts import Start, Zeros
from homeostat.training.data import Data
from homeostat.training.depth import Depth, ProgressiveDepth
from homeostat.training.gradient import GradientChoice
from homeostat.training.pool import Segments
from homeostat.training.terms import JacobianTerm, PathPenalty


class Optimiser(Data):
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


class Recipe(Data):
    """How a model is trained; enough, with a seed, to train it again.

    Example:
        >>> from homeostat.models import RecallConfig
        >>> from homeostat.tasks import PrefixSums
        >>> from homeostat.training import FixedDepth
        >>> bits, model = TaskReference(name="prefix-sums"), RecallConfig.of(PrefixSums())
        >>> Recipe(task=bits, model=model, depth=FixedDepth(steps=4), steps=10, sizes=(8, 16))
        Recipe(prefix-sums: zeros start, fixed depth, unrolled, 10 steps of 128)
    """

    name: str = "custom"
    description: str = ""
    task: TaskReference
    train_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the task in training alone, such as `{"longest_of": 5}` for mazes with longer paths."""
    model: ModelConfig | None = None
    """None is the recall network in the sizes of the task."""
    start: Start = Zeros()
    depth: Depth
    gradient: GradientChoice = "unrolled"
    """`unrolled` goes back through the graphed steps; all others differentiate the fixed point where they end."""
    path_noise: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Standard deviation of the noise that is added to the state after every step, in units of the state."""
    jacobian: JacobianTerm | None = None
    path_penalty: PathPenalty | None = None
    segments: Segments | None = None
    """Rows that carry their states from one training step to the next; None starts anew at each."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of a moving average of the weights, which then is what the checkpoint holds; 0 keeps none."""
    optimiser: Optimiser = Optimiser()
    steps: int = Field(ge=1)
    batch: int = Field(default=128, ge=1)
    instances: int | None = Field(default=None, ge=1)
    """Instances of each size that there are to train on, drawn once with the seed of the training and visited in
    shuffled rounds; None draws new ones at every step. See `training_instances`."""
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

    @model_validator(mode="after")
    def _possible(self) -> Self:
        plain = self.gradient == "unrolled"
        if self.path_noise > 0 and not plain:
            raise ValueError("path_noise needs gradient 'unrolled': a fixed point is one of the same map at every step")
        if isinstance(self.depth, ProgressiveDepth) and not plain:
            raise ValueError("progressive depth needs gradient 'unrolled': it says which steps keep a graph")
        if self.instances is not None and self.instances < self.batch:
            raise ValueError(f"a batch of {self.batch} is more than the {self.instances} instances to train on")
        if self.segments is None:
            return self
        if self.instances is not None:
            raise ValueError("segments need new instances at every step: leave instances out")
        if not plain:
            raise ValueError("segments need gradient 'unrolled': a carried state is on its way, not at a fixed point")
        if isinstance(self.depth, ProgressiveDepth):
            raise ValueError("segments need a depth of one run; progressive depth makes two from the same start")
        if self.path_penalty is not None:
            raise ValueError("segments cannot have a path_penalty: it compares runs that begin together")
        return self

    def changed(self, **changes: Any) -> Self:
        """The recipe with other values in some fields, validated like a new one.

        Raises:
            ValidationError: a field that does not exist, a value or a combination that is impossible.

        Example:
            >>> from homeostat.training import FixedDepth, get_recipe
            >>> get_recipe("fixed").changed(steps=5, depth=FixedDepth(steps=3))
            Recipe(prefix-sums: zeros start, fixed depth, unrolled, 5 steps of 128)
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(given | changes)

    @property
    def horizon(self) -> int:
        """The most steps an example takes in training, from its start on.

        With segments there is no such number, and this is what an example takes in expectation, rounded up: the
        expected steps of a draw times the expected `1 / fresh` draws of a lifetime. The training record has the most
        that any example did take.
        """
        largest = max(self.sizes)
        most = self.depth.horizon(largest)
        if self.segments is None:
            return most
        return max(most, math.ceil(self.depth.expected(largest) / self.segments.fresh))

    def draw(self, step: int, rng: np.random.Generator) -> tuple[int, int, int]:
        """Size, steps without a graph and steps with one, for training step `step` (from 0)."""
        span = self.growth * self.steps
        joined = len(self.sizes) if span == 0 else 1 + int(step / span * (len(self.sizes) - 1))
        sizes = self.sizes[: min(joined, len(self.sizes))]
        size = sizes[-1] if rng.random() < self.largest else int(rng.choice(sizes))
        return size, *self.depth.draw(size, rng)

    def __repr__(self) -> str:
        gradient = self.gradient if isinstance(self.gradient, str) else self.gradient.kind
        parts = [f"{self.start.kind} start", f"{self.depth.kind} depth", gradient]
        parts += [f"path noise {self.path_noise:g}"] if self.path_noise else []
        parts += ["Jacobian term"] if self.jacobian else []
        parts += [f"path penalty {self.path_penalty.weight:+g}"] if self.path_penalty else []
        parts += ["segments"] if self.segments else []
        parts += [f"EMA {self.ema:g}"] if self.ema else []
        parts += [f"{self.instances} instances"] if self.instances else []
        return f"Recipe({self.task.name}: {', '.join(parts)}, {self.steps} steps of {self.batch})"

    def as_record(self) -> dict[str, Any]:
        """The recipe as plain data, as it stands in a checkpoint."""
        return self.model_dump(mode="json", exclude={"start": {"seed", "indices"}})
