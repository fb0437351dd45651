"""What a random number of steps and a random start do to one task's nets: a section for each task."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from homeostat.probes.report.words import number
from homeostat.probes.results import Estimate
from homeostat.studies.claims import Above, Below, Claim, Given, decide
from homeostat.studies.figures import Axis, Figure, Panels, Point, Series, Table
from homeostat.studies.gaps import Gaps
from homeostat.studies.reading import alignment, cosines, in_figures, in_percent, nulls
from homeostat.studies.reconcile.presets import Preset
from homeostat.studies.reconcile.settings import (
    BOTH,
    CELLS,
    DEEP,
    NEITHER,
    RANDOM_N,
    RANDOM_START,
    Cell,
    Measured,
    Setting,
    measured,
)
from homeostat.studies.statistics import change, effect, over_seeds
from homeostat.studies.study import Content, Section, Values

KINDS = ("training", "held_out", "harder")
"""What a net is measured on, by the names of the fields."""


def claims_of(setting: Setting) -> dict[str, Claim]:
    """The claims about one task, by what they are about. The expectation behind them is that of the project: that
    either kind of randomness takes the penalty away.
    """
    times = f"{DEEP:g}"
    gap = f"loss at {times} N less loss at N ({setting.unit}), on training data"
    gain = f"exact accuracy at {times} N less that at N" if setting.exact else f"loss at N less loss at {times} N"
    return {
        "penalty": Claim(
            f"{setting.name}: a fixed budget is penalised",
            f"{setting.name}: trained with N steps from one start, {times} N steps are worse on training data",
            "D >= 0 on training data for overparametrised nets (test like you train)",
            gap,
            Above(0.0),
        ),
        "random N": Claim(
            f"{setting.name}: random N lowers the penalty",
            f"{setting.name}: with a random number of steps in training the penalty is smaller",
            "no figure: neither paper has it",
            f"{gap}: random N less fixed N, both from one start",
            Below(0.0),
        ),
        "random start": Claim(
            f"{setting.name}: random starts lower the penalty",
            f"{setting.name}: with random starts in training the penalty is smaller",
            "no figure: neither paper has it",
            f"{gap}: random starts less one start, both with fixed N",
            Below(0.0),
        ),
        "removed": Claim(
            f"{setting.name}: both remove the penalty",
            f"{setting.name}: with both, {times} N steps cost nothing on training data",
            "no figure: neither paper has it",
            f"{gap}; nothing is up to {setting.margin:g}",
            Below(setting.margin),
            Given("a penalty with neither", Above(0.0)),
        ),
        "harder": Claim(
            f"{setting.name}: with both, harder inputs gain",
            f"{setting.name}: with both, {times} N steps are better than N on harder inputs ({setting.harder})",
            "path-independent nets make use of more steps (path independence)",
            gain,
            Above(0.0),
        ),
        "harder, against neither": Claim(
            f"{setting.name}: and gain more than with neither",
            f"{setting.name}: on harder inputs the net with both gains more by {times} N steps than that with neither",
            "others make less use of them (path independence)",
            f"{gain}: both less neither",
            Above(0.0),
        ),
    }


def gaps_of(nets: Sequence[Measured], kind: str, values: Values, horizon: int) -> dict[Cell, Gaps]:
    """The curves of every cell on one kind of data."""
    return {
        cell: Gaps.of([getattr(m, kind) for m in nets if m.cell == cell], values, horizon) for cell in CELLS
    }  # fmt: skip


def task_section(number_: int, setting: Setting, preset: Preset) -> Section:
    """One task."""
    nets = measured(setting, preset)
    claims = claims_of(setting)
    horizon, deep = setting.horizon, round(DEEP * setting.horizon)
    unrolled = setting.recipe.gradient == "unrolled"
    graphs = "every one with a graph" if unrolled else "differentiated as a fixed point where they end"

    def build(values: Values) -> Content:
        found = {kind: gaps_of(nets, kind, values, horizon) for kind in KINDS}
        training = found["training"]
        gains = {cell: _gains(setting, found["harder"][cell], deep) for cell in CELLS}
        changes = {cell: training[cell].change(deep) for cell in CELLS}
        by_name = {cell: [("all seeds", training[cell].gap(deep))] for cell in CELLS}
        decided = (
            decide(claims["penalty"], by_name[NEITHER]),
            decide(claims["random N"], [("all seeds", effect(changes[RANDOM_N], changes[NEITHER]))]),
            decide(claims["random start"], [("all seeds", effect(changes[RANDOM_START], changes[NEITHER]))]),
            decide(claims["removed"], by_name[BOTH], given=by_name[NEITHER]),
            decide(claims["harder"], [("all seeds", _gain(setting, found["harder"][BOTH], deep))]),
            decide(claims["harder, against neither"], [("all seeds", effect(gains[BOTH], gains[NEITHER]))]),
        )
        tables = (
            _table(setting, found, nets, values),
            *(_curve_table(setting, found[kind], kind) for kind in KINDS),
        )
        return Content(decided, (task_figure(setting, found),), tables)

    return Section(
        number_,
        setting.part,
        setting.name.capitalize(),
        f"N = {horizon} steps in expectation, {graphs}; {len(CELLS)} trainings that differ in whether N is drawn "
        f"(evenly from {horizon // 2} to {horizon + horizon // 2}) and whether the start is. Judged at "
        f"{deep} steps, fixed beforehand. Harder: {setting.harder}.",
        tuple(claims.values()),
        tuple(job for m in nets for job in m.jobs),
        build,
    )


def task_figure(setting: Setting, found: dict[str, dict[Cell, Gaps]]) -> Panels:
    """The loss over test budgets on each kind of data, and the answers where they are right or wrong."""
    kinds = {"training": "training data", "held_out": "held out, as in training", "harder": f"harder: {setting.harder}"}
    panels = []
    for kind, words in kinds.items():
        axis = Axis("test steps over N", scale="log")
        series = tuple(cell_series(found[kind][cell], cell, setting.exact) for cell in CELLS)
        y = Axis("exact accuracy", percent=True) if setting.exact else Axis(setting.unit, scale="log")
        panels.append(Figure(f"{setting.part}-{kind.replace('_', '-')}", words, axis, y, series))
    what = "Exact accuracy" if setting.exact else f"Loss ({setting.unit})"
    return Panels(
        f"{setting.part}-budgets",
        f"{what} of nets trained with N = {setting.horizon} steps in expectation, over the steps they are given. Means "
        "over seeds and instances with 95 % intervals.",
        tuple(panels),
    )


def cell_series(gaps: Gaps, cell: Cell, exact: bool) -> Series:
    """Accuracy or loss of a cell over test budgets, in multiples of N."""
    points = []
    for budget in gaps.budgets:
        estimate = gaps.exact(budget) if exact else gaps.loss(budget)
        points.append(Point(budget / gaps.horizon, estimate.value, estimate.low, estimate.high, text=cell))
    return Series(cell, tuple(points), lines=True)


def _gain(setting: Setting, gaps: Gaps, deep: int) -> Estimate:
    """What harder inputs gain from `deep` steps on average: hits, or a loss that falls."""
    if setting.exact:
        return change(gaps.hits(gaps.horizon), gaps.hits(deep))
    return over_seeds(_gains(setting, gaps, deep))


def _gains(setting: Setting, gaps: Gaps, deep: int) -> list[NDArray[np.float64]]:
    """The same for each example of each net."""
    if not setting.exact:
        return [-moved for moved in gaps.change(deep)]
    pairs = zip(gaps.hits(gaps.horizon), gaps.hits(deep), strict=True)
    return [after.astype(float) - before for before, after in pairs]


def _table(
    setting: Setting, found: dict[str, dict[Cell, Gaps]], nets: Sequence[Measured], values: Values
) -> Table:  # fmt: skip
    horizon, deep = setting.horizon, round(DEEP * setting.horizon)
    rows = []
    for cell in CELLS:
        training, held_out, harder = (found[kind][cell] for kind in KINDS)
        mine = [values(m.aligned) for m in nets if m.cell == cell]
        rows.append(
            (
                cell,
                in_figures(training.loss(horizon), 4),
                in_figures(training.gap(deep), 4),
                in_figures(held_out.gap(deep), 4),
                _quality(setting, training, horizon),
                _quality(setting, training, deep),
                _quality(setting, harder, horizon),
                _quality(setting, harder, deep),
                number(training.residual(horizon)),
                number(training.residual(deep)),
                in_figures(over_seeds([cosines(record) for record in mine])),
                in_figures(over_seeds([nulls(record) for record in mine])),
                ", ".join(in_figures(alignment(record)).split(" ")[0] for record in mine),
            )
        )
    quality = "Exact" if setting.exact else "Loss"
    return Table(
        f"D = loss at {deep} steps less loss at {horizon}, in {setting.unit}; residual: RMS(f(z) - z) / RMS(f(z)), "
        "median on training data; alignment: Algorithm 1 at the deep budget, with what different inputs have anyway",
        (
            "Training", f"Loss at {horizon}, training", "D, training", "D, held out",
            f"{quality} at {horizon}, training", f"{quality} at {deep}, training",
            f"{quality} at {horizon}, harder", f"{quality} at {deep}, harder",
            f"Residual at {horizon}", f"Residual at {deep}", "Alignment", "Null", "Alignment by seed",
        ),
        tuple(rows),
    )  # fmt: skip


def _quality(setting: Setting, gaps: Gaps, budget: int) -> str:
    return in_percent(gaps.exact(budget)) if setting.exact else in_figures(gaps.loss(budget), 4)


def _curve_table(setting: Setting, gaps: dict[Cell, Gaps], kind: str) -> Table:
    budgets = gaps[NEITHER].budgets

    def cell_text(one: Gaps, budget: int) -> str:
        if not setting.exact:
            return in_figures(one.loss(budget), 4)
        return f"{in_percent(one.exact(budget))}; {_short(one.loss(budget))}"

    return Table(
        f"{kind.replace('_', ' ').capitalize()}: "
        + ("exact accuracy; loss" if setting.exact else "loss")
        + f" ({setting.unit}) after so many steps, all seeds",
        ("Training", *map(str, budgets)),
        tuple((cell, *(cell_text(gaps[cell], budget) for budget in budgets)) for cell in CELLS),
    )


def _short(estimate: Estimate) -> str:
    return f"{estimate.value:.3g}"
