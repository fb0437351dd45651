"""Stopping rules to choose from, and what each would have done on the examples on which rules are chosen."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from homeostat.probes.certificates.consider import CertificateOptions
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
    "certificate": (1.0,),
    "alignment": (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999),
}
"""Thresholds that are tried, beside quantiles of the signal where answers become right for good."""

_QUANTILES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.99, 0.997, 0.999)
_PAIRED = 8
"""Thresholds of each signal that are tried in pairs."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A rule, and what it did.

    Attributes:
        stops: `(examples,)` steps after which it would have stopped.
        lost: `(examples,)` bool: right at the reference budget and wrong there.
        answered: `(examples,)` bool: it stopped because its conditions were met.
    """

    conditions: tuple[Condition, ...]
    max_steps: int
    stops: np.ndarray
    lost: np.ndarray
    answered: np.ndarray
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
    def most_a_step(self) -> int:
        """Most evaluations that one step can take: a bound on the cost, for what is promised of it."""
        signals = {condition.signal for condition in self.conditions}
        products = CertificateOptions().iterations if "certificate" in signals else 0
        return (2 if "alignment" in signals else 1) + products

    @property
    def loss(self) -> float:
        return float(self.lost.mean())


def most_accurate(courses: Courses) -> int:
    """The budget with most examples right; the longest one of several."""
    totals = courses.right.sum(0)
    return len(totals) - int(np.argmax(totals[::-1]))


def evaluate(
    courses: Courses, conditions: tuple[Condition, ...], met: np.ndarray, most: int, reference: int
) -> Candidate:
    """What a rule would have done, `most` steps at the latest."""
    stops = courses.stops(met, most)
    right = courses.right_at(stops)
    lost = courses.right[:, reference - 1] & ~right
    cost = float(courses.evaluations(conditions, stops).mean())
    return Candidate(conditions, most, stops, lost, courses.answered(met, stops), float(right.mean()), cost)


def families(courses: Courses, reference: int) -> list[list[Candidate]]:
    """Rules in families, each from its strictest threshold to its loosest: fixed budgets, one signal, or one signal
    beside a fixed threshold on another.

    Rules that wait for signals may give up at the smallest budget that loses nothing here, or at the longest one.
    """
    losses = (courses.right[:, [reference - 1]] & ~courses.right).sum(0)
    enough = int(np.argmin(losses)) + 1
    budgets = [(Condition("steps", budget),) for budget in reversed(_budgets(courses.steps, enough))]
    found = [[evaluate(courses, rule, courses.met(rule[0]), int(rule[0].threshold), reference) for rule in budgets]]
    most = sorted({courses.steps, min(courses.steps, max(reference, enough))})
    table = {name: {c: courses.met(c) for c in reversed(thresholds(courses, name))} for name in courses.signals}
    for rules in table.values():
        for longest in most:
            found.append([evaluate(courses, (c,), met, longest, reference) for c, met in rules.items()])
    for first, second in combinations(table.values(), 2):
        some, others = thinned(list(first)), thinned(list(second))
        grid = [[evaluate(courses, (a, b), first[a] & second[b], most[0], reference) for b in others] for a in some]
        found += grid
        found += [list(column) for column in zip(*grid, strict=True)]
    return [family for family in found if family]


def thresholds(courses: Courses, signal: Signal) -> list[Condition]:
    """Conditions on one signal, the loosest first."""
    right_from = courses.right_from()
    rows = np.flatnonzero(right_from)
    places = np.concatenate([rows, rows])
    steps = np.concatenate([right_from[rows], np.minimum(right_from[rows] + 1, courses.steps)])
    if signal == "certificate":
        return [Condition(signal, value) for value in _GRIDS[signal]]
    values = courses.signals[signal][places, steps - 1]
    values = values[np.isfinite(values)]
    levels = {*_GRIDS.get(signal, ())}
    if len(values):
        levels |= set(np.quantile(values, _QUANTILES, method="nearest").tolist())
    ordered = sorted(levels, reverse=not SIGNALS[signal].larger)
    return [Condition(signal, float(value)) for value in ordered]


def thinned(every: list[Condition]) -> list[Condition]:
    """Some of the thresholds of a signal, evenly."""
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
