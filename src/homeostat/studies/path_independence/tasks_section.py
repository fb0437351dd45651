"""Section 7: other tasks, each with and without the interventions."""

from dataclasses import dataclass

import numpy as np

from homeostat.models.starts import Zeros
from homeostat.probes.estimates import mean
from homeostat.probes.results import Estimate
from homeostat.studies.claims import Above, Below, Claim, Decided, decide
from homeostat.studies.figures import Axis, Table
from homeostat.studies.measures import Aligned, Followed
from homeostat.studies.nets import Net
from homeostat.studies.path_independence.presets import Preset
from homeostat.studies.reading import (
    alignment,
    dots_by_category,
    exact,
    in_figures,
    in_percent,
    limits_words,
    residual_words,
)
from homeostat.studies.statistics import effect
from homeostat.studies.study import Content, Section, Values
from homeostat.training import FixedDepth, get_recipe
from homeostat.training.recipes import REFERENCE

TASKS = ("matrix-inversion", "edge-copy", "blurry-digits")

_EXPECTED = {"matrix-inversion": 120, "edge-copy": 120, "blurry-digits": 90}
"""Seconds of training on one core."""

_SIZES = {"matrix-inversion": (2, 10), "edge-copy": (10, 12), "blurry-digits": (2, 5)}
"""Sizes of the easy and of the hard set."""

_STEPS = {"matrix-inversion": 400, "edge-copy": 256, "blurry-digits": 64}
"""The deep budget."""


@dataclass(frozen=True)
class _Test:
    task: str
    group: str
    net: Net
    easy: Followed
    hard: Followed
    hard_shallow: Followed
    """The hard set after as many steps as in training at most."""
    aligned: Aligned


HARDER = {
    name: Claim(
        f"interventions help on {words}",
        f"Interventions that promote path independence help {words} on harder instances",
        "no figure that could be read",
        f"{quantity} on the hard set, with interventions minus the best net without",
        rule,
    )
    for name, words, quantity, rule in (
        ("matrix-inversion", "matrix inversion", "relative error", Below(0.0)),
        ("edge-copy", "edge copy", "exact accuracy", Above(0.0)),
        ("blurry-digits", "blurry digits", "exact accuracy", Above(0.0)),
    )
}


def section_7(preset: Preset) -> Section:
    """Every other task, with and without the interventions."""
    tests = [test for name in TASKS if name in REFERENCE for test in _tests(preset, name)]

    def build(values: Values) -> Content:
        claims, figures = [], []
        for name in dict.fromkeys(test.task for test in tests):
            mine = [test for test in tests if test.task == name]
            groups = tuple(dict.fromkeys(test.group for test in mine))
            claims.append(_decided(name, mine, groups, values))
            error = name == "matrix-inversion"
            figures.append(
                dots_by_category(
                    f"task-{name}",
                    f"{name}: {'relative error' if error else 'exact accuracy'} at the deep budget. A point a net.",
                    groups,
                    {
                        word: lambda group, which=which, mine=mine, error=error: [
                            (f"{t.net.label}", _score(values, getattr(t, which), error))
                            for t in mine
                            if t.group == group
                        ]
                        for word, which in (("easy set", "easy"), ("hard set", "hard"))
                    },
                    y=Axis("relative error", scale="log") if error else Axis("exact accuracy", percent=True),
                    x_title="training",
                )
            )
        rows = [
            (
                t.net.label,
                f"{which} ({job.size})",
                str(job.steps),
                in_percent(exact(values(job))),
                in_figures(_score(values, job, True)) if "error" in values(job) else "",
                residual_words(values(job)["residual"]),
                in_figures(alignment(values(t.aligned))) if which == "hard" else "",
                limits_words(values(job)["limits"]),
            )
            for t in tests
            for which, job in (("easy", t.easy), ("hard", t.hard), ("hard, trained depth", t.hard_shallow))
        ]
        table = Table(
            "Every net",
            ("Net", "Set", "Steps", "Exact", "Relative error", "Residual, median", "Alignment", "Ends in"),
            tuple(rows),
        )
        return Content(tuple(claims), tuple(figures), (table,))

    return Section(
        7,
        "tasks",
        "Other tasks",
        "Matrix inversion, edge copy on graphs, and blurry digits: the reference recipe, and the same net with zero "
        "starts and a fixed depth of as many steps as the reference takes on average. The net without interventions "
        "is judged where it does better, after its trained depth or at the deep budget.",
        tuple(HARDER[name] for name in dict.fromkeys(test.task for test in tests)),
        tuple(job for t in tests for job in (t.easy, t.hard, t.hard_shallow, t.aligned)),
        build,
    )


def _tests(preset: Preset, name: str) -> list[_Test]:
    reference = get_recipe(REFERENCE[name])
    easy, hard = _SIZES[name]
    steps = preset.task_steps or _STEPS[name]
    mean_depth = max(1, round(reference.depth.expected(max(reference.sizes))))
    depths = {"fixed depth": mean_depth}
    if name == "matrix-inversion":  # where the claim is against the best fixed depth
        depths["deeper fixed depth"] = reference.horizon
    recipes = {"interventions": reference} | {
        group: reference.changed(
            name=f"{reference.name}, {group}",
            description=f"zero start; fixed depth of {depth} steps",
            start=Zeros(),
            depth=FixedDepth(steps=depth),
        )
        for group, depth in depths.items()
    }
    found = []
    for group, recipe in recipes.items():
        for seed in range(preset.task_seeds):
            net = Net(recipe=preset.recipe(recipe), seed=seed, expected=1 if preset.shrink else _EXPECTED[name])

            def followed(size: int, steps: int, net: Net = net) -> Followed:
                return Followed(net=net, size=size, count=preset.task_count, steps=steps, expected=10)

            found.append(
                _Test(
                    name,
                    group,
                    net,
                    followed(easy, steps),
                    followed(hard, steps),
                    followed(hard, net.recipe.horizon),
                    Aligned(net=net, size=hard, count=min(64, preset.task_count), steps=steps, expected=10),
                )
            )
    return found


def _decided(name: str, tests: list[_Test], groups: tuple[str, ...], values: Values) -> Decided:
    """The nets with interventions at the deep budget against the best of the others, at either budget."""
    error = name == "matrix-inversion"
    sign = -1 if error else 1

    def scores(group: str, which: str) -> list[list[float]]:
        return [_scores(values, getattr(t, which), error) for t in tests if t.group == group]

    others = [(group, which) for group in groups[1:] for which in ("hard", "hard_shallow")]
    best = max(others, key=lambda other: sign * float(np.mean(scores(*other))))
    ours = effect(scores(groups[0], "hard"), scores(*best))
    where = "the deep budget" if best[1] == "hard" else "its trained depth"
    note = f"The best net without: {best[0]}, at {where}."
    if sum(test.group == groups[0] for test in tests) == 1:
        note += " One net of each kind: the interval is over instances alone."
    return decide(HARDER[name], [("hard set", ours)], note)


def _scores(values: Values, job: Followed, error: bool) -> list[float]:
    if not error:
        return [float(right) for right in values(job)["correct"]]
    # A state that is not finite has no error; it counts as ten times the size of the answer.
    return [10.0 if e is None else min(e, 10.0) for e in values(job)["error"]]


def _score(values: Values, job: Followed, error: bool) -> Estimate:
    return mean(_scores(values, job, True)) if error else exact(values(job))
