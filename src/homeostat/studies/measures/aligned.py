"""Alignment from other starts."""

from typing import Any, ClassVar

from homeostat.models.checkpoint import Checkpoint
from homeostat.probes.starts.align import align_starts
from homeostat.studies.jobs import Place
from homeostat.studies.measures.base import SEED, Measure
from homeostat.tasks import Task


class Aligned(Measure):
    """Where the net ends from other starts."""

    starts: tuple[str, ...] = ("noise 1", "swapped")

    word: ClassVar[str] = "alignment"

    @property
    def label(self) -> str:
        return f"{super().label}, from {' and '.join(self.starts)}"

    def measure(self, checkpoint: Checkpoint, task: Task, place: Place) -> dict[str, Any]:
        found = align_starts(
            checkpoint.model,
            self.batches(task),
            steps=self.steps,
            starts=self.starts,
            judge=task,
            seed=SEED,
            device=place.device,
        )
        return {"starts": {row.start: row for row in found.rows}}
