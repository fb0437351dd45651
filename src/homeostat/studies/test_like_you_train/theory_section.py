"""Section 1: the theory of affine models, statement by statement, on random draws."""

from collections.abc import Mapping
from typing import Any

from homeostat.bilevel.affine.inequality import ROUNDING
from homeostat.probes.estimates import share
from homeostat.probes.report.words import number
from homeostat.probes.results import Estimate
from homeostat.studies.claims import Above, Below, Claim, decide
from homeostat.studies.figures import Axis, Figure, Point, Series, Table, point
from homeostat.studies.study import Content, Section, Values
from homeostat.studies.test_like_you_train.presets import Preset
from homeostat.studies.test_like_you_train.theory_draws import (
    CURVE_EXTRAS,
    CURVE_STEPS,
    HELP_STEPS,
    SLOPE,
    STEPS,
    UNDER,
    TheoryDraws,
)

_ALL = Above(1.0, basis="value")
_DERIVED = "a statement, not a figure"

T1 = Claim(
    "T1: more steps cannot help",
    "Where rank(K'U) = rank(K), D(N, dN) >= 0 for every dN >= -N and any outer loss",
    _DERIVED,
    "share of overparametrised draws without a violation, at every N and dN tested",
    _ALL,
)
T2 = Claim(
    "T2: the gain is bounded",
    "D >= -|P(I - Pi_N)(b_N - w)|^2 / 2 for the squared loss",
    _DERIVED,
    "share of draws without a violation, at every N and dN tested",
    _ALL,
)
T2_SHARP = Claim(
    "T2: the bound cannot be improved",
    "For all K, U, eta, N and dN, unless the steps no longer move a mode, there are data that reach the bound",
    "not in the paper",
    "share of constructed problems whose gain is the bound to a millionth",
    _ALL,
)
T3 = Claim(
    "T3: D vanishes with the solver's error",
    "|D| is at most a constant times rho^N, and times rho^2N where rank(K'U) = rank(K)",
    _DERIVED,
    "share of draws without a violation of the bound with its constant",
    _ALL,
)
T3_RATE = Claim(
    "T3: at that rate",
    "The slope of log |D| over N is log rho, and twice that where rank(K'U) = rank(K)",
    "O(rho^N)",
    f"share of draws whose fitted slope is within {SLOPE:.0%} of it",
    Above(0.95),
)
T4 = Claim(
    "T4: without regret, nothing to gain",
    "D >= -regret, so that D >= 0 where the training loss has none",
    _DERIVED,
    "share of underparametrised draws with targets that the model reaches, without a violation",
    _ALL,
)
T5 = Claim(
    "T5: the first-order sign, with a remainder",
    "D is -eta dN <gradient, f> but for a remainder of second order, and has its sign where that is larger",
    _DERIVED,
    "share of underparametrised draws without a violation",
    _ALL,
)
T5_LIMIT = Claim(
    "T5: signs agree in the limit",
    "The sign of D is that of -<gradient, f> when dN is small beside N",
    "to first order",
    "share of underparametrised draws whose signs agree at the finest steps, with eta N kept and dN = 1",
    Above(0.99),
)
T6 = Claim(
    "T6: meta-learners gain from more steps",
    "With eta below 1 / (largest eigenvalue + regulariser), D < 0 for two or more distinct tasks and D = 0 for one",
    _DERIVED,
    "share of draws for which it is so",
    _ALL,
)
T6_OUTSIDE = Claim(
    "T6 fails with longer steps",
    "With H = 2, regulariser 1, eta 1/2 and N = 1, more steps raise the loss of two distinct tasks",
    "not in the paper",
    "share of draws with D > 0",
    _ALL,
)
UNDER_IS_NOT_ENOUGH = Claim(
    "underparametrised is not enough",
    "A model that is not overparametrised need not gain from more steps",
    "meta-learners, which are not, gain",
    "share of underparametrised draws with random targets that twice the steps help, for each N",
    Below(0.5),
)


def section_1(preset: Preset) -> Section:
    """The theory on the preset's number of draws."""
    job = TheoryDraws(draws=preset.theory_draws)

    def build(values: Values) -> Content:
        found = values(job)
        return Content(
            _claims(found),
            (
                _curves(found, "overparametrised", "none falls below 0, with more steps or with fewer."),
                _curves(found, "underparametrised", "some fall below 0, none below its bound."),
                _tightness(found),
                _rates(found),
                _signs(found),
                _helped(found),
            ),
            (_slacks(found), _shares(found)),
            _remarks(found),
        )

    return Section(
        1,
        "theory",
        "The theory of affine models",
        "When can more steps at test time not help? Each statement is tested on random affine problems, in float64, "
        f"under its own conditions, at N of {', '.join(map(str, STEPS))} and dN from -N to 8N. An inequality counts as "
        f"violated beyond {ROUNDING:g} of the losses that it compares. D is the change of the loss with dN more steps.",
        (T1, T2, T2_SHARP, T3, T3_RATE, T4, T5, T5_LIMIT, T6, T6_OUTSIDE, UNDER_IS_NOT_ENOUGH),
        (job,),
        build,
    )


