"""How large the study is: sizes, counts and budgets, fixed before anything is run."""

from dataclasses import dataclass
from typing import Any

from homeostat.errors import InputError
from homeostat.models.recall import RecallConfig
from homeostat.tasks import LabelTask, get_task
from homeostat.training import Recipe


@dataclass(frozen=True)
class Plan:
    """A kind of test: instances of one size, followed for `steps` steps."""

    size: int
    count: int
    steps: int
    expected: float = 10.0
    """Seconds of one core for one net from one start."""


@dataclass(frozen=True)
class Preset:
    """Everything that differs between `smoke`, `cpu` and `full`."""

    name: str
    seeds: int
    prefix_near: Plan
    """Strings as long as in training, at the deep budget."""
    prefix_twice: Plan
    prefix_deep: Plan
    """The deep evaluation budget, on longer strings: fixed beforehand, never the best step chosen afterwards."""
    prefix_aligned: int
    """Strings of alignment, in training lengths and at the deep budget."""
    prefix_pairs: int
    """Strings of training length for alignment over all pairs, which takes a run for each of them."""
    prefix_trust: tuple[Plan, ...]
    prefix_attack: tuple[Plan, ...]
    attack_restarts: int
    attack_iterations: int
    maze_seeds: int
    mazes: tuple[Plan, ...]
    maze_variants: tuple[Plan, ...]
    """Sizes tested with dead-end starts and with loops."""
    maze_attack: Plan
    task_seeds: int
    task_count: int
    task_steps: int | None = None
    """The deep budget of the other tasks, where it is not the task's own."""
    shrink: dict[str, Any] | None = None
    """Changes to every recipe, for the smallest preset; `width` is that of the recall network."""

    def recipe(self, recipe: Recipe) -> Recipe:
        """A recipe at the scale of this preset."""
        if self.shrink is None:
            return recipe
        changes: dict[str, Any] = {"steps": self.shrink["steps"], "batch": self.shrink["batch"]}
        task = get_task(recipe.task.name, **recipe.task.options)
        if isinstance(task, LabelTask) and (recipe.model is None or isinstance(recipe.model, RecallConfig)):
            changes["model"] = RecallConfig.of(task, width=self.shrink["width"])
        return recipe.changed(**changes)


# Rooms a side n stand for the (2n - 1)^2 cells that the widely used data set counts: 9, 13, 19, 25, 33 and 59.
CELLS = {5: 9, 7: 13, 10: 19, 13: 25, 17: 33, 30: 59}

SMOKE = Preset(
    name="smoke",
    seeds=1,
    prefix_near=Plan(8, 8, 12, 0.1),
    prefix_twice=Plan(12, 8, 12, 0.1),
    prefix_deep=Plan(16, 8, 16, 0.1),
    prefix_aligned=8,
    prefix_pairs=4,
    prefix_trust=(Plan(6, 16, 8, 0.1),),
    prefix_attack=(Plan(8, 4, 8, 0.2),),
    attack_restarts=1,
    attack_iterations=2,
    maze_seeds=1,
    mazes=(Plan(3, 4, 8, 0.1), Plan(4, 4, 8, 0.1)),
    maze_variants=(Plan(4, 4, 8, 0.1),),
    maze_attack=Plan(3, 4, 8, 0.2),
    task_seeds=1,
    task_count=8,
    task_steps=8,
    shrink={"steps": 2, "batch": 4, "width": 4},
)

CPU = Preset(
    name="cpu",
    seeds=3,
    prefix_near=Plan(32, 128, 800, 3),
    prefix_twice=Plan(64, 128, 800, 5),
    prefix_deep=Plan(512, 100, 800, 28),
    prefix_aligned=24,
    prefix_pairs=16,
    prefix_trust=(Plan(64, 100, 200, 1), Plan(128, 100, 300, 2)),
    prefix_attack=(Plan(32, 64, 200, 15),),
    attack_restarts=3,
    attack_iterations=20,
    maze_seeds=1,
    mazes=(
        Plan(5, 100, 150, 5),
        Plan(7, 100, 210, 10),
        Plan(10, 100, 300, 25),
        Plan(13, 100, 390, 55),
        Plan(17, 100, 510, 110),
        Plan(30, 100, 900, 300),
    ),
    maze_variants=(Plan(5, 100, 150, 5), Plan(13, 100, 390, 55)),
    maze_attack=Plan(5, 32, 100, 60),
    task_seeds=1,
    task_count=200,
)

FULL = Preset(
    name="full",
    seeds=5,
    prefix_near=Plan(32, 1000, 800),
    prefix_twice=Plan(64, 1000, 800),
    prefix_deep=Plan(512, 1000, 800),
    prefix_aligned=256,
    prefix_pairs=64,
    prefix_trust=(Plan(64, 1000, 200), Plan(128, 1000, 300), Plan(256, 1000, 500)),
    prefix_attack=(Plan(32, 200, 200), Plan(64, 200, 300)),
    attack_restarts=10,
    attack_iterations=50,
    maze_seeds=3,
    mazes=tuple(Plan(n, 500, 30 * n, 30) for n in CELLS),
    maze_variants=tuple(Plan(n, 500, 30 * n, 30) for n in CELLS),
    maze_attack=Plan(5, 100, 200),
    task_seeds=5,
    task_count=1000,
)

PRESETS = {preset.name: preset for preset in (SMOKE, CPU, FULL)}


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        InputError: an unknown name.

    Example:
        >>> get_preset("cpu").prefix_deep.size
        512
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
