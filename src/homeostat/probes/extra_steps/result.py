"""What `extra_steps` found, as values."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from homeostat.files import write_text
from homeostat.probes.columns import columns, percent
from homeostat.probes.figures import interval
from homeostat.probes.results import Estimate
from homeostat.probes.saving import plain

FORMAT = 1

Data = Literal["training", "held out"]
Outcome = Literal["harmless", "worse", "better", "both", "open", "too few", "not measured"]
Decision = Literal["tuned to this truncation", "converged", "harmless", "hurt", "help", "it depends", "not decided"]


@dataclass(frozen=True)
class StepsRow:
    """One curve with one test budget, beside the same examples at the horizon.

    An example is *finite* where both its state and its loss are. One that is not finite here has failed: it counts as
    wrong, its residual as infinite, its loss as worse than any; it is left out of the means of the loss, and counted.
    """

    steps: int
    loss: Estimate | None
    """Mean over the finite examples."""
    change: Estimate | None
    """D: mean of (loss here - loss at the horizon) over the examples that are finite at both. On a whole training set
    it is what it is; otherwise the interval holds for all budgets of the curve at once."""
    relative: Estimate | None
    """D over the mean loss at the horizon of the same examples; None where that is 0."""
    exact: Estimate | None
    """Share of examples answered right in full (Wilson)."""
    gained: int | None
    """Examples that are right here and wrong at the horizon."""
    lost: int | None
    """Examples that are wrong here and right at the horizon."""
    p_value: float | None
    """McNemar's exact test that gaining and losing are as likely."""
    symbol: Estimate | None
    """Mean share of right symbols (Wilson, with the effective count of clustered symbols)."""
    residual: Estimate
    """Median of RMS(f(z) - z) / RMS(f(z)) of the last step, the largest over the measured leaves."""
    failed: int
    """Examples that are not finite here."""
    broken: int
    """Of those, the ones that are finite at the horizon."""
    mended: int
    """Examples that are finite here and not at the horizon."""
    changes: tuple[float, ...]
    """(loss here - loss at the horizon), an entry an example: infinite for a broken one, minus infinite for a mended
    one, NaN for one that is finite at neither. Empty without a loss."""


@dataclass(frozen=True)
class SignAgreement:
    """How the first-order prediction compares with what was measured at one budget above the horizon."""

    steps: int
    sign: Estimate
    """Share of examples whose D has the predicted sign (Wilson); those where either is 0 to rounding are left out."""
    rank: Estimate | None
    """Spearman's rank correlation of prediction and D; None where one of them does not vary."""


@dataclass(frozen=True)
class FirstOrder:
    """T5: <grad_z loss(z_N), f(z_N) - z_N>, which foretells D at N + 1, and the sign of D while the step is small."""

    predicted: Estimate
    """Mean over the examples that are finite at the horizon, with a bootstrap interval; in units of the loss."""
    values: tuple[float, ...]
    """An entry an example; NaN where it failed."""
    agreements: tuple[SignAgreement, ...]
    """By budget above the horizon."""


@dataclass(frozen=True)
class StepsCurve:
    """The same examples at every budget."""

    name: str
    data: Data
    count: int
    whole: bool
    """These are all the training examples there were: figures are facts, without a sampling error."""
    rows: tuple[StepsRow, ...]
    best: Estimate | None
    """The budget of the least mean loss, the smallest one of equals; the interval is where it lies over bootstrap
    samples. Of the examples that are finite at some budget; None without one. Chosen afterwards: measure its loss on
    other examples."""
    rounding: float
    """Of the loss: 4 units in the last place of its largest mean on this curve. A smaller D says nothing."""
    first_order: FirstOrder | None
    missing: dict[str, str]
    """What could not be measured, and why."""

    def at(self, steps: int) -> StepsRow:
        """The row of exactly `steps` steps."""
        for row in self.rows:
            if row.steps == steps:
                return row
        raise KeyError(f"no budget of {steps} steps; there are {[row.steps for row in self.rows]}")


@dataclass(frozen=True)
class CurveVerdict:
    """What steps beyond the horizon do on one curve, and by which rule."""

    curve: str
    outcome: Outcome
    text: str


@dataclass(frozen=True)
class StepsVerdict:
    """What the curves say, by rules fixed beforehand (docs/probes.md)."""

    decision: Decision
    text: str
    curves: tuple[CurveVerdict, ...]


