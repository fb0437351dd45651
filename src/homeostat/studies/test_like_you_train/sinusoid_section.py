"""Section 2: implicit MAML on sinusoids, with few training tasks and with many."""

from collections.abc import Sequence

from homeostat.probes.estimates import share
from homeostat.probes.report.words import number
from homeostat.studies.claims import Above, Below, Claim, decide
from homeostat.studies.figures import Axis, Figure, Panels, Table
from homeostat.studies.gaps import Gaps
from homeostat.studies.reading import in_figures
from homeostat.studies.study import Content, Section, Values
from homeostat.studies.test_like_you_train.learners import learner, tasks_words
from homeostat.studies.test_like_you_train.presets import Preset

_DATA = {"training": "training tasks", "new": "new tasks"}
_LOSS = "mean squared error on the queries"

SWITCH = Claim(
    "one task: the minimum is at N",
    "With one training task, the loss on it has its minimum exactly at the number of steps of the training",
    "overparametrised: D >= 0",
    "share of nets whose lowest training loss over all budgets is at N = 16",
    Above(1.0, basis="value"),
)
HURT = Claim(
    "one task: more steps hurt",
    "With one training task, twice the steps raise the loss on it",
    "overparametrised: D >= 0",
    f"{_LOSS} at 2 N less that at N, training task",
    Above(0.0),
)
STREAM = Claim(
    "a stream: more steps help",
    "With a stream of tasks (the learner is not overparametrised), 256 steps have a lower loss than N",
    "meta-learning benefits",
    f"{_LOSS} at the most steps less that at N, tasks as in training",
    Below(0.0),
)
NEW = Claim(
    "new tasks gain everywhere",
    "On tasks it was not trained on, more steps help whatever the number of training tasks",
    "not asked",
    f"{_LOSS} at the most steps less that at N, new tasks",
    Below(0.0),
)


def section_2(preset: Preset) -> Section:
    """Training tasks by horizons."""
    learners = [
        learner(preset, tasks=tasks, horizon=horizon, seed=seed)
        for horizon in preset.sinusoid_horizons
        for tasks in preset.sinusoid_tasks
        for seed in range(preset.sinusoid_seeds)
    ]
    deepest = preset.sinusoid_budgets[-1]
    longest = preset.sinusoid_horizons[-1]

    def build(values: Values) -> Content:
        def gaps(data: str, tasks: int | None, horizon: int) -> Gaps:
            mine = [one for one in learners if (one.tasks, one.horizon) == (tasks, horizon)]
            return Gaps.of([getattr(one, data) for one in mine], values, horizon)

        found = {
            (data, tasks, horizon): gaps(data, tasks, horizon)
            for data in _DATA
            for tasks in preset.sinusoid_tasks
            for horizon in preset.sinusoid_horizons
        }
        one = {horizon: found["training", 1, horizon] for horizon in preset.sinusoid_horizons}
        claims = (
            decide(
                SWITCH,
                [(f"N = {longest}", share([best == longest for best in one[longest].best()]))],
                "; ".join(f"N = {n}: minima at {_listed(g.best())}" for n, g in one.items()) + ".",
            ),
            decide(HURT, [(f"N = {n}", g.gap(2 * n)) for n, g in one.items()]),
            decide(STREAM, [(f"N = {n}", found["training", None, n].gap(deepest)) for n in preset.sinusoid_horizons]),
            decide(
                NEW,
                [
                    (f"{tasks_words(tasks)}, N = {n}", found["new", tasks, n].gap(deepest))
                    for n in preset.sinusoid_horizons
                    for tasks in preset.sinusoid_tasks
                ],
            ),
        )
        tables = tuple(_table(preset, data, found, horizon) for data in _DATA for horizon in preset.sinusoid_horizons)
        figures = tuple(_figure(preset, found, horizon) for horizon in preset.sinusoid_horizons)
        return Content(claims, figures, (_overview(preset, found), *tables))

    return Section(
        2,
        "sinusoids",
        "Few training tasks, and many",
        "Implicit MAML on sinusoids, trained with N inner steps on so many tasks: what is its loss with other numbers "
        "of steps, on the tasks of its training and on new ones?",
        (SWITCH, HURT, STREAM, NEW),
        tuple(job for one in learners for job in one.jobs),
        build,
    )


_Found = dict[tuple[str, int | None, int], Gaps]


def _figure(preset: Preset, found: _Found, horizon: int) -> Panels:
    panels = tuple(
        Figure(
            f"sinusoids-{horizon}-{data}",
            words,
            Axis("test steps", scale="log"),
            Axis("mean squared error", scale="log"),
            tuple(
                series
                for tasks in preset.sinusoid_tasks
                for series in found[data, tasks, horizon].series(tasks_words(tasks))
            ),
        )
        for data, words in _DATA.items()
    )
    return Panels(
        f"sinusoids-{horizon}",
        f"Loss of learners trained with N = {horizon} inner steps, over the steps they are given. Means over seeds and "
        "tasks with 95 % intervals.",
        panels,
        columns=2,
    )


def _overview(preset: Preset, found: _Found) -> Table:
    deepest = preset.sinusoid_budgets[-1]
    rows = []
    for (data, tasks, horizon), gaps in found.items():
        rows.append(
            (
                _DATA[data],
                tasks_words(tasks),
                str(horizon),
                in_figures(gaps.loss(horizon), 5),
                in_figures(gaps.gap(2 * horizon), 5),
                in_figures(gaps.gap(deepest), 5),
                _listed(gaps.best()),
                number(gaps.residual(horizon)),
            )
        )
    return Table(
        f"D = {_LOSS} less that at N. The best budget was chosen afterwards; the residual is the median of "
        "RMS(f(z) - z) / RMS(f(z))",
        (
            "Loss on",
            "Trained on",
            "N",
            "Loss at N",
            "D at 2 N",
            f"D at {deepest}",
            "Best budget by seed",
            "Residual at N",
        ),
        tuple(rows),
    )


def _table(preset: Preset, data: str, found: _Found, horizon: int) -> Table:
    budgets = preset.sinusoid_budgets
    return Table(
        f"{_DATA[data].capitalize()}, N = {horizon}: {_LOSS}, mean over seeds and tasks",
        ("Trained on", *map(str, budgets)),
        tuple(
            (tasks_words(tasks), *(f"{found[data, tasks, horizon].loss(budget).value:.3g}" for budget in budgets))
            for tasks in preset.sinusoid_tasks
        ),
    )


def _listed(budgets: Sequence[int]) -> str:
    return ", ".join(map(str, budgets))
