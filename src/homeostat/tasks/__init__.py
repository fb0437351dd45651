"""Tasks that demand iteration, with a difficulty dial, an exact checker, and a form that people can type or draw."""

from dataclasses import fields, is_dataclass
from typing import Any

from homeostat.errors import InputError
from homeostat.tasks.base import (
    IGNORE,
    Batch,
    ClassificationTask,
    LabelTask,
    Legend,
    Puzzle,
    PuzzleTask,
    Split,
    Task,
    stack,
)
from homeostat.tasks.blurry_digits import BlurryDigits
from homeostat.tasks.edge_copy import EdgeCopy
from homeostat.tasks.few_shot import FewShotCharacters, FewShotDigits, FewShotTask, MiniImageNet, Omniglot
from homeostat.tasks.images import Images
from homeostat.tasks.matrix_inversion import MatrixInversion
from homeostat.tasks.mazes import Mazes
from homeostat.tasks.prefix_sums import PrefixSums
from homeostat.tasks.sinusoids import Sinusoids
from homeostat.tasks.sudoku import Sudoku
from homeostat.tasks.text import Text

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        PrefixSums,
        Mazes,
        Sudoku,
        MatrixInversion,
        EdgeCopy,
        BlurryDigits,
        Sinusoids,
        Images,
        Text,
        FewShotCharacters,
        FewShotDigits,
        Omniglot,
        MiniImageNet,
    )
}
"""Every task by name."""


def get_task(name: str, **options: Any) -> Task:
    """A task by name; an underscore counts as a hyphen.

    Args:
        options: the fields of the task, such as `percolation=0.1` for mazes.

    Raises:
        InputError: an unknown name or option, with those that exist, or an impossible value.

    Example:
        >>> get_task("prefix_sums")
        PrefixSums()
        >>> get_task("mazes", percolation=0.1, paths="any").percolation
        0.1
    """
    try:
        task = TASKS[name.replace("_", "-")]
    except KeyError:
        raise InputError(f"unknown task {name!r}: it is one of {', '.join(TASKS)}") from None
    known = [field.name for field in fields(task)] if is_dataclass(task) else []
    for option in options:
        if option not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"task {task.name} has no option {option!r}: {there}")
    return task(**options)


__all__ = [
    "IGNORE",
    "TASKS",
    "Batch",
    "BlurryDigits",
    "ClassificationTask",
    "EdgeCopy",
    "FewShotCharacters",
    "FewShotDigits",
    "FewShotTask",
    "Images",
    "LabelTask",
    "Legend",
    "MatrixInversion",
    "Mazes",
    "MiniImageNet",
    "Omniglot",
    "PrefixSums",
    "Puzzle",
    "PuzzleTask",
    "Sinusoids",
    "Split",
    "Sudoku",
    "Task",
    "Text",
    "get_task",
    "stack",
]
