"""The last section: the three tasks together, and what goes with the penalty."""

from collections.abc import Sequence

import numpy as np

from homeostat.studies.claims import Above, Below, Claim, decide
from homeostat.studies.figures import Axis, Figure, Panels, Point, Series, Table
from homeostat.studies.gaps import Gaps
from homeostat.studies.reading import alignment, in_figures
from homeostat.studies.reconcile.presets import Preset
from homeostat.studies.reconcile.settings import CELLS, DEEP, Measured, Setting, measured
from homeostat.studies.reconcile.task_section import cell_series, gaps_of
from homeostat.studies.statistics import RankCorrelation, rank_correlation
from homeostat.studies.study import Content, Section, Values

ALIGNED = Claim(
    "aligned nets pay less",
    "Nets that end in the same place from other starts pay less for more steps",
    "no figure: neither paper has it",
    "Spearman's rank correlation of alignment and D over the nets of a task",
    Below(0.0),
)
SETTLED = Claim(
    "settled nets pay less",
    "Nets that have come closer to a fixed point after N steps pay less for more steps",
    "D vanishes as the training solver converges (test like you train)",
    "Spearman's rank correlation of the median residual at N and D over the nets of a task",
    Above(0.0),
)

_NOTE = (
    "The interval is over nets as if they were independent; five of each kind are alike, so that it promises more than "
    "it can hold."
)


def together_section(number: int, settings: Sequence[Setting], preset: Preset) -> Section:
    """All tasks."""
    nets = {setting.name: measured(setting, preset) for setting in settings}

    def build(values: Values) -> Content:
        aligned, settled, rows = [], [], []
        for setting in settings:
            mine = nets[setting.name]
            gap = [_gap(m, setting, values) for m in mine]
            first = rank_correlation([alignment(values(m.aligned)).value for m in mine], gap)
            second = rank_correlation([_residual(m, setting, values) for m in mine], gap)
            aligned.append((setting.name, first.spearman))
            settled.append((setting.name, second.spearman))
            rows.append((setting.name, *_words(first), *_words(second)))
        table = Table(
            f"Rank correlations with D at {DEEP:g} N on training data, over the nets of a task; {_NOTE.lower()}",
            ("Task", "Alignment: Spearman", "Kendall", "Residual at N: Spearman", "Kendall"),
            tuple(rows),
        )
        claims = (decide(ALIGNED, aligned, _NOTE), decide(SETTLED, settled, _NOTE))
        figures = (_reconciled(settings, nets, values), _against_alignment(settings, nets, values))
        return Content(claims, figures, (table,))

    return Section(
        number,
        "together",
        "Where the two papers meet",
        "The three tasks side by side, and what goes with the penalty, net by net: alignment (path independence) or "
        "the residual at N (how far the truncation was from converged).",
        (ALIGNED, SETTLED),
        tuple(job for mine in nets.values() for m in mine for job in m.jobs),
        build,
    )


def _gap(m: Measured, setting: Setting, values: Values) -> float:
    gaps = Gaps.of([m.training], values, setting.horizon)
    return float(np.mean(gaps.change(round(DEEP * setting.horizon))[0]))


def _residual(m: Measured, setting: Setting, values: Values) -> float:
    return Gaps.of([m.training], values, setting.horizon).residual(setting.horizon)


def _words(found: RankCorrelation) -> tuple[str, str]:
    return in_figures(found.spearman, 2), in_figures(found.kendall, 2)


def _reconciled(settings: Sequence[Setting], nets: dict[str, list[Measured]], values: Values) -> Panels:
    """The loss as in training above, harder inputs below; a column for each task."""
    top, bottom = [], []
    for setting in settings:
        x = Axis("test steps over N", scale="log")
        training = gaps_of(nets[setting.name], "training", values, setting.horizon)
        harder = gaps_of(nets[setting.name], "harder", values, setting.horizon)
        y = Axis(f"D ({setting.unit})")
        lines = []
        for cell in CELLS:
            points = []
            for budget in training[cell].budgets:
                if budget >= setting.horizon:
                    gap = training[cell].gap(budget)
                    points.append(Point(budget / setting.horizon, gap.value, gap.low, gap.high, text=cell))
            lines.append(Series(cell, tuple(points), lines=True))
        top.append(
            Figure(f"together-{setting.part}-d", f"{setting.name}: D, training data", x, y, tuple(lines), level=0.0)
        )
        quality = Axis("exact accuracy", percent=True) if setting.exact else Axis(setting.unit, scale="log")
        series = tuple(cell_series(harder[cell], cell, setting.exact) for cell in CELLS)
        bottom.append(
            Figure(f"together-{setting.part}-harder", f"{setting.name}: {setting.harder}", x, quality, series)
        )
    return Panels(
        "reconciled",
        "Above: D, the loss on training data after so many steps less that after N; above 0 more steps than N are "
        "worse. Below: the same nets on harder inputs. Means over seeds and instances with 95 % intervals; in every "
        "training N is the same in expectation.",
        (*top, *bottom),
        columns=len(settings),
    )


def _against_alignment(settings: Sequence[Setting], nets: dict[str, list[Measured]], values: Values) -> Panels:
    panels = []
    for setting in settings:
        series = tuple(
            Series(
                cell,
                tuple(
                    Point(alignment(values(m.aligned)).value, _gap(m, setting, values), text=f"{cell}, seed {m.seed}")
                    for m in nets[setting.name]
                    if m.cell == cell
                ),
            )
            for cell in CELLS
        )
        panels.append(
            Figure(
                f"together-{setting.part}-alignment",
                setting.name,
                Axis("alignment (Algorithm 1)", range=(-0.05, 1.05)),
                Axis(f"D at {DEEP:g} N ({setting.unit})"),
                series,
                level=0.0,
            )
        )
    return Panels("alignment-and-penalty", "Alignment and D on training data. A point a net.", tuple(panels))
