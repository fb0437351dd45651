"""What the report derives from the examples of an audit: spreads of steps, shares of a table, and what is missing."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from homeostat.probes.report import words
from homeostat.probes.results import LIMIT_CLASSES, Audit, Budget, Difficulty, Estimate, Example


@dataclass(frozen=True)
class Spread:
    """Where a step number lies over the examples that have one. Quantiles are steps that occurred."""

    have: int
    total: int
    quantiles: tuple[int, int, int, int, int] | None
    """10th, 25th, 50th, 75th and 90th percentile; None when no example has one."""

    def __str__(self) -> str:
        """The median, and the 10th to the 90th percentile in brackets."""
        if self.quantiles is None:
            return f"none of {self.total}"
        low, _, median, _, high = (words.whole(value) for value in self.quantiles)
        return f"{median} [{low} to {high}]"


def spread(difficulty: Difficulty, of: Callable[[Example], int | None]) -> Spread:
    """The spread of one step number over the examples of a difficulty.

    Example:
        >>> from types import SimpleNamespace as Bag
        >>> bag = Bag(examples=[Bag(settled_at=n) for n in (3, 4, 9, None)])
        >>> str(spread(bag, lambda example: example.settled_at))
        '4 [3 to 9]'
    """
    values = [value for value in map(of, difficulty.examples) if value is not None]
    if not values:
        return Spread(0, len(difficulty.examples), None)
    # inverted_cdf gives steps that were really taken, not averages of two.
    found = np.quantile(np.array(values), [0.1, 0.25, 0.5, 0.75, 0.9], method="inverted_cdf").tolist()
    return Spread(len(values), len(difficulty.examples), (found[0], found[1], found[2], found[3], found[4]))


def share(count: int, total: int) -> Estimate | None:
    """A counted share with its Wilson interval; None of nothing.

    Example:
        >>> share(8, 10)
        0.800 [0.490, 0.943] n=10
        >>> share(0, 0) is None
        True
    """
    if total == 0:
        return None
    found = binomtest(count, total).proportion_ci(0.95, method="wilson")
    return Estimate(count / total, float(found.low), float(found.high), total)


def horizon_budget(audit: Audit, difficulty: Difficulty) -> Budget | None:
    """The budget that stands for the trained horizon: the largest one within it."""
    if audit.trained_steps is None:
        return None
    within = [budget for budget in difficulty.budgets if budget.steps <= audit.trained_steps]
    return max(within, key=lambda budget: budget.steps) if within else None


def last_budget(difficulty: Difficulty) -> Budget | None:
    """The largest budget, on which the per-example facts rest."""
    return max(difficulty.budgets, key=lambda budget: budget.steps) if difficulty.budgets else None


def common_steps(budgets: list[Budget | None]) -> int | None:
    """The number of steps that these budgets share; None when they differ or one is missing."""
    steps = {None if budget is None else budget.steps for budget in budgets}
    return steps.pop() if len(steps) == 1 else None


def limit_shares(difficulty: Difficulty) -> list[tuple[str, int, float]]:
    """Limit class, count and share, in the order of `LIMIT_CLASSES`; classes without an example are left out."""
    total = sum(difficulty.limits.values())
    return [(name, count, count / total) for name in LIMIT_CLASSES if (count := difficulty.limits.get(name, 0))]


def periods(difficulty: Difficulty) -> str:
    """The periods of the cycles that were found, most frequent first: `period 2: 5, period 3: 1`."""
    counts: dict[int, int] = {}
    for example in difficulty.examples:
        if example.limit == "cycle" and example.period is not None:
            counts[example.period] = counts.get(example.period, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return words.listing([f"period {period}: {count}" for period, count in ordered], most=4)


def failed_examples(difficulty: Difficulty) -> str:
    """The examples that became non-finite, by number, with the step at which each did."""
    found = [example for example in difficulty.examples if example.failed_at is not None]
    return words.listing([f"#{example.index} at step {example.failed_at}" for example in found], most=6)


def lost(difficulty: Difficulty) -> tuple[int, int] | None:
    """Examples that were right at some step and wrong at the end, of those judged; None when none was judged."""
    judged = [example.lost for example in difficulty.examples if example.lost is not None]
    return (sum(judged), len(judged)) if judged else None


def not_measured(audit: Audit) -> list[str]:
    """Sentences on what this audit does not say, from its notes and from what is absent in it."""
    found: list[str] = []
    if audit.trained_steps is None:
        found.append("The model does not state the number of steps it was trained with, so no horizon is marked.")
    if not audit.difficulties:
        found.append("No difficulty was audited.")
    elif len(audit.difficulties) == 1:
        found.append("Only one difficulty was audited: nothing is said about harder inputs.")
    if not audit.clips:
        found.append("No example was recorded for the gallery.")
    # What is missing in the same way at many difficulties is said once.
    where: dict[str, list[str]] = {}
    for difficulty in audit.difficulties:
        for sentence in [*_absent(difficulty), *difficulty.notes]:
            where.setdefault(sentence, []).append(difficulty.name)
    for sentence, names in where.items():
        everywhere = 1 < len(names) == len(audit.difficulties)
        found.append(f"{'Every difficulty' if everywhere else words.listing(names)}: {sentence}")
    return found


def _absent(difficulty: Difficulty) -> list[str]:
    found: list[str] = []
    budgets = difficulty.budgets
    if not budgets:
        return ["no budget was run."]
    if all(budget.exact is None for budget in budgets):
        found.append("answers were not judged, so there is no accuracy.")
    if difficulty.light_cone is None:
        found.append("the model does not state its light-cone bound.")
    if not difficulty.alignments:
        found.append("alignment was not measured.")
    if len(difficulty.examples) == 1:
        found.append("a single example; its intervals are as wide as they look.")
    for name, values in (
        ("median residual", [budget.residual_median for budget in budgets]),
        ("90th percentile of the residual", [budget.residual_high for budget in budgets]),
    ):
        missing = [budget.steps for budget, value in zip(budgets, values, strict=True) if not math.isfinite(value)]
        if missing:
            where = words.listing(missing, most=4)
            found.append(f"the {name} is not finite after {where} steps; no point is drawn there.")
    if all(budget.failed >= budget.settled.count > 0 for budget in budgets):
        found.append("every example failed at every budget.")
    return found
