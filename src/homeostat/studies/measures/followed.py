"""A net followed through every step."""

from typing import Any, ClassVar

import torch
from torch.utils import _pytree as pytree

from homeostat.engine import Picard, Stop, solve
from homeostat.models.checkpoint import Checkpoint
from homeostat.models.starts import Own
from homeostat.probes.audits.audit import audit
from homeostat.studies.jobs import Place
from homeostat.studies.measures.base import SEED, Measure
from homeostat.tasks import Task


class Followed(Measure):
    """Every instance followed through every step, from the net's own start."""

    word: ClassVar[str] = "answers"

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
            seed=SEED,
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
