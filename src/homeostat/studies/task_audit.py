"""Audit a checkpoint on its own task: test instances by size, budgets up to what the largest size needs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from homeostat.inference.predict import most_steps
from homeostat.models import Checkpoint
from homeostat.probes import Audit, AuditEvent, audit
from homeostat.tasks import Task

_BATCH_POSITIONS = 2**16
"""Positions of a batch, so that large instances come in small batches and memory stays bounded."""


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
    names = {size: f"{size} {task.size_name}" for size in sizes}
    shapes = {size: task.sample(size, 1, split="test", seed=seed).targets.shape[1:] for size in sizes}
    sides = {size: max(shape, default=1) for size, shape in shapes.items()}
    positions = {size: shape.numel() for size, shape in shapes.items()}
    if steps is None:
        steps = default_budgets(most_steps(checkpoint.config, max(sides.values())))
    total = sum(counts[size] * positions[size] for size in sizes)
    finished = np.cumsum([0, *(counts[size] * positions[size] for size in sizes)])

    def tell(event: AuditEvent) -> None:
        size = sizes[[names[s] for s in sizes].index(event.difficulty)]
        done = finished[sizes.index(size)] + (event.first + event.rows * event.progress) * positions[size]
        if on_progress is not None:
            on_progress(float(done / total))

    def batches(size: int) -> Iterator[tuple]:
        batch = task.sample(size, counts[size], split="test", seed=seed)
        rows = max(2, _BATCH_POSITIONS // positions[size])
        # Even parts, so that no example is left alone in the last one: swapped starts need another example.
        parts = -(-counts[size] // rows)
        ends = np.linspace(0, counts[size], parts + 1).round().astype(int).tolist()
        for first, end in pairwise(ends):
            yield tuple(batch[first:end])

    return audit(
        checkpoint.model,
        {names[size]: batches(size) for size in sizes},
        steps=steps,
        judge=task,
        settle_rtol=settle_rtol,
        seed=seed,
        spans={names[size]: span for size in sizes if (span := task.span(size)) is not None},
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