def _claims(found: Mapping[str, Any]) -> tuple:
    t2, t3, t5, t6 = (found[name] for name in ("T2", "T3", "T5", "T6"))
    regimes = ("overparametrised", "underparametrised")
    finest = t5["agrees"]["eta N kept"][-1]
    return (
        decide(T1, [(f"{name} loss", _share(of)) for name, of in found["T1"].items()]),
        decide(T2, [(name, _share(t2[name])) for name in regimes]),
        decide(T2_SHARP, [("constructed", _share(t2["sharp"]))]),
        decide(T3, [("all draws", _share(t3["bound"]))]),
        decide(T3_RATE, [(name, _share(t3["rates"][name]["within"])) for name in regimes]),
        decide(
            T4,
            [("reached targets", _share(found["T4"]))],
            f"The largest regret is {found['T4']['largest_regret']:.1g} of the untrained loss.",
        ),
        decide(
            T5,
            [
                ("within the remainder", _share(t5["bound"])),
                ("sign right where certain", _share(t5["certain_agree"])),
            ],
        ),
        decide(
            T5_LIMIT,
            [(f"eta |K|^2 = {finest['share']:.2g}, N = {finest['steps']}", _share(finest))],
            "With N kept instead, the trained parameters grow like 1 / eta and signs do not come to agree: see the "
            "figure.",
        ),
        decide(
            T6,
            [
                ("D < 0, distinct tasks", _share(t6["several_below_zero"])),
                ("bound of T6, distinct tasks", _share(t6["bound"])),
                ("D = 0, one task", _share(t6["one_is_zero"])),
            ],
            "Tasks have Hessians of their own in half of the draws.",
        ),
        decide(T6_OUTSIDE, [("two tasks", _share(t6["outside_above_zero"]))]),
        decide(
            UNDER_IS_NOT_ENOUGH,
            [(f"N = {steps}", _pooled(found, steps, 1)) for steps in HELP_STEPS],
            "The share depends on the distribution of the draws, on N and on dN; with dN small beside N it is larger.",
        ),
    )


def _share(count: Mapping[str, int]) -> Estimate:
    """Wilson's interval of counted draws."""
    return share([True] * count["hits"] + [False] * (count["of"] - count["hits"]))


def _pooled(found: Mapping[str, Any], steps: int, ratio: float) -> Estimate:
    """Share of the draws of all shapes that more steps help."""
    rows = [row for row in found["helped"] if row["steps"] == steps and row["ratio"] == ratio]
    return _share({"hits": sum(row["hits"] for row in rows), "of": sum(row["of"] for row in rows)})


def _curves(found: Mapping[str, Any], regime: str, caption: str) -> Figure:
    curves = [curve for curve in found["curves"] if curve["regime"] == regime]
    series = []
    for colour, curve in enumerate(curves):
        points = tuple(Point(x, y) for x, y in zip(CURVE_EXTRAS, curve["change"], strict=True))
        series.append(Series(f"draw at {curve['quantile']:.0%}", points, lines=True, group=colour))
    if regime == "underparametrised":
        for colour, curve in enumerate(curves):
            ends = tuple(Point(x, curve["bound"]) for x in (CURVE_EXTRAS[0], CURVE_EXTRAS[-1]))
            series.append(Series(f"its bound (T2), {curve['quantile']:.0%}", ends, lines=True, group=colour))
    return Figure(
        f"theory-{regime}",
        f"D(N, dN) relative to the loss after N = {CURVE_STEPS} steps, for the draws at three quantiles of D(N, N): "
        f"{caption}",
        Axis("extra steps dN"),
        Axis("D / loss after N", range=(-0.4, 1.0)),
        tuple(series),
        level=0.0,
    )


def _tightness(found: Mapping[str, Any]) -> Figure:
    return Figure(
        "theory-tightness",
        "Share of underparametrised draws that gain at least so much of what T2 allows, at the best of the extra steps "
        "tested; at 0: that gain at all. Wilson's intervals. Constructed problems gain all of it.",
        Axis("gain / largest possible gain", range=(-0.03, 1.03)),
        Axis("share of draws", percent=True),
        tuple(
            Series(f"N = {steps}", tuple(point(row["level"], _share(row)) for row in levels), lines=True)
            for steps, levels in found["T2"]["tightness"].items()
        ),
    )


