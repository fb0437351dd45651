"""From the values of jobs to estimates, points and words; what several sections do with them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from homeostat.probes.estimates import mean, share
from homeostat.probes.report.words import number
from homeostat.probes.results import Estimate
from homeostat.studies.figures import Axis, Figure, Series, point, spread_out

ALGORITHM_1 = "swapped"
"""The start of Algorithm 1: another example's limit."""


def estimate(record: Mapping[str, Any] | None) -> Estimate:
    """An estimate as it came back from disk; what was not finite there is not a number.

    Example:
        >>> estimate({"value": 0.5, "low": None, "high": 0.6, "count": 3})
        0.500 [nan, 0.600] n=3
    """
    if record is None:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    value, low, high = (float("nan") if record[key] is None else record[key] for key in ("value", "low", "high"))
    return Estimate(value, low, high, record["count"])


def exact(values: Mapping[str, Any]) -> Estimate:
    """Share answered right in full, with Wilson's interval over examples."""
    return share(values["correct"])


def symbols(values: Mapping[str, Any]) -> Estimate:
    """Mean share of right symbols at the deepest budget."""
    return estimate(values["budgets"][-1]["symbol"])


def cosines(values: Mapping[str, Any], start: str = ALGORITHM_1) -> list[float]:
    """Cosine of each example between its limits from its own start and from `start`; a failed one has 0."""
    return [cosine or 0.0 for cosine in values["starts"][start]["cosines"]]


def nulls(values: Mapping[str, Any], start: str = ALGORITHM_1) -> list[float]:
    """Cosine of each example's limit with that of a different example: what a cosine is worth nothing."""
    return [cosine or 0.0 for cosine in values["starts"][start]["nulls"]]


def alignment(values: Mapping[str, Any], start: str = ALGORITHM_1) -> Estimate:
    """Mean cosine over examples with its bootstrap interval."""
    return mean(cosines(values, start))


def in_percent(found: Estimate) -> str:
    """A share in per cent with its interval.

    Example:
        >>> in_percent(Estimate(0.5, 0.25, 0.75, 12))
        '50.0 % [25.0, 75.0]'
    """
    if math.isnan(found.value):
        return "not measurable"
    return f"{100 * found.value:z.1f} % [{100 * found.low:z.1f}, {100 * found.high:z.1f}]"


def in_figures(found: Estimate, digits: int = 3) -> str:
    """A value with its interval.

    Example:
        >>> in_figures(Estimate(0.5, 0.25, 0.75, 12), 2)
        '0.50 [0.25, 0.75]'
    """
    if math.isnan(found.value):
        return "not measurable"
    return f"{found.value:z.{digits}f} [{found.low:z.{digits}f}, {found.high:z.{digits}f}]"


def residual_words(values: Sequence[float | None]) -> str:
    """The median residual of some examples; None stands for a state that is not finite."""
    ordered = sorted(float("inf") if value is None else value for value in values)
    return number(ordered[len(ordered) // 2]) if ordered else "unknown"


def limits_words(limits: Mapping[str, int]) -> str:
    """Limit classes with their counts.

    Example:
        >>> limits_words({"fixed point": 3, "cycle": 1, "drift": 0})
        'fixed point 3, cycle 1'
    """
    return ", ".join(f"{name} {count}" for name, count in limits.items() if count) or "none"


def dots_by_category(
    name: str,
    caption: str,
    categories: Sequence[str],
    groups: Mapping[str, Callable[[str], Sequence[tuple[str, Estimate]]]],
    *,
    y: Axis,
    x_title: str = "recipe",
    level: float | None = None,
) -> Figure:
    """A figure with a column for each category and a point for each net, so that every seed is seen.

    Args:
        groups: by name, what gives the labelled estimates of a category.
    """
    series = []
    for place, (label, of) in enumerate(groups.items()):
        shift = 0.0 if len(groups) == 1 else 0.3 * (place / (len(groups) - 1) - 0.5)
        points = []
        for column, category in enumerate(categories):
            found = list(of(category))
            width = 0.5 if len(groups) == 1 else 0.22
            points += [
                point(spread_out(column, i, len(found), width) + shift, value, text)
                for i, (text, value) in enumerate(found)
            ]
        series.append(Series(label, tuple(points)))
    return Figure(name, caption, Axis(x_title, labels=tuple(categories)), y, tuple(series), level)
