"""Courses of many examples, made in parts that are kept on disk, so that a run that was killed goes on."""

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from homeostat.files import write_bytes
from homeostat.models import Checkpoint
from homeostat.models.model_hash import hash_of
from homeostat.probes.courses.courses import Courses
from homeostat.probes.courses.follow import follow
from homeostat.probes.courses.signals import CHEAP, Signal
from homeostat.tasks import Task

Tell = Callable[[str], None]


def courses_of(
    checkpoint: Checkpoint,
    task: Task,
    sizes: Sequence[int],
    count: int,
    *,
    seed: int,
    max_steps: int,
    folder: Path,
    tell: Tell,
    part: int = 100,
) -> Courses:
    """`count` test instances of each size, in parts of `part`; each part has a seed of its own.

    Files are numbers alone (`allow_pickle` is off), named after the weights, so that another model finds none of them.
    """
    weights = checkpoint.config.sha256
    found: list[Courses] = []
    for number, size in enumerate(sizes):
        for first in range(0, count, part):
            many = min(part, count - first)
            name = f"{weights[:10]}-{task.name}-{size}-{max_steps}-{seed}-{first}-{many}.npz"
            path = folder / name
            courses = _read(path, checkpoint, size, task, max_steps)
            if courses is None:
                batch = task.sample(size, many, split="test", seed=seed * 1_000_003 + first)
                rows = max(2, 2**16 // max(1, batch.targets[0].numel()))
                batches = [tuple(batch[at : at + rows]) for at in range(0, many, rows)]
                named: dict[str, Any] = {f"{size} {task.size_name}": batches}
                courses = follow(checkpoint.model, named, max_steps=max_steps, judge=task)
                _write(path, courses)
                tell(f"{size} {task.size_name}: {first + many} of {count} followed")
            found.append(_numbered(courses, number))
    return _joined(found, tuple(f"{size} {task.size_name}" for size in sizes))


def _write(path: Path, courses: Courses) -> None:
    data = io.BytesIO()
    tables: dict[str, Any] = {f"signal_{name}": values for name, values in courses.signals.items()}
    tables |= {"reads": np.array(courses.reads), "masked": np.array(courses.masked)}
    np.savez(data, right=courses.right, failed_at=courses.failed_at, **tables)
    write_bytes(path, data.getvalue())


def _read(path: Path, checkpoint: Checkpoint, size: int, task: Task, max_steps: int) -> Courses | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            signals: dict[Signal, np.ndarray] = {
                name: file[f"signal_{name}"] for name in CHEAP if f"signal_{name}" in file
            }
            return Courses(
                model=checkpoint.config.name,
                model_hash=hash_of(checkpoint.model),
                difficulties=(f"{size} {task.size_name}",),
                group=np.zeros(len(file["right"]), dtype=np.int64),
                signals=signals,
                right=file["right"],
                failed_at=file["failed_at"],
                reads=str(file["reads"]),  # type: ignore[arg-type]
                masked=bool(file["masked"]),
                seed=0,
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _numbered(courses: Courses, number: int) -> Courses:
    return replace(courses, group=np.full(len(courses), number))


def _joined(parts: list[Courses], names: tuple[str, ...]) -> Courses:
    first = parts[0]
    return replace(
        first,
        difficulties=names,
        group=np.concatenate([part.group for part in parts]),
        signals={name: np.concatenate([part.signals[name] for part in parts]) for name in first.signals},
        right=np.concatenate([part.right for part in parts]),
        failed_at=np.concatenate([part.failed_at for part in parts]),
    )


def set_threads() -> None:
    """One, so that two runs at once do not disturb each other."""
    torch.set_num_threads(1)
