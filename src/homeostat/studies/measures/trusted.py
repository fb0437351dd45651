"""Which signal tells right from wrong."""

from typing import Any, ClassVar

from homeostat.models.checkpoint import Checkpoint
from homeostat.probes.trust import compare_trust
from homeostat.studies.jobs import Place
from homeostat.studies.measures.base import SEED, Measure
from homeostat.tasks import Task


class Trusted(Measure):
    """How well each signal tells right answers from wrong ones without a label."""

    word: ClassVar[str] = "trust"

    def measure(self, checkpoint: Checkpoint, task: Task, place: Place) -> dict[str, Any]:
        found = compare_trust(
            checkpoint.model, self.batches(task), steps=self.steps, judge=task, seed=SEED, device=place.device
        )
        group = found.groups[0]
        signals = [{"signal": row.signal, "auc": row.auc, "aurc": row.aurc, "points": row.points} for row in found.rows]
        right = sum(group.correct)
        return {"rows": signals, "right": right, "wrong": len(group.correct) - right, "missing": group.missing}