def _rates(found: Mapping[str, Any]) -> Figure:
    series = []
    ends: list[float] = []
    for regime, rate in found["T3"]["rates"].items():
        points = [Point(-x, -y) for x, y in zip(rate["contraction"], rate["slope"], strict=True)]
        ends += [p.x for p in points]
        series.append(Series(regime, tuple(points)))
    for factor, name in ((1, "rho^N"), (2, "rho^2N")):
        line = tuple(Point(x, factor * x) for x in (min(ends), max(ends)))
        series.append(Series(name, line, lines=True, hollow=True))
    return Figure(
        "theory-rate",
        "How fast |D| falls with N: the fitted slope of -log |D| beside -log rho, a point for each draw.",
        Axis("-log rho, a step", scale="log"),
        Axis("-slope of log |D|, a step", scale="log"),
        tuple(series),
    )


def _signs(found: Mapping[str, Any]) -> Figure:
    return Figure(
        "theory-signs",
        "How often -<gradient, f> at the trained point has the sign of D(N, 1), in underparametrised draws, as steps "
        "shrink: with N growing so that eta N stays, and with N = 4 throughout.",
        Axis("1 / (eta |K|^2)", scale="log"),
        Axis("share of draws", percent=True),
        tuple(
            Series(name, tuple(point(1 / row["share"], _share(row)) for row in rows), lines=True)
            for name, rows in found["T5"]["agrees"].items()
        ),
        level=0.5,
    )


def _helped(found: Mapping[str, Any]) -> Figure:
    ratios = sorted({row["ratio"] for row in found["helped"]})
    return Figure(
        "theory-helped",
        "Share of underparametrised draws with random targets whose loss more steps lower. All shapes together.",
        Axis("extra steps dN / N", scale="log"),
        Axis("share of draws", percent=True),
        tuple(
            Series(
                f"N = {steps}",
                tuple(point(ratio, of) for ratio in ratios if (of := _pooled(found, steps, ratio)).count),
                lines=True,
            )
            for steps in HELP_STEPS
        ),
        level=0.5,
    )


def _slacks(found: Mapping[str, Any]) -> Table:
    rows = [(f"T1, {name} loss", of) for name, of in found["T1"].items()]
    rows += [(f"T2, {name}", found["T2"][name]) for name in ("overparametrised", "underparametrised")]
    rows += [("T3", found["T3"]["bound"]), ("T4", found["T4"])]
    rows += [("T5, remainder", found["T5"]["bound"]), ("T6", found["T6"]["bound"])]
    return Table(
        f"Inequalities: the least slack seen, relative to the losses compared. Rounding is {ROUNDING:g}",
        ("Statement", "Draws", "Without violation", "Least slack"),
        tuple((name, str(of["of"]), str(of["hits"]), f"{of['least_slack']:.1e}") for name, of in rows),
    )


def _shares(found: Mapping[str, Any]) -> Table:
    ratios = (0.25, 1, 4, 16)
    rows = []
    for n, d, m, rank in UNDER:
        for steps in HELP_STEPS:
            cells = {
                row["ratio"]: _share(row)
                for row in found["helped"]
                if row["shape"] == [n, d, m, rank] and row["steps"] == steps
            }
            shown = [_percent(cells[ratio]) if ratio in cells else "–" for ratio in ratios]
            rows.append((f"{m}x{n}", str(rank), str(d), str(steps), *shown))
    return Table(
        "Share of draws with random targets that more steps help, by shape",
        ("K", "rank", "parameters", "N", *(f"dN = {number(ratio)} N" for ratio in ratios)),
        tuple(rows),
    )


def _percent(found: Estimate) -> str:
    return f"{100 * found.value:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]" if found.count else "–"


def _remarks(found: Mapping[str, Any]) -> tuple[str, ...]:
    shares = [(_share(row), row) for row in found["helped"] if row["of"]]
    low, high = (pick(shares, key=lambda pair: pair[0].value) for pick in (min, max))
    rates = found["T3"]["rates"]
    return (
        "Slope by expected slope, 5, 50 and 95 % of draws: "
        + "; ".join(f"{name} {', '.join(f'{q:.3f}' for q in rates[name]['ratio'])}" for name in rates)
        + ".",
        f"Over shapes, N and dN the share of draws that more steps help runs from {_percent(low[0])} (N = "
        f"{low[1]['steps']}, dN = {low[1]['ratio']:g} N) to {_percent(high[0])} (N = {high[1]['steps']}, dN = "
        f"{high[1]['ratio']:g} N).",
    )
