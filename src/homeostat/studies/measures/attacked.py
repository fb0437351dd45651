"""Starts chosen by an adversary."""

from typing import Any, ClassVar

from homeostat.models.checkpoint import Checkpoint
from homeostat.probes.attacks.attack import AttackObjective, attack
from homeostat.studies.jobs import Place
from homeostat.studies.measures.base import SEED, Measure
from homeostat.tasks import Task


class Attacked(Measure):
    """Accuracy when the start is chosen, within a ball, to break the answer or the alignment."""

    objective: AttackObjective = "answer"
    radius: float = 1.0
    restarts: int = 3
    iterations: int = 20
    grad_steps: int | None = None

    word: ClassVar[str] = "attack"

    @property
    def label(self) -> str:
        return f"{super().label}, on the {self.objective}"

    def measure(self, checkpoint: Checkpoint, task: Task, place: Place) -> dict[str, Any]:
        found = attack(
            checkpoint.model,
            self.batches(task),
            steps=self.steps,
            radius=self.radius,
            objective=self.objective,
            restarts=self.restarts,
            iterations=self.iterations,
            grad_steps=self.grad_steps,
            judge=task,
            seed=SEED,
            device=place.device,
        )
        return {"row": found.rows[0], "radius": self.radius}
