"""Section 3: how the penalty grows with overparametrisation, by number of tasks and by width."""

import math
from collections.abc import Callable

from homeostat.probes.report.words import number
from homeostat.studies.claims import Above, Below, Claim, decide
from homeostat.studies.figures import Axis, Figure, Point, Series, Table
from homeostat.studies.gaps import Gaps
from homeostat.studies.reading import in_figures
from homeostat.studies.statistics import rank_correlation
from homeostat.studies.study import Content, Section, Values
from homeostat.studies.test_like_you_train.learners import REFERENCE_WIDTH, Learner, learner, tasks_words
from homeostat.studies.test_like_you_train.presets import Preset

_MEASURE = "D at 2 N over the loss at N, training tasks"

FITTED = Claim(
    "the better fitted, the larger the penalty",
    "The lower the training loss, the degree of overparametrisation, the more twice the steps raise it",
    "the switch comes with overparametrisation; no figure over its degree",
    f"Spearman's rank correlation of training loss and {_MEASURE}, over nets",
    Below(0.0),
)
FEWER = Claim(
    "fewer tasks, larger penalty",
    "The fewer the training tasks, the more twice the steps raise the loss on them",
    "meta-learning is typically not overparametrised, and benefits",
    f"Spearman's rank correlation of the number of tasks and {_MEASURE}, over nets of one width",
    Below(0.0),
)
WIDER = Claim(
    "wider, larger penalty",
    "The wider the learner, the more twice the steps raise the loss on its training tasks",
    "no figure",
    f"Spearman's rank correlation of the width and {_MEASURE}, over nets of one number of tasks",
    Above(0.0),
)

_NOTE = "The interval is over nets as if they were independent; nets of one kind are alike."


def section_3(preset: Preset) -> Section:
    """Tasks at one width, and widths at one number of tasks; what both have is one job."""
    horizon = preset.sinusoid_horizons[-1]
    seeds = range(preset.sweep_seeds)
    by_tasks = [learner(preset, tasks=n, horizon=horizon, seed=seed) for n in preset.sweep_tasks for seed in seeds]
    by_width = [
        learner(preset, tasks=preset.sweep_width_tasks, horizon=horizon, seed=seed, width=width)
        for width in preset.sweep_widths
        for seed in seeds
    ]
    every = list({one.net.key: one for one in (*by_tasks, *by_width)}.values())

    def build(values: Values) -> Content:
        def gaps(one: Learner) -> Gaps:
            return Gaps.of([one.training], values, horizon)

        def penalty(one: Learner) -> float:
            return gaps(one).normalised(2 * horizon)[0]

        def fitted(one: Learner) -> float:
            return gaps(one).loss(horizon).value

        def related(nets: list[Learner], xs: list[float]) -> list:
            return [("nets", rank_correlation(xs, [penalty(one) for one in nets]).spearman)]

        claims = (
            decide(FITTED, related(every, [fitted(one) for one in every]), f"{_alone(every, gaps, horizon)} {_NOTE}"),
            decide(FEWER, related(by_tasks, [float(one.tasks or math.inf) for one in by_tasks]), _NOTE),
            decide(WIDER, related(by_width, [float(one.width) for one in by_width]), _NOTE),
        )
        kinds = list(dict.fromkeys((one.tasks, one.width) for one in every))
        series = tuple(
            Series(
                _name(tasks, width),
                tuple(
                    Point(fitted(one), penalty(one), text=f"{_name(tasks, width)}, seed {one.seed}")
                    for one in every
                    if (one.tasks, one.width) == (tasks, width)
                ),
            )
            for tasks, width in kinds
        )
        figure = Figure(
            "overparametrisation",
            f"What twice the steps cost on the training tasks, over the loss that training reached. N = {horizon}; a "
            "point a net. Above 0 more steps are worse.",
            Axis("training loss at N (mean squared error)", scale="log"),
            Axis("D at 2 N over the loss at N"),
            series,
            level=0.0,
        )
        return Content(claims, (figure,), (_table(kinds, every, values, horizon),))

    return Section(
        3,
        "overparametrisation",
        "The degree of overparametrisation",
        "The same learners with more tasks, and with wider layers: is the penalty a matter of degree? Its measure is "
        "the loss that training reached, and D is taken over that loss too, since a small loss can change by little.",
        (FITTED, FEWER, WIDER),
        tuple(job for one in every for job in one.jobs),
        build,
    )


def _alone(every: list[Learner], gaps: Callable[[Learner], Gaps], horizon: int) -> str:
    """What the training loss has to do with D itself, in words: a quotient falls with its own denominator."""
    found = [gaps(one) for one in every]
    d = [float(one.gap(2 * horizon).value) for one in found]
    alone = rank_correlation([one.loss(horizon).value for one in found], d).spearman
    return f"D is divided by the loss that it is related to; D alone, undivided: {in_figures(alone, 2)}."


def _name(tasks: int | None, width: int) -> str:
    return tasks_words(tasks) if width == REFERENCE_WIDTH else f"{tasks_words(tasks)}, width {width}"


def _table(kinds: list[tuple[int | None, int]], every: list[Learner], values: Values, horizon: int) -> Table:
    rows = []
    for tasks, width in kinds:
        mine = [one for one in every if (one.tasks, one.width) == (tasks, width)]
        training = Gaps.of([one.training for one in mine], values, horizon)
        new = Gaps.of([one.new for one in mine], values, horizon)
        parameters = values(mine[0].net)["parameters"]
        rows.append(
            (
                tasks_words(tasks),
                str(width),
                f"{parameters:,}",
                in_figures(training.loss(horizon), 5),
                in_figures(training.gap(2 * horizon), 5),
                ", ".join(f"{value:+.2f}" for value in training.normalised(2 * horizon)),
                in_figures(new.loss(horizon), 4),
                in_figures(new.gap(2 * horizon), 4),
                number(training.residual(horizon)),
            )
        )
    return Table(
        "Loss in mean squared error with 95 % intervals over seeds and tasks; D over the loss by seed; residual: "
        "RMS(f(z) - z) / RMS(f(z)), median",
        (
            "Trained on", "Width", "Parameters", "Training loss at N", "D at 2 N, training", "D over the loss, by seed",
            "New tasks: loss at N", "D at 2 N, new tasks", "Residual at N",
        ),
        tuple(rows),
    )  # fmt: skip
