"""What a comparison found, as values."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from homeostat.probes.columns import columns, percent
from homeostat.probes.figures import figure
from homeostat.probes.results import Estimate

Costs = Literal["evaluations", "seconds"]


@dataclass(frozen=True)
class Contestant:
    """One of the models."""

    name: str
    trained_steps: int | None
    unit_cost: float
    parameters: int | None


@dataclass(frozen=True)
class CurvePoint:
    """One model at one cost, on the test split."""

    cost: float
    """At most this much was spent on an example."""
    steps: int
    exact: Estimate
    """Share answered right in full (Wilson)."""
    symbol: float | None
    """Mean share of right symbols; None where nothing says it."""
    failed: int
    """Examples whose state was no longer finite; they count as wrong."""


@dataclass(frozen=True)
class Curve:
    """Accuracy by cost of one model on one difficulty."""

    model: str
    difficulty: str
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Difference:
    """Exact accuracy of one model minus that of another on the same examples at the same cost."""

    ours: str
    theirs: str
    difficulty: str
    cost: float
    value: Estimate
    """Paired over examples. The intervals of one pair and difficulty hold for all costs at once."""


@dataclass(frozen=True)
class Peak:
    """The budget at which a model was best on the calibration split, and what it reaches there on the test split."""

    model: str
    difficulty: str
    steps: int
    cost: float
    calibration: float
    """Exact accuracy there on the calibration split: chosen for being the best, and so too good."""
    exact: Estimate
    """On the test split, which had no part in the choice."""


@dataclass(frozen=True)
class PeakDifference:
    """Two models, each at its own peak, on the test split."""

    ours: str
    theirs: str
    difficulty: str
    value: Estimate
    """Exact accuracy of `ours` minus that of `theirs`, paired over examples."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Several models on the same inputs at equal cost; print it for a table, `save` it for a page.

    Attributes:
        costs: what the cost of an example is counted in.
        models: who took part.
        curves, differences: at equal cost, on the test split.
        peaks, peak_differences: each model at the budget that was best for it on the calibration split.
        calibration, test: examples of each split, over all difficulties.
        seed: of the split and the bootstrap.
        device: where it ran.
        notes: what a reader must know.
    """

    costs: Costs
    models: tuple[Contestant, ...]
    curves: tuple[Curve, ...]
    differences: tuple[Difference, ...]
    peaks: tuple[Peak, ...]
    peak_differences: tuple[PeakDifference, ...]
    calibration: int
    test: int
    seed: int
    device: str
    notes: tuple[str, ...] = ()

    @property
    def difficulties(self) -> tuple[str, ...]:
        """Their names, in their order."""
        return tuple(dict.fromkeys(curve.difficulty for curve in self.curves))

    def curve(self, model: str, difficulty: str) -> Curve:
        """The curve of this model and difficulty."""
        for curve in self.curves:
            if (curve.model, curve.difficulty) == (model, difficulty):
                return curve
        names = [(curve.model, curve.difficulty) for curve in self.curves]
        raise KeyError(f"no curve {model!r}, {difficulty!r}; there are {names}")

    def peak(self, model: str, difficulty: str) -> Peak:
        """The peak of this model and difficulty."""
        for peak in self.peaks:
            if (peak.model, peak.difficulty) == (model, difficulty):
                return peak
        raise KeyError(f"no peak {model!r}, {difficulty!r}; there are {[(p.model, p.difficulty) for p in self.peaks]}")

    def difference(self, ours: str, theirs: str, difficulty: str, cost: float) -> Difference:
        """The difference of this pair at this difficulty and cost."""
        for found in self.differences:
            if (found.ours, found.theirs, found.difficulty, found.cost) == (ours, theirs, difficulty, cost):
                return found
        raise KeyError(f"no difference {ours!r} - {theirs!r} on {difficulty!r} at a cost of {cost!r}")

    def __repr__(self) -> str:
        names = [model.name for model in self.models]
        lines = [
            f"{' and '.join(names)}: exact accuracy in % at equal {self.costs} an example, on {self.test} test "
            f"examples; budgets chosen on {self.calibration} others; seed {self.seed}"
        ]
        for difficulty in self.difficulties:
            lines += ["", f"{difficulty}:", *self._curves(difficulty), *self._peaks(difficulty)]
        lines += [
            "",
            "95 % intervals: Wilson's for shares; for differences a paired bootstrap, at equal cost for all costs of a "
            "pair at once.",
            *self.notes,
        ]
        return "\n".join(lines)

    def _curves(self, difficulty: str) -> list[str]:
        curves = [self.curve(model.name, difficulty) for model in self.models]
        pairs = list(dict.fromkeys((d.ours, d.theirs) for d in self.differences if d.difficulty == difficulty))
        heads = [self.costs, *(f"{curve.model} (steps)" for curve in curves), *(f"{a} - {b}" for a, b in pairs)]
        rows = []
        for place, point in enumerate(curves[0].points):
            shown = [curve.points[place] for curve in curves]
            gaps = [self.difference(*pair, difficulty, point.cost).value for pair in pairs]
            cells = [f"{percent(one.exact)} ({one.steps:,})" for one in shown]
            rows.append([figure(point.cost), *cells, *map(points_of, gaps)])
        return columns(heads, rows, names=0)

    def _peaks(self, difficulty: str) -> list[str]:
        lines = []
        for peak in self.peaks:
            if peak.difficulty == difficulty:
                where = f"{peak.steps:,} steps, {figure(peak.cost)} {self.costs}"
                lines.append(f"{peak.model}: best on the calibration split at {where}; {percent(peak.exact)} % on test")
        for gap in self.peak_differences:
            if gap.difficulty == difficulty:
                lines.append(f"{gap.ours} - {gap.theirs}, each at its best: {points_of(gap.value)} points")
        return lines

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `comparison.json` and `comparison.html` into `folder`, each whole or not at all.

        Raises:
            OutputError: the folder cannot be written.
        """
        from homeostat.probes.comparison.saving import save_comparison

        return save_comparison(self, folder)


def points_of(estimate: Estimate) -> str:
    """A difference of shares in percentage points, with its sign.

    Example:
        >>> points_of(Estimate(0.125, -0.02, 0.27, 40))
        '+12.5 [-2.0, +27.0]'
    """
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
