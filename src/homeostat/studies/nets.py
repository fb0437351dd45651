"""The trainings of the study: one job for each net."""

from typing import Any

import torch
from lightning_fabric import Fabric
from pydantic import Field

from homeostat.models.checkpoint import Checkpoint, load
from homeostat.models.recall import RecallNet
from homeostat.models.registry import NETS
from homeostat.studies.jobs import Job, Place
from homeostat.tasks import Task, get_task
from homeostat.training.loop import TrainingEvent, train
from homeostat.training.recipe import Recipe


class Net(Job):
    """A net, trained by a recipe with a seed. Its folder is a checkpoint."""

    recipe: Recipe
    seed: int
    expected: float = Field(default=90.0, exclude=True)
    """Seconds on one core; not part of what the job is."""

    @property
    def label(self) -> str:
        return f"{self.recipe.name}, seed {self.seed}"

    @property
    def code(self) -> tuple[str, ...]:
        task = get_task(self.recipe.task.name, **self.recipe.task.options)
        net = NETS[type(self.recipe.model)] if self.recipe.model else RecallNet
        return (__name__, type(task).__module__, net.__module__)

    @property
    def seconds(self) -> float:
        return self.expected

    def run(self, place: Place) -> dict[str, Any]:
        tell = place.teller()

        def on_step(event: TrainingEvent) -> None:
            tell(event.step / event.steps, f"loss {event.loss:.3f}")

        device = torch.device(place.device)
        fabric = Fabric(accelerator=device.type, devices=1 if device.index is None else [device.index])
        checkpoint = train(self.recipe, place.folder(self), seed=self.seed, fabric=fabric, on_step=on_step)
        record = checkpoint.config.training
        return {
            "training_seconds": record["seconds"],
            "evaluations": record.get("row_evaluations", {"forward": 0, "graphed": 0, "adjoint": 0}),
            "final_loss": record["final_loss"],
            "last_residuals": record.get("last_residuals", {}),
            "parameters": sum(p.numel() for p in checkpoint.model.parameters()),
            "horizon": checkpoint.config.trained_steps,
        }

    def load(self, place: Place) -> tuple[Checkpoint, Task]:
        """The trained net, and the task that it was trained for."""
        checkpoint = load(place.folder(self), device=place.device)
        return checkpoint, get_task(self.recipe.task.name, **self.recipe.task.options)
