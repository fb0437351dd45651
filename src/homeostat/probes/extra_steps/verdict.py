"""The verdict on extra steps, by rules that were fixed before any model was judged by them.

The rules, with their thresholds, are written down for readers in docs/probes.md; keep the two together.
"""

from collections.abc import Sequence
from typing import Literal

from homeostat.probes.extra_steps.result import (
    CurveVerdict,
    Decision,
    Outcome,
    StepsCurve,
    StepsRow,
    StepsVerdict,
    bare,
)
from homeostat.probes.figures import figure, interval

ENOUGH = 16
"""Examples that a curve needs for a verdict, unless they are all the training examples there were."""

Effect = Literal["same", "worse", "better", "open"]

_DECIDED = ("harmless", "worse", "better", "both")
_WORDS: dict[Decision, str] = {
    "tuned to this truncation": "the parameters are tuned to this truncation",
    "converged": "converged: extra steps are harmless",
    "harmless": "extra steps are harmless, although the state has not settled at N",
    "hurt": "extra steps hurt",
    "help": "extra steps help",
    "it depends": "it depends on the examples or on the budget",
    "not decided": "not decided",
}


def decide(curves: Sequence[StepsCurve], *, horizon: int, settle_rtol: float, margin: float) -> StepsVerdict:
    """The verdict on one model.

    Args:
        curves: of training and of held-out examples.
        horizon: N.
        settle_rtol: a median residual at N within this is converged.
        margin: a D within this share of the mean loss at N is no change.
    """
    found = [_one(curve, horizon, margin) for curve in curves]
    tuned = [_tuned(curve, one, horizon, settle_rtol, margin) for curve, one in zip(curves, found, strict=True)]
    outcomes = {one.outcome for one in found}
    decided = outcomes & set(_DECIDED)
    if any(tuned):
        decision: Decision = "tuned to this truncation"
    elif decided == {"harmless"} and outcomes == decided:
        settled = all(curve.at(horizon).residual.high <= settle_rtol for curve in curves)
        decision = "converged" if settled else "harmless"
    elif not decided or decided == {"harmless"}:
        decision = "not decided"
    elif decided <= {"worse", "harmless"}:
        decision = "hurt"
    elif decided <= {"better", "harmless"}:
        decision = "help"
    else:
        decision = "it depends"
    texts = [more or f"{_place(curve)}, {one.text}" for curve, one, more in zip(curves, found, tuned, strict=True)]
    if all(curve.data != "training" for curve in curves):
        texts.append("training examples were not given")
    return StepsVerdict(decision, f"{_WORDS[decision]}: {'; '.join(texts)}", tuple(found))


def effect(row: StepsRow, at: StepsRow, rounding: float, margin: float) -> Effect:
    """What a budget does, beside the row at the horizon.

    One example that is no longer finite makes a budget worse, one that is finite again makes it better. Otherwise:
    the same when the whole interval of D is within `margin` of the mean loss at the horizon, or within rounding; worse
    or better when it is not, and lies on one side of 0.
    """
    if row.broken or row.mended:
        return "open" if row.broken and row.mended else "worse" if row.broken else "better"
    if row.change is None or at.loss is None:
        return "open"
    little = max(margin * abs(at.loss.value), rounding)
    low, high = row.change.low, row.change.high
    if -little <= low and high <= little:
        return "same"
    return "worse" if low > 0 else "better" if high < 0 else "open"


def _one(curve: StepsCurve, horizon: int, margin: float) -> CurveVerdict:
    """The rules for one curve, in this order."""
    at = curve.at(horizon)

    def verdict(outcome: Outcome, text: str) -> CurveVerdict:
        return CurveVerdict(curve.name, outcome, text)

    if at.loss is None:
        return verdict("not measured", curve.missing["loss"])
    if at.loss.count == 0 or (curve.whole and at.failed):
        return verdict("not measured", f"{at.failed} of {curve.count} examples are not finite at N")
    if not curve.whole and at.loss.count < ENOUGH:
        finite = "" if at.failed == 0 else f" that are finite at N, of {curve.count},"
        few = "1 example is" if at.loss.count == 1 and not finite else f"{at.loss.count} examples{finite} are"
        return verdict("too few", f"{few} too few: give at least {ENOUGH}")
    beyond = [row for row in curve.rows if row.steps > horizon]
    effects = {row.steps: effect(row, at, curve.rounding, margin) for row in beyond}
    worse = [steps for steps, what in effects.items() if what == "worse"]
    better = [steps for steps, what in effects.items() if what == "better"]
    if worse and better:
        return verdict("both", f"the loss is lower {_span(better, beyond)} and higher {_span(worse, beyond)}")
    if worse or better:
        word = "higher" if worse else "lower"
        return verdict("worse" if worse else "better", f"the loss is {word} {_span(worse or better, beyond)}")
    if all(what == "same" for what in effects.values()):
        little = f"within {100 * margin:.3g} % of that at N, up to {beyond[-1].steps} steps"
        return verdict("harmless", f"the loss stays {little}")
    return verdict("open", "no budget is surely better or worse, nor all of them surely the same")


def _tuned(curve: StepsCurve, one: CurveVerdict, horizon: int, settle_rtol: float, margin: float) -> str | None:
    """Fewer and more steps are worse, none are better, and the state was still on its way at N; in words, or None."""
    at = curve.at(horizon)
    if curve.data != "training" or one.outcome != "worse" or not at.residual.low > settle_rtol:
        return None
    before = [row for row in curve.rows if row.steps < horizon]
    effects = [effect(row, at, curve.rounding, margin) for row in before]
    if "worse" not in effects or "better" in effects:
        return None
    fewer = _span([row.steps for row, what in zip(before, effects, strict=True) if what == "worse"], before[::-1])
    return (
        f"{_place(curve)}, {one.text} and {fewer}, and the residual at N is {interval(bare(at.residual, curve.whole))}"
    )


def _place(curve: StepsCurve) -> str:
    if not curve.whole:
        name = curve.name.replace("held out", "held-out", 1)
        return f"on {name} data" if curve.name == curve.data else f"on {name}"
    which = "the one training example" if curve.count == 1 else f"all {curve.count} training examples"
    return f"on {which}{curve.name.removeprefix(curve.data)}"


def _span(chosen: Sequence[int], rows: Sequence[StepsRow]) -> str:
    """Budgets in words; `rows` are all that there are on this side of the horizon, the nearest first."""
    steps = [row.steps for row in rows]
    if len(chosen) > 1 and set(chosen) == set(steps[-len(chosen) :]):
        nearest = chosen[0] if steps[0] < steps[-1] else chosen[-1]
        return f"from {nearest} steps {'on' if steps[0] < steps[-1] else 'down'}"
    return "at " + " and ".join(filter(None, [", ".join(map(str, chosen[:-1])), f"{figure(chosen[-1])} steps"]))
