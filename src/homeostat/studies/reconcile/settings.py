"""The tasks of the study, and the four ways in which a net of each is trained.

Within a task the four trainings differ in two things alone: whether the number of steps is N or drawn around N, and
whether the start is one and the same or drawn. The expected number of steps is N in all of them. On prefix sums and
mazes every step keeps its graph; the sinusoids' implicit gradient is that of a fixed point, taken where the steps end.
"""

from dataclasses import dataclass
from typing import Any, Literal

from homeostat.models.meta import MetaConfig, MLPInner
from homeostat.models.starts import Mixed, Own, Perturbed, Start, Zeros
from homeostat.studies.measures import Aligned, Curve
from homeostat.studies.nets import Net
from homeostat.studies.reconcile.presets import Preset
from homeostat.training import FixedDepth, RandomDepth, Recipe, get_recipe

Cell = Literal["fixed N, fixed start", "random N, fixed start", "fixed N, random start", "random N, random start"]
CELLS: tuple[Cell, ...] = (
    "fixed N, fixed start",
    "random N, fixed start",
    "fixed N, random start",
    "random N, random start",
)
NEITHER, RANDOM_N, RANDOM_START, BOTH = CELLS

DEEP = 4.0
"""The budget at which everything is decided, in multiples of N; fixed beforehand."""


@dataclass(frozen=True)
class Setting:
    """A task, its net, and what counts as harder."""

    name: str
    part: str
    recipe: Recipe
    """Of the net with a fixed N and a fixed start."""
    horizon: int
    """N."""
    random_start: Start
    harder: str
    """In words."""
    harder_size: int | None
    harder_options: tuple[tuple[str, Any], ...]
    margin: float
    """A change of the loss up to this is none."""
    unit: str
    """Of the loss."""
    exact: bool
    """Whether answers are right or wrong; otherwise the loss says how good they are."""
    expected: float
    """Seconds that a training takes on one core."""

    def recipe_of(self, cell: Cell) -> Recipe:
        """How the nets of a cell are trained."""
        n = self.horizon
        random_n = cell in (RANDOM_N, BOTH)
        depth = RandomDepth(free=(0, 0), graphed=(n // 2, n + n // 2)) if random_n else FixedDepth(steps=n)
        start = self.random_start if cell in (RANDOM_START, BOTH) else self.recipe.start
        return self.recipe.changed(name=f"{self.name}, {cell}", description=cell, depth=depth, start=start)


@dataclass(frozen=True)
class Measured:
    """One net with all that is measured of it."""

    cell: Cell
    seed: int
    net: Net
    training: Curve
    held_out: Curve
    harder: Curve
    aligned: Aligned

    @property
    def jobs(self) -> tuple[Net | Curve | Aligned, ...]:
        return (self.net, self.training, self.held_out, self.harder, self.aligned)


def settings() -> tuple[Setting, ...]:
    """The three tasks."""
    bits = get_recipe("fixed")
    mazes = get_recipe("mazes").changed(
        train_options={},
        start=Zeros(),
        path_noise=0.0,
        segments=None,
        sizes=(3, 4),
        steps=800,
        predict_damping=1.0,
    )
    sines = get_recipe("imaml").changed(
        instances=3,
        batch=3,
        model=MetaConfig(inner=MLPInner(initialisation="lecun-normal"), regulariser=2.0),
    )
    return (
        Setting(
            name="prefix sums",
            part="prefix",
            recipe=bits.changed(steps=800),
            horizon=20,
            random_start=Mixed(),
            harder="64 bits, trained on 32",
            harder_size=64,
            harder_options=(),
            margin=0.01,
            unit="nats a bit",
            exact=True,
            expected=75,
        ),
        Setting(
            name="mazes",
            part="mazes",
            recipe=mazes,
            horizon=24,
            random_start=Mixed(),
            harder="6 rooms a side, trained on up to 4",
            harder_size=6,
            harder_options=(),
            margin=0.01,
            unit="nats a cell",
            exact=True,
            expected=90,
        ),
        Setting(
            name="sinusoids",
            part="sinusoids",
            recipe=sines.changed(start=Own()),
            horizon=16,
            random_start=Perturbed(scale=0.1),
            harder="amplitudes of 0.5 to 1, trained on 0.1 to 0.5",
            harder_size=None,
            harder_options=(("amplitude", (0.5, 1.0)),),
            margin=0.001,
            unit="mean squared error",
            exact=False,
            expected=40,
        ),
    )


def measured(setting: Setting, preset: Preset) -> list[Measured]:
    """Every net of a setting: four cells, each with every seed."""
    return [_measured(setting, preset, cell, seed) for cell in CELLS for seed in range(preset.seeds)]


def budgets_of(setting: Setting, preset: Preset) -> tuple[int, ...]:
    """The test budgets in steps."""
    return tuple(sorted({max(1, round(m * setting.horizon)) for m in preset.multiples}))


def _measured(setting: Setting, preset: Preset, cell: Cell, seed: int) -> Measured:
    recipe = setting.recipe_of(cell)
    if preset.shrink is not None:
        recipe = recipe.changed(**{**preset.shrink, "batch": min(recipe.batch, preset.shrink["batch"])})
    net = Net(recipe=recipe, seed=seed, expected=1 if preset.shrink else setting.expected)
    budgets = budgets_of(setting, preset)
    brief = 0.1 if preset.shrink else 6.0
    return Measured(
        cell,
        seed,
        net,
        Curve(net=net, count=preset.count, budgets=budgets, data="training", expected=brief),
        Curve(net=net, count=preset.count, budgets=budgets, data="held-out", expected=brief),
        Curve(
            net=net,
            size=setting.harder_size,
            count=preset.count,
            budgets=budgets,
            data="held-out",
            options=dict(setting.harder_options),
            expected=2 * brief,
        ),
        Aligned(
            net=net,
            size=max(recipe.sizes),
            count=preset.aligned,
            steps=round(DEEP * setting.horizon),
            starts=("swapped",),
            expected=brief,
        ),
    )