@dataclass(frozen=True, repr=False)
class ExtraSteps:
    """What `extra_steps` found; print it for a table."""

    model: str
    horizon: int
    settle_rtol: float
    margin: float
    stochastic: bool
    seed: int
    curves: tuple[StepsCurve, ...]
    verdict: StepsVerdict

    def of(self, curve: str) -> StepsCurve:
        """The curve of this name: `training`, `held out`, or `training: name` and `held out: name` of a mapping."""
        for found in self.curves:
            if found.name == curve:
                return found
        raise KeyError(f"no curve {curve!r}; there are {[found.name for found in self.curves]}")

    def to_json(self) -> str:
        """Strict JSON: `{"format": 1, "extra_steps": {...}}`, fields as they are called here; what is not finite is
        null.
        """
        return json.dumps({"format": FORMAT, "extra_steps": plain(dataclasses.asdict(self))}, allow_nan=False) + "\n"

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `extra_steps.json` into `folder`, whole or not at all.

        Raises:
            OutputError: the folder cannot be written.
        """
        return write_text(Path(folder) / "extra_steps.json", self.to_json())

    def __repr__(self) -> str:
        text = [f"{self.model}: test steps beside the {self.horizon} trained ones"]
        for first in range(0, len(self.curves), 2):  # so that no table grows wider than a screen
            pair = self.curves[first : first + 2]
            text += [*_table(self.horizon, pair), *(note for curve in pair for note in _notes(self, curve))]
        text += [
            "D: mean loss at so many steps minus that at the horizon, same parameters, same examples, same start; "
            "95 % intervals, of D for all budgets of a curve at once. residual: median of RMS(f(z) - z) / RMS(f(z)).",
            *(["Its steps draw random numbers: one draw of each example was measured."] if self.stochastic else []),
            self.verdict.text[0].upper() + self.verdict.text[1:] + ".",
        ]
        return "\n".join(text)


def _table(horizon: int, curves: tuple[StepsCurve, ...]) -> list[str]:
    judged = any(row.exact is not None for curve in curves for row in curve.rows)
    heads = ["steps", *(f"D {curve.name}" for curve in curves)]
    heads += [f"exact {curve.name}, %" for curve in curves] if judged else []
    heads += [f"residual {curve.name}" for curve in curves]
    lines = []
    for rows in zip(*(curve.rows for curve in curves), strict=True):
        steps, pairs = rows[0].steps, list(zip(rows, curves, strict=True))
        line = [f"{steps} = N" if steps == horizon else str(steps)]
        line += [
            "0" if steps == horizon and row.change is not None else _changed(row, curve.whole) for row, curve in pairs
        ]
        line += [percent(bare(row.exact, curve.whole)) for row, curve in pairs] if judged else []
        lines.append([*line, *(interval(bare(row.residual, curve.whole)) for row, curve in pairs)])
    return columns(heads, lines)


def _changed(row: StepsRow, whole: bool) -> str:
    marks = f" +{row.broken} infinite" if row.broken else ""
    return interval(bare(row.change, whole)) + marks + (f" -{row.mended} infinite" if row.mended else "")


def bare(estimate: Estimate | None, whole: bool) -> Estimate | None:
    """Without its interval where it is a fact."""
    if estimate is None or not whole:
        return estimate
    return dataclasses.replace(estimate, low=float("nan"), high=float("nan"))


def _notes(found: ExtraSteps, curve: StepsCurve) -> list[str]:
    at, last = curve.at(found.horizon), curve.rows[-1]
    beyond = [row for row in curve.rows if row.steps > found.horizon]
    parts = [f"{curve.count} {'example' if curve.count == 1 else 'examples'}"]
    if curve.whole:
        parts[0] += ", all there were"
    if at.loss is not None:
        parts.append(f"loss at N {interval(bare(at.loss, curve.whole))}")
    shares = [
        f"{interval(bare(row.relative, curve.whole))} at {row.steps}" for row in (beyond[0], last) if row.relative
    ]
    if shares:
        parts.append(f"D / loss at N {', '.join(dict.fromkeys(shares))}")
    if curve.best is not None:
        parts.append(f"least mean loss at {interval(bare(curve.best, curve.whole))} steps (chosen afterwards)")
    if last.gained or last.lost:
        p_value = "" if last.p_value is None else f" (McNemar p = {last.p_value:.2g})"
        parts.append(f"answers gained {last.gained}, lost {last.lost} at {last.steps}{p_value}")
    if any(row.failed for row in curve.rows):
        failed = ", ".join(f"{row.failed} at {row.steps}" for row in curve.rows if row.failed)
        parts.append(f"not finite, and left out of the means: {failed}")
    lines = [f"{curve.name}: {'; '.join(parts)}."]
    if curve.first_order is not None:
        lines.append(f"{curve.name}: {_foretold(curve.first_order)}.")
    return lines + [f"{curve.name}: no {name}: {why}." for name, why in curve.missing.items()]


def _foretold(first: FirstOrder) -> str:
    """The prediction, and how it fares at the nearest and at the farthest budget that there is to compare with."""
    there = [agreement for agreement in first.agreements if agreement.sign.count]
    ends = there[:1] + (there[-1:] if len(there) > 1 else [])
    fares = "; ".join(
        f"at {one.steps} the sign is right for {percent(one.sign)} %"
        + (f", rank correlation {interval(one.rank)}" if one.rank is not None else "")
        for one in ends
    )
    return f"to first order one more step changes the loss by {interval(first.predicted)}" + (fares and f"; {fares}")
