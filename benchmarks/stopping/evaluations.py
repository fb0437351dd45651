"""Row-evaluations of a fitted policy against one budget for all, chosen on calibration data, measured on test data."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from homeostat.inference import Policy, fit_stopping
from homeostat.probes.courses.courses import Courses

_RESAMPLES = 2000


@dataclass(frozen=True)
class Outcome:
    """What a rule did on the test examples."""

    rule: str
    mean_steps: float
    by_size: dict[str, float]
    accuracy: float
    lost: int
    """Examples right at the reference budget and wrong where it stopped."""
    loss_high: float
    """Upper end of the one-sided 95 % Clopper-Pearson interval of their share."""

    @classmethod
    def of(cls, rule: str, courses: Courses, stops: np.ndarray, reference: int) -> "Outcome":
        right = courses.right_at(stops)
        lost = int((courses.right[:, reference - 1] & ~right).sum())
        return cls(
            rule,
            float(stops.mean()),
            {name: float(stops[courses.group == i].mean()) for i, name in enumerate(courses.difficulties)},
            float(right.mean()),
            lost,
            float(stats.binomtest(lost, len(courses)).proportion_ci(0.9).high),
        )


def stops_of(policy: Policy, courses: Courses) -> np.ndarray:
    """Where the policy stops each example."""
    return courses.stops(courses.met_all(policy.conditions), policy.max_steps)


def best_per_size(courses: Courses, loss: float, reference: int) -> dict[str, int]:
    """The smallest budget of each size that loses at most `loss` of that size on these examples."""
    found = {}
    for i, name in enumerate(courses.difficulties):
        right = courses.right[courses.group == i]
        lost = (right[:, [reference - 1]] & ~right).mean(0)
        found[name] = int(np.argmax(lost <= loss)) + 1
    return found


def ratio_interval(fixed: np.ndarray, stops: np.ndarray, group: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of mean(fixed) / mean(stops), resampling examples within their size."""
    rng = np.random.default_rng(seed)
    ratios = []
    parts = [np.flatnonzero(group == i) for i in np.unique(group)]
    for _ in range(_RESAMPLES):
        rows = np.concatenate([rng.choice(part, len(part)) for part in parts])
        ratios.append(fixed[rows].mean() / stops[rows].mean())
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def measure(calibration: Courses, test: Courses, loss: float, confidence: float) -> dict[str, Any]:
    """Fit on the one, judge on the other."""
    policy = fit_stopping(calibration, max_accuracy_loss=loss, confidence=confidence)
    assert policy.guarantee is not None
    reference = policy.guarantee.reference_steps
    budget = fit_stopping(replace(calibration, signals={}), max_accuracy_loss=loss, confidence=confidence)
    stops, fixed = stops_of(policy, test), stops_of(budget, test)
    sizes = best_per_size(calibration, loss, reference)
    per_size = np.array([sizes[name] for name in test.difficulties])[test.group]
    # What no rule can beat: each example stopped at the first step from which it stays right.
    oracle = np.maximum(test.right_from(), 1)
    low, high = ratio_interval(fixed, stops, test.group)
    outcomes = [
        Outcome.of(
            f"policy: {', '.join(map(repr, policy.conditions))}, at most {policy.max_steps}", test, stops, reference
        ),
        Outcome.of(f"one budget for all: {budget.max_steps}", test, fixed, reference),
        Outcome.of("best budget of each size", test, per_size, reference),
        Outcome.of("oracle: the first step from which it stays right", test, oracle, reference),
    ]
    return {
        "ratio": float(fixed.mean() / stops.mean()),
        "ratio_interval": [low, high],
        "oracle_ratio": float(fixed.mean() / oracle.mean()),
        "per_size_ratio": float(fixed.mean() / per_size.mean()),
        "reference_steps": reference,
        "reference_accuracy": float(test.right[:, reference - 1].mean()),
        "calibration_examples": len(calibration),
        "test_examples": len(test),
        "outcomes": [outcome.__dict__ for outcome in outcomes],
        "policy": policy.model_dump(mode="json", exclude_none=True),
    }
