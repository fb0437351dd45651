"""Stopping rules to choose from, and what each would have done on the examples on which rules are chosen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from homeostat.probes.courses.condition import Condition
from homeostat.probes.courses.courses import Courses
from homeostat.probes.courses.signals import SIGNALS, Signal

_SHARES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6)
_GRIDS: dict[str, tuple[float, ...]] = {
    "residual": _SHARES,
    "stable": (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64),
    "confidence": (0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999),
    "entropy": (0.6, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 1e-3, 1e-4),
    "kl": (1e-1, *_SHARES),
    "alignment": (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999),
}
"""Thresholds that are tried; those of the score are quantiles of it, since its scale is the model's own."""

_SCORES, _PAIRED = 12, 6
"""Quantiles of a score; thresholds of each signal that are tried in pairs."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A rule, and what it did.

    Attributes:
        stops: `(examples,)` steps after which it would have stopped.
        lost: `(examples,)` bool: right at the reference budget and wrong there.
    """

    conditions: tuple[Condition, ...]
    max_steps: int
    stops: np.ndarray
    lost: np.ndarray
    accuracy: float
    cost: float
    """Mean evaluations of `step` an example."""

    @property
    def kind(self) -> str:
        """The signals, as the table of a policy calls them."""
        if self.conditions[0].signal == "steps":
            return "fixed steps"
        return " and ".join(condition.signal for condition in self.conditions)

    @property
    def loss(self) -> float:
        return float(self.lost.mean())


def row_cost(conditions: Sequence[Condition]) -> int:
    """Evaluations of `step` in one step of an example: a second start doubles them."""
    return 2 if any(condition.signal == "alignment" for condition in conditions) else 1


def most_accurate(courses: Courses) -> int:
    """The budget with most examples right; the longest one of several."""
    totals = courses.right.sum(0)
    return len(totals) - int(np.argmax(totals[::-1]))


def evaluate(
    courses: Courses, conditions: tuple[Condition, ...], met: np.ndarray, most: int, reference: int
) -> Candidate:
    """What a rule would have done, `most` steps at the latest."""
    stops = np.minimum(courses.stops(met), most)
    right = courses.right_at(stops)
    lost = courses.right[:, reference - 1] & ~right
    cost = float(stops.mean()) * row_cost(conditions)
    return Candidate(conditions, most, stops, lost, float(right.mean()), cost)


def candidates(courses: Courses, reference: int) -> Iterator[Candidate]:
    """Every rule, on these examples: fixed budgets, one signal, two signals together.

    Rules that wait for signals may give up at the smallest budget that loses nothing here, or at the longest one.
    """
    losses = (courses.right[:, [reference - 1]] & ~courses.right).sum(0)
    enough = int(np.argmin(losses)) + 1
    for budget in _budgets(courses.steps, enough):
        rule = (Condition("steps", budget),)
        yield evaluate(courses, rule, courses.met(rule[0]), budget, reference)
    caps = sorted({courses.steps, min(courses.steps, max(reference, enough))})
    table = {c: courses.met(c) for name in courses.signals for c in thresholds(courses, name)}
    for condition, met in table.items():
        for most in caps:
            yield evaluate(courses, (condition,), met, most, reference)
    for first, second in combinations(courses.signals, 2):
        for one in thinned(courses, first):
            for other in thinned(courses, second):
                yield evaluate(courses, (one, other), table[one] & table[other], caps[0], reference)


def thresholds(courses: Courses, signal: Signal) -> list[Condition]:
    """Conditions on one signal, the loosest first."""
    if signal in _GRIDS:
        return [Condition(signal, value) for value in _GRIDS[signal]]
    values = courses.signals[signal]
    values = values[np.isfinite(values)]
    if not len(values):
        return []
    levels = np.unique(np.quantile(values, np.linspace(0.05, 0.999, _SCORES)))
    ordered = levels if SIGNALS[signal].larger else levels[::-1]
    return [Condition(signal, float(value)) for value in ordered]


def thinned(courses: Courses, signal: Signal) -> list[Condition]:
    """Some of the thresholds of a signal, evenly from loose to strict."""
    every = thresholds(courses, signal)
    places = np.unique(np.linspace(0, len(every) - 1, _PAIRED).round().astype(int)) if every else []
    return [every[i] for i in places]


def _budgets(longest: int, enough: int) -> list[int]:
    """Fixed budgets to try: all small ones, then steps of 3 %, and those around the first that loses nothing."""
    found, budget = set(range(1, min(longest, 32) + 1)), 32.0
    while budget < longest:
        found.add(int(budget))
        budget *= 1.03
    found |= {b for b in range(enough - 3, enough + 12) if 1 <= b <= longest}
    return sorted(found | {longest})
