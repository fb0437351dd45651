"""How large the study is: sizes, counts and budgets, fixed before anything is run."""

from dataclasses import dataclass
from typing import Any

from homeostat.errors import InputError
from homeostat.training import Recipe


@dataclass(frozen=True)
class Preset:
    """Everything that differs between `smoke`, `cpu` and `full`."""

    name: str
    theory_draws: int
    """Random affine problems for each statement of the theory."""
    sinusoid_seeds: int
    sinusoid_tasks: tuple[int | None, ...]
    """Numbers of training tasks; None is a stream of new ones."""
    sinusoid_horizons: tuple[int, ...]
    sinusoid_budgets: tuple[int, ...]
    sinusoid_new: int
    """New tasks that a learner is tested on."""
    sweep_seeds: int
    sweep_tasks: tuple[int, ...]
    """Numbers of training tasks, at the width of the reference."""
    sweep_widths: tuple[int, ...]
    """Widths of both hidden layers."""
    sweep_width_tasks: int
    """Training tasks where the width varies."""
    image_seeds: int
    image_horizons: tuple[int, ...]
    image_budgets: tuple[int, ...]
    image_count: int
    text_seeds: int
    text_horizons: tuple[int, ...]
    text_budgets: tuple[int, ...]
    text_count: int
    shrink: dict[str, Any] | None = None
    """Changes to every recipe, for the smallest preset."""

    def recipe(self, recipe: Recipe) -> Recipe:
        """A recipe at the scale of this preset."""
        if self.shrink is None:
            return recipe
        return recipe.changed(**{**self.shrink, "batch": min(recipe.batch, self.shrink["batch"])})


SMOKE = Preset(
    name="smoke",
    theory_draws=20,
    sinusoid_seeds=1,
    sinusoid_tasks=(1, None),
    sinusoid_horizons=(4,),
    sinusoid_budgets=(1, 2, 4, 8),
    sinusoid_new=4,
    sweep_seeds=1,
    sweep_tasks=(2,),
    sweep_widths=(10,),
    sweep_width_tasks=2,
    image_seeds=1,
    image_horizons=(3,),
    image_budgets=(1, 3, 6),
    image_count=8,
    text_seeds=1,
    text_horizons=(2,),
    text_budgets=(1, 2, 4),
    text_count=4,
    shrink={"steps": 2, "batch": 4},
)

CPU = Preset(
    name="cpu",
    theory_draws=1000,
    sinusoid_seeds=5,
    sinusoid_tasks=(1, 3, 25, None),
    sinusoid_horizons=(4, 16),
    sinusoid_budgets=(1, 2, 3, 4, 5, 6, 8, 12, 15, 16, 17, 24, 32, 64, 128, 256),
    sinusoid_new=200,
    sweep_seeds=3,
    sweep_tasks=(1, 2, 3, 5, 10, 25),
    sweep_widths=(10, 20, 40, 80),
    sweep_width_tasks=5,
    image_seeds=5,
    image_horizons=(3, 6, 9, 18),
    image_budgets=(3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 35),
    image_count=224,
    text_seeds=3,
    text_horizons=(4, 12),
    text_budgets=(1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 24, 32, 48),
    text_count=64,
)

FULL = Preset(
    name="full",
    theory_draws=10_000,
    sinusoid_seeds=10,
    sinusoid_tasks=(1, 3, 25, None),
    sinusoid_horizons=(4, 8, 16),
    sinusoid_budgets=CPU.sinusoid_budgets,
    sinusoid_new=2000,
    sweep_seeds=10,
    sweep_tasks=(1, 2, 3, 5, 10, 25, 100),
    sweep_widths=(5, 10, 20, 40, 80, 160),
    sweep_width_tasks=5,
    image_seeds=10,
    image_horizons=(3, 6, 9, 18),
    image_budgets=CPU.image_budgets,
    image_count=224,
    text_seeds=5,
    text_horizons=(4, 8, 12),
    text_budgets=CPU.text_budgets,
    text_count=256,
)

PRESETS = {preset.name: preset for preset in (SMOKE, CPU, FULL)}


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        InputError: an unknown name.

    Example:
        >>> get_preset("cpu").sinusoid_horizons
        (4, 16)
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
