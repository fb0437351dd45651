"""Audit a checkpoint on its own task: test instances by size, budgets up to what the largest size needs."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from homeostat.inference.puzzles import most_steps
from homeostat.models import Checkpoint
from homeostat.probes import Audit, AuditEvent, audit
from homeostat.studies.instances import instances_of
from homeostat.tasks import Task


def default_budgets(longest: int) -> list[int]:
    """Powers of two with their halves between, up to `longest`: 1, 2, 3, 4, 6, 8, 12, …

    Example:
        >>> default_budgets(20)
        [1, 2, 3, 4, 6, 8, 12, 16, 20]
    """
    found = {1, 2, 3, longest}
    power = 4
    while power < longest:
        found |= {power, power * 3 // 2}
        power *= 2
    return sorted(x for x in found if x <= longest)


def audit_checkpoint(
    checkpoint: Checkpoint,
    task: Task,
    counts: Mapping[int, int],
    *,
    steps: Sequence[int] | None = None,
    seed: int = 0,
    alignment: bool = True,
    settle_rtol: float = 1e-3,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Audit:
    """Audit a checkpoint on test instances of its task.

    Args:
        counts: number of instances by size.
        steps: budgets; up to what the largest size needs when None.
        seed: of the instances and the noise starts.
        on_progress: told the share of the work that is done, 0 to 1.

    Example:
        >>> from homeostat.models import load
        >>> from homeostat.tasks import get_task
        >>> found = audit_checkpoint(load("mazes"), get_task("mazes"), {3: 4}, steps=[1, 4, 16, 64])
        >>> found.difficulty("3 rooms a side").count
        4
    """
    sizes = sorted(counts)
    groups = {found.name: found for found in instances_of(task, counts, seed=seed)}
    if steps is None:
        steps = default_budgets(most_steps(checkpoint.config, max(found.side for found in groups.values())))
    work = [found.count * found.positions for found in groups.values()]
    finished = dict(zip(groups, np.cumsum([0, *work]).tolist(), strict=False))

    def tell(event: AuditEvent) -> None:
        examples = event.first + event.rows * event.progress
        if on_progress is not None:
            on_progress((finished[event.difficulty] + examples * groups[event.difficulty].positions) / sum(work))

    return audit(
        checkpoint.model,
        groups,
        steps=steps,
        judge=task,
        settle_rtol=settle_rtol,
        seed=seed,
        spans={name: span for size, name in zip(sizes, groups, strict=True) if (span := task.span(size)) is not None},
        name=name or checkpoint.config.name,
        description=_description(checkpoint),
        alignment=alignment,
        on_event=tell,
    )


def _description(checkpoint: Checkpoint) -> str:
    """The recipe in words, with the seed it was trained with."""
    config = checkpoint.config
    seed = config.training.get("seed")
    parts = [config.description, None if seed is None else f"training seed {seed}"]
    return "; ".join(part for part in parts if part)
