"""What is measured of a net: jobs that need its training. All of one section use the same test instances."""

from abc import abstractmethod
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch.utils import _pytree as pytree

from homeostat.engine import Picard, Stop, solve
from homeostat.models.checkpoint import Checkpoint
from homeostat.models.starts import Own
from homeostat.probes import audit
from homeostat.studies.jobs import Job, Place
from homeostat.studies.path_independence.nets import Net
from homeostat.tasks import Task, get_task

_SEED = 7
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
    probe: ClassVar[str]
    """The module that measures."""

    @property
    def label(self) -> str:
        options = "".join(f", {name} {value}" for name, value in self.options.items())
        return f"{self.word} of {self.net.label}, size {self.size}{options}, {self.steps} steps"

    @property
    def code(self) -> tuple[str, ...]:
        return (*self.net.code, self.probe)

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
        whole = task.sample(self.size, self.count, split="test", seed=_SEED)
        positions = max(1, max(leaf[0].numel() for leaf in pytree.tree_leaves(whole.targets)))
        parts = max(1, min(-(-self.count * positions // _BATCH_POSITIONS), self.count // 2))
        ends = np.linspace(0, self.count, parts + 1).round().astype(int).tolist()
        return [tuple(whole[first:end]) for first, end in pairwise(ends)]


class Followed(Measure):
    """Every instance followed through every step, from the net's own start."""

    word: ClassVar[str] = "answers"
    probe: ClassVar[str] = "homeostat.probes.audit"

    def measure(self, checkpoint: Checkpoint, task: Task, place: Place) -> dict[str, Any]:
        tell = place.teller()
        horizon = checkpoint.config.trained_steps
        budgets = sorted(
            {n for n in (horizon, self.steps // 4, self.steps // 2) if n and n < self.steps} | {self.steps}
        )
        found = audit(
            checkpoint.model,
            self.batches(task),
            steps=budgets,
            judge=task,
            seed=_SEED,
            device=place.device,
            alignment=False,
            on_event=lambda event: tell((event.first + event.rows * event.progress) / self.count),
        ).difficulties[0]
        return {
            "budgets": found.budgets,
            "limits": found.limits,
            "correct": [example.correct for example in found.examples],
            "residual": [example.residual for example in found.examples],
            "limit": [example.limit for example in found.examples],
            "period": [example.period for example in found.examples],
            "lost": [example.lost for example in found.examples],
            "settled_at": [example.settled_at for example in found.examples],
            "row_evaluations": found.row_evaluations,
            **({"error": self._errors(checkpoint, task, place)} if hasattr(task, "error") else {}),
        }

    def _errors(self, checkpoint: Checkpoint, task: Any, place: Place) -> list[float]:
        """The task's own error of each example at the end: for answers that are numbers, not labels."""
        found: list[float] = []
        model = checkpoint.model
        with torch.no_grad():
            for batch in self.batches(task):
                inputs, targets = pytree.tree_map(lambda leaf: leaf.to(place.device), batch)
                context = model.encode(inputs)
                stop = Stop(rtol=0, max_steps=self.steps)
                state = solve(
                    model.step, model.initial_state(context, Own()), context, method=Picard(), stop=stop
                ).state
                found += task.error(model.decode(state, context), targets).tolist()
        return found


class Aligned(Measure):
    """Where the net ends from other starts."""

    starts: tuple[str, ...] = ("noise 1", "swapped")

    word: ClassVar[str] = "alignment"
    probe: ClassVar[str] = "homeostat.probes.starts"

    @property
    def label(self) -> str:
        return f"{super().label}, from {' and '.join(self.starts)}"

    def measure(self, checkpoint: Checkpoint, task: Task, place: Place) -> dict[str, Any]:
        from homeostat.probes import align_starts

        found = align_starts(
            checkpoint.model,
            self.batches(task),
            steps=self.steps,
            starts=self.starts,
            judge=task,
            seed=_SEED,
            device=place.device,
        )
        return {"starts": {row.start: row for row in found.rows}}


class Attacked(Measure):
    """Accuracy when the start is chosen, within a ball, to break the answer or the alignment."""

    objective: str = "answer"
    radius: float = 1.0
    restarts: int = 3
    iterations: int = 20
    grad_steps: int | None = None

    word: ClassVar[str] = "attack"
    probe: ClassVar[str] = "homeostat.probes.attack"

    @property
    def label(self) -> str:
        return f"{super().label}, on the {self.objective}"

    def measure(self, checkpoint: Checkpoint, task: Task, place: Place) -> dict[str, Any]:
        from homeostat.probes import attack

        more = {} if self.grad_steps is None else {"grad_steps": self.grad_steps}
        found = attack(
            checkpoint.model,
            self.batches(task),
            steps=self.steps,
            radius=self.radius,
            objective=self.objective,
            restarts=self.restarts,
            iterations=self.iterations,
            judge=task,
            seed=_SEED,
            device=place.device,
            **more,
        )
        return {"row": found.rows[0], "radius": self.radius}


class Trusted(Measure):
    """How well each signal tells right answers from wrong ones without a label."""

    word: ClassVar[str] = "trust"
    probe: ClassVar[str] = "homeostat.probes.trust"

    def measure(self, checkpoint: Checkpoint, task: Task, place: Place) -> dict[str, Any]:
        from homeostat.probes import compare_trust

        found = compare_trust(
            checkpoint.model, self.batches(task), steps=self.steps, judge=task, seed=_SEED, device=place.device
        )
        group = found.groups[0]
        signals = [{"signal": row.signal, "auc": row.auc, "aurc": row.aurc, "points": row.points} for row in found.rows]
        right = sum(group.correct)
        return {"rows": signals, "right": right, "wrong": len(group.correct) - right, "missing": group.missing}
