"""The prefix-sum nets of the study: recipes that differ in one thing each, and what is measured of every net."""

from collections.abc import Sequence
from dataclasses import dataclass

from homeostat.studies.claims import Below, Given
from homeostat.studies.figures import Axis, Table
from homeostat.studies.measures import Aligned, Followed, Trusted
from homeostat.studies.nets import Net
from homeostat.studies.path_independence.presets import Plan, Preset
from homeostat.studies.study import Values
from homeostat.training import get_recipe

RECIPES = ("path-independent", "fixed", "promote", "penalise", "phantom", "implicit", "shallow")
"""By name; every section draws its nets from these."""

ALIGNMENT = Axis("alignment (Algorithm 1)", range=(-0.05, 1.04))
EXACT = Axis("exact accuracy", percent=True)
ROUGH = "An interval over three nets is rough; every net is shown."
NOT_ALL_ALIKE = Given("limits of different examples that differ, by their cosine", Below(0.95))

_TRAINING = 80
"""Seconds on one core; all recipes take about the same compute."""


@dataclass(frozen=True)
class Measured:
    """A net with its measurements on strings as in training, twice as long, and at the deep budget."""

    net: Net
    horizon: Followed
    """Strings as in training, after as many steps as in training at most."""
    near: Followed
    twice: Followed
    deep: Followed
    near_aligned: Aligned
    deep_aligned: Aligned
    pairs: Aligned
    """Alignment as in the authors' code, in distribution."""
    trusted: tuple[Trusted, ...]

    @property
    def recipe(self) -> str:
        return self.net.recipe.name

    @property
    def seed(self) -> int:
        return self.net.seed


def prefix_nets(preset: Preset, recipes: Sequence[str] = RECIPES) -> list[Measured]:
    """Every recipe with every seed of the preset."""
    return [_measured(preset, recipe, seed) for recipe in recipes for seed in range(preset.seeds)]


def _measured(preset: Preset, recipe: str, seed: int) -> Measured:
    net = Net(recipe=preset.recipe(get_recipe(recipe)), seed=seed, expected=1 if preset.shrink else _TRAINING)

    def followed(plan: Plan) -> Followed:
        return Followed(net=net, size=plan.size, count=plan.count, steps=plan.steps, expected=plan.expected)

    def aligned(plan: Plan) -> Aligned:
        share = preset.prefix_aligned / plan.count
        return Aligned(
            net=net,
            size=plan.size,
            count=preset.prefix_aligned,
            steps=plan.steps,
            expected=max(0.1, 4 * plan.expected * share),
        )

    return Measured(
        net=net,
        horizon=Followed(
            net=net, size=preset.prefix_near.size, count=preset.prefix_near.count, steps=net.recipe.horizon, expected=1
        ),
        near=followed(preset.prefix_near),
        twice=followed(preset.prefix_twice),
        deep=followed(preset.prefix_deep),
        near_aligned=aligned(preset.prefix_near),
        deep_aligned=aligned(preset.prefix_deep),
        pairs=Aligned(
            net=net,
            size=preset.prefix_near.size,
            count=preset.prefix_pairs,
            steps=preset.prefix_near.steps,
            starts=("all pairs",),
            expected=0.2 if preset.shrink else 8,
        ),
        trusted=tuple(
            Trusted(net=net, size=p.size, count=p.count, steps=p.steps, expected=3 * p.expected)
            for p in preset.prefix_trust
        ),
    )


def cost_table(nets: Sequence[Measured], values: Values) -> Table:
    """What training cost, by recipe: evaluations of the cell, times examples, over all seeds alike."""
    rows = []
    for m in nets:
        if m.seed:
            continue
        cost = values(m.net)["evaluations"]
        free = cost["forward"] - cost["graphed"]
        parts = (free, cost["graphed"], cost["adjoint"], free + 3 * cost["graphed"] + 2 * cost["adjoint"])
        rows.append(
            (
                m.recipe,
                f"{m.net.recipe.steps:,}",
                *(f"{part / 1e6:.2f}" for part in parts),
                f"{values(m.net)['training_seconds']:.0f}",
            )
        )
    return Table(
        "What the training cost (seed 0), in millions of evaluations of the cell, times examples. Together: an "
        "evaluation with a graph counts three times, since its way back costs about two; one of the adjoint two",
        ("Recipe", "Training steps", "Without graph", "With graph", "Adjoint", "Together", "Seconds by the clock"),
        tuple(rows),
    )
