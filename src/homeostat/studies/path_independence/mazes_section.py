"""Section 8: mazes larger than any in training, with and without dead-end starts, and with loops."""

from typing import Any

from homeostat.models.starts import Zeros
from homeostat.studies.claims import Above, Claim, decide
from homeostat.studies.figures import Axis, Figure, Series, Table, point
from homeostat.studies.measures import Aligned, Followed
from homeostat.studies.nets import Net
from homeostat.studies.path_independence.presets import CELLS, Plan, Preset
from homeostat.studies.reading import (
    alignment,
    exact,
    in_figures,
    in_percent,
    limits_words,
    residual_words,
    symbols,
)
from homeostat.studies.statistics import effect, over_seeds
from homeostat.studies.study import Content, Section, Values
from homeostat.training import FixedDepth, Recipe, get_recipe

_LARGEST = 5
"""Rooms a side of the largest mazes in training."""

_FIXED_DEPTH = 30

_VARIANTS: dict[str, dict[str, Any]] = {
    "any start": {},
    "dead-end starts": {"dead_end_start": True},
    "with loops": {"percolation": 0.1, "paths": "any"},
}

LARGE = Claim(
    "large mazes are solved",
    "Trained on 9x9, a path-independent net solves 59x59",
    "0.90 at 59x59 without dead-end starts (the authors' net); 0.93 to 0.94 at 9 to 29",
    "exact accuracy on the largest mazes, any start",
    Above(0.9, basis="value"),
)
DEAD_ENDS = Claim(
    "dead-end starts are easier",
    "Accuracy on the widely used mazes rests in part on every start being a dead end",
    "no figure; follows from the generator",
    "exact accuracy with dead-end starts minus any start, largest size tested with both",
    Above(0.0),
)


def maze_nets(preset: Preset) -> dict[str, list[Net]]:
    """The reference maze net, and one from zero starts with a fixed depth, without noise and carried states."""
    reference = get_recipe("mazes")
    sizes = tuple(size for size in reference.sizes if size <= _LARGEST) or reference.sizes[:1]
    reference = reference.changed(name="mazes to 9x9", sizes=sizes)
    # A depth that crosses the mazes, and as many steps with a graph as the reference takes in all.
    shorter = max(1, round(reference.steps * reference.depth.expected(_LARGEST) / _FIXED_DEPTH))
    fixed = reference.changed(
        name="fixed mazes to 9x9",
        description=f"zero start; fixed depth of {_FIXED_DEPTH} steps",
        start=Zeros(),
        depth=FixedDepth(steps=_FIXED_DEPTH),
        segments=None,
        path_noise=0.0,
        steps=shorter,
    )
    return {
        "path-independent": [_net(preset, reference, seed) for seed in range(preset.maze_seeds)],
        "fixed": [_net(preset, fixed, seed) for seed in range(preset.maze_seeds)],
    }


def _net(preset: Preset, recipe: Recipe, seed: int) -> Net:
    return Net(recipe=preset.recipe(recipe), seed=seed, expected=1 if preset.shrink else 400)


def _followed(net: Net, plan: Plan, variant: str) -> Followed:
    return Followed(
        net=net,
        size=plan.size,
        count=plan.count,
        steps=plan.steps,
        options=_VARIANTS[variant],
        expected=plan.expected,
    )


def section_8(preset: Preset) -> Section:
    """Sizes beyond training."""
    groups = maze_nets(preset)
    nets = groups["path-independent"]
    plans = {"any start": preset.mazes, "dead-end starts": preset.maze_variants, "with loops": preset.maze_variants}
    jobs = {
        (net, variant, plan): _followed(net, plan, variant)
        for net in nets
        for variant, of in plans.items()
        for plan in of
    }
    smallest = preset.mazes[0]
    compared = {net: _followed(net, smallest, "any start") for net in groups["fixed"]}
    aligned = {
        net: Aligned(
            net=net,
            size=smallest.size,
            count=min(64, smallest.count),
            steps=smallest.steps,
            expected=3 * smallest.expected,
        )
        for net in nets
    }

    def build(values: Values) -> Content:
        largest, both = preset.mazes[-1], preset.maze_variants[-1]
        largest_right = over_seeds([values(jobs[net, "any start", largest])["correct"] for net in nets])
        claims = (
            decide(LARGE, [(_named(largest.size), largest_right)], _one(preset)),
            decide(
                DEAD_ENDS,
                [
                    (
                        _named(both.size),
                        effect(
                            [values(jobs[net, "dead-end starts", both])["correct"] for net in nets],
                            [values(_same(jobs, net, both))["correct"] for net in nets],
                        ),
                    )
                ],
                f"The mazes differ between the two. {_one(preset)}".strip(),
            ),
        )
        series = tuple(
            Series(
                variant if len(nets) == 1 else f"{variant}, seed {net.seed}",
                tuple(point(plan.size, exact(values(jobs[net, variant, plan])), _named(plan.size)) for plan in of),
                lines=True,
                group=group,
            )
            for group, (variant, of) in enumerate(plans.items())
            for net in nets
        )
        figure = Figure(
            "mazes",
            f"Exact accuracy by size, trained on mazes of up to {_LARGEST} rooms a side. Budgets grow with the size.",
            Axis("rooms a side", scale="log"),
            Axis("exact accuracy", percent=True),
            series,
        )
        rows = []
        for (net, variant, plan), job in jobs.items():
            record = values(job)
            rows.append(
                (
                    net.label, variant, _named(plan.size), str(plan.count), str(plan.steps), in_percent(exact(record)),
                    in_percent(symbols(record)), residual_words(record["residual"]), limits_words(record["limits"]),
                )
            )  # fmt: skip
        for net, job in compared.items():
            record = values(job)
            rows.append(
                (
                    net.label, "any start", _named(smallest.size), str(smallest.count), str(smallest.steps),
                    in_percent(exact(record)), in_percent(symbols(record)), residual_words(record["residual"]),
                    limits_words(record["limits"]),
                )
            )  # fmt: skip
        table = Table(
            "Every size",
            ("Net", "Mazes", "Rooms a side", "Count", "Steps", "Exact", "Per corridor", "Residual, median", "Ends in"),
            tuple(rows),
        )
        remarks = tuple(
            f"{net.label}: alignment (Algorithm 1) at {_named(smallest.size)} {in_figures(alignment(values(job)))}."
            for net, job in aligned.items()
        )
        return Content(claims, (figure,), (table,), remarks)

    return Section(
        8,
        "mazes",
        "Mazes beyond training",
        "Trained on mazes of at most 5 rooms a side, which the widely used data set counts as 9x9 cells; tested on up "
        "to 30 rooms, its 59x59. That data set roots its search at the start, so that every start is a dead end; ours "
        "does not, and tests both. Loops come from opening a tenth of the walls that are left.",
        (LARGE, DEAD_ENDS),
        (*jobs.values(), *compared.values(), *aligned.values()),
        build,
    )


def _same(jobs: dict, net: Net, plan: Plan) -> Followed:
    """The same size with any start, whose budget may differ; its count must not, since the two are compared."""
    return next(job for (n, v, p), job in jobs.items() if (n, v, p.size) == (net, "any start", plan.size))


def _named(size: int) -> str:
    return f"{size} ({CELLS[size]}x{CELLS[size]})" if size in CELLS else str(size)


def _one(preset: Preset) -> str:
    return "One net: the interval is over mazes alone." if preset.maze_seeds == 1 else ""
