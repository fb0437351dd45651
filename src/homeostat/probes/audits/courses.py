"""The courses of an audit: residuals, unchanged answers and what was right, at every step of every example."""

from collections.abc import Sequence

import numpy as np

from homeostat.probes.audits.summary import Collected
from homeostat.probes.courses.courses import Courses
from homeostat.probes.courses.signals import HowRead, Signal
from homeostat.probes.judge import Judge

MOST_CELLS = 20_000_000
"""Examples times steps of a difficulty that are kept; an audit of more keeps no courses."""


def join_courses(model: str, model_hash: str | None, collections: Sequence[Collected], judge: Judge) -> Courses | None:
    """What the batches kept, as one table; None where one kept nothing."""
    courses = [sweep.course for collected in collections for sweep in collected.sweeps]
    if any(course is None for course in courses):
        return None
    kept = [course for course in courses if course is not None]
    signals: dict[Signal, np.ndarray] = {"residual": np.concatenate([course.residual for course in kept])}
    stable = [course.stable for course in kept if course.stable is not None]
    if len(stable) == len(kept):
        signals["stable"] = np.concatenate(stable)
    counts = [sum(len(sweep.failed_at) for sweep in collected.sweeps) for collected in collections]
    reads: HowRead = "none" if "stable" not in signals else "outputs" if judge.answers is None else "judge"
    return Courses(
        model=model,
        model_hash=model_hash,
        difficulties=tuple(collected.name for collected in collections),
        group=np.repeat(np.arange(len(counts)), counts),
        signals=signals,
        right=np.concatenate([course.right for course in kept]),
        failed_at=np.concatenate([sweep.failed_at for collected in collections for sweep in collected.sweeps]),
        reads=reads,
        masked=judge.asked is not None,
        seed=0,
        notes=("only the residual and unchanged answers were recorded; follow() records all signals",),
    )
