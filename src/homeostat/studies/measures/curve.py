"""Loss, accuracy and residual against the test budget, on what a net was trained on or on held-out instances."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from homeostat.models.starts import Own
from homeostat.probes.examples import batches_of, evaluating
from homeostat.probes.judge import Judge
from homeostat.probes.sweep import sweep_batch
from homeostat.studies.jobs import Job, Place
from homeostat.studies.measures.base import SEED, in_parts
from homeostat.studies.nets import Net
from homeostat.tasks import get_task
from homeostat.training import training_instances


class Curve(Job):
    """A net run from its own start to each of several budgets, in one pass.

    Its values are `budgets` and, for each of them in order, a list with an entry for each example: `loss`, `correct`
    (right in full) and `residual` (RMS(f(z) - z) over RMS(f(z)) of the last step, the largest over the leaves of the
    state); `symbols`, the share of right symbols, where the task has them. `failed` counts, at each budget, the
    examples whose state is not finite: their loss and residual are None, their answer is wrong. `rows` is how many
    examples there are.

    `data="training"` takes the instances that this very net was trained on, or, where every training step drew new
    ones, as many others drawn in the same way: see `training_instances`. `data="held-out"` takes instances of the test
    split, which are the same for every net.
    """

    net: Net
    size: int | None = None
    """Of the instances; the largest of the recipe when None."""
    count: int = Field(ge=1)
    """Most instances; there are fewer where the net was trained on fewer."""
    budgets: tuple[int, ...] = Field(min_length=1)
    """Steps after which it is measured, fewest first."""
    data: Literal["training", "held-out"]
    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of the task that differ from the training, for held-out instances that are harder."""
    expected: float = Field(default=5.0, exclude=True)

    @model_validator(mode="after")
    def _rising(self) -> "Curve":
        if self.budgets[0] < 1 or list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"budgets must be steps from 1 on, fewest first, each once, not {self.budgets}")
        if self.options and self.data == "training":
            raise ValueError("training instances have the options of the training: leave options out")
        return self

    @property
    def label(self) -> str:
        size = "" if self.size is None else f", size {self.size}"
        options = "".join(f", {name} {value}" for name, value in self.options.items())
        return f"{self.data} curve of {self.net.label}{size}{options}, to {self.budgets[-1]} steps"

    @property
    def code(self) -> tuple[str, ...]:
        return (*self.net.code, __name__)

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.net,)

    @property
    def seconds(self) -> float:
        return self.expected

    def run(self, place: Place) -> dict[str, Any]:
        checkpoint, task = self.net.load(place)
        recipe, tell = self.net.recipe, place.teller()
        if self.options:
            task = get_task(task.name, **{**recipe.task.options, **self.options})
        size = max(recipe.sizes) if self.size is None else self.size
        if self.data == "training":
            whole = training_instances(recipe, seed=self.net.seed, size=size, count=self.count)
        else:
            whole = task.sample(size, self.count, split="test", seed=SEED)
        model, judge = checkpoint.model, Judge.of(task)
        columns: dict[str, list[np.ndarray]] = {"loss": [], "correct": [], "symbols": [], "residual": []}
        with evaluating(model, place.device) as device:
            for batch in batches_of(self.data, in_parts(whole), device):
                start = Own().seeded(SEED, batch.indices)

                def on_step(step: int, first: int = batch.indices.start, rows: int = batch.rows) -> None:
                    tell((first + rows * step / self.budgets[-1]) / len(whole))

                swept, _ = sweep_batch(
                    model,
                    batch.inputs,
                    batch.targets,
                    judge,
                    self.budgets,
                    0.0,
                    lambda context, start=start: model.initial_state(context, start),
                    on_step,
                )
                for name, parts in columns.items():
                    found = getattr(swept, name)
                    if found is not None:
                        parts.append(found)
        failed = [int(np.isinf(column).sum()) for column in _by_budget(columns["residual"])]
        lists = {name: [column.tolist() for column in _by_budget(parts)] for name, parts in columns.items() if parts}
        return {"budgets": self.budgets, "rows": len(whole), **lists, "failed": failed}


def _by_budget(parts: Sequence[np.ndarray]) -> np.ndarray:
    """`(budgets, examples)` from `(rows, budgets)` of each batch."""
    return np.concatenate(parts).T
