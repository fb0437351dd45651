"""How figures are written in the report: never without their interval, never rounded to a claim they do not support."""

import math
from collections.abc import Sequence

from homeostat.probes.results import Estimate


def percent(share: float | None) -> str:
    """A share in per cent with one decimal; 0 % and 100 % are kept for exactly none and exactly all.

    Example:
        >>> [percent(share) for share in (1.0, 0.9999, 0.5, 0.0, float("nan"))]
        ['100 %', '>99.9 %', '50.0 %', '0 %', 'unknown']
    """
    if share is None or not math.isfinite(share):
        return "unknown"
    return f"{_percent_digits(share)} %"


def interval(estimate: Estimate | None, missing: str = "not judged") -> str:
    """A share with its 95 % interval and its count.

    Example:
        >>> interval(Estimate(0.5, 0.25, 0.75, 12))
        '50.0 % [25.0, 75.0] n=12'
        >>> interval(None)
        'not judged'
    """
    if estimate is None:
        return missing
    if estimate.count == 0 or not math.isfinite(estimate.value):
        return f"unknown, n={estimate.count}"
    return f"{percent(estimate.value)} {bounds(estimate.low, estimate.high)} n={estimate.count}"


def counted(estimate: Estimate | None) -> str:
    """A counted share as the count, what it is of, and its 95 % interval.

    Example:
        >>> counted(Estimate(0.5, 0.254, 0.746, 12))
        '6 of 12: 50.0 % [25.4, 74.6]'
    """
    if estimate is None:
        return "none"
    right = round(estimate.value * estimate.count)
    return f"{right} of {estimate.count}: {percent(estimate.value)} {bounds(estimate.low, estimate.high)}"


def bounds(low: float, high: float) -> str:
    """The two ends of an interval of a share, in per cent.

    Example:
        >>> bounds(0.0, 0.754)
        '[0, 75.4]'
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return "[unknown]"
    return f"[{_percent_digits(low)}, {_percent_digits(high)}]"


def cosine(estimate: Estimate) -> str:
    """A mean cosine with its 95 % interval and its count.

    Example:
        >>> cosine(Estimate(0.98, 0.97, 0.9999, 40))
        '0.980 [0.970, 0.9999] n=40'
    """
    if estimate.count == 0 or not math.isfinite(estimate.value):
        return f"unknown, n={estimate.count}"
    value, low, high = (_cosine_digits(number) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}] n={estimate.count}"


def number(value: float | None) -> str:
    """A positive quantity without a natural scale: a residual, a loss, a distance.

    Example:
        >>> [number(value) for value in (3.21e-5, 0.0, 2.5, float("inf"), float("nan"), None)]
        ['3.2e-05', '0', '2.5', 'infinite', 'not a number', 'unknown']
    """
    if value is None:
        return "unknown"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    if value == 0:
        return "0"
    return f"{value:.3g}" if 0.001 <= abs(value) < 1000 else f"{value:.1e}"


def whole(value: float) -> str:
    """A count with thin groups of three.

    Example:
        >>> whole(1234567)
        '1,234,567'
    """
    return f"{value:,.0f}"


def steps_and_cost(steps: int, unit_cost: float) -> str:
    """A number of steps, with what it costs where a step is not the unit of cost.

    Example:
        >>> steps_and_cost(64, 1), steps_and_cost(64, 2.5), steps_and_cost(1, 1)
        ('64 steps', '64 steps (cost 160)', '1 step')
    """
    words = f"{whole(steps)} step" if steps == 1 else f"{whole(steps)} steps"
    if unit_cost == 1:
        return words
    return f"{words} (cost {steps * unit_cost:,.6g})"


def listing(items: Sequence[object], most: int = 8) -> str:
    """The first few of a list, and how many more there are.

    Example:
        >>> listing([3, 5, 8], most=2), listing(["one"])
        ('3, 5 and 1 more', 'one')
    """
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def _percent_digits(share: float) -> str:
    digits = f"{100 * share:.1f}"
    if share in (0, 1):
        return f"{100 * share:.0f}"
    # A rounded 100.0 would claim that nothing failed.
    return {"100.0": ">99.9", "0.0": "<0.1", "-0.0": "0"}.get(digits, digits)


def _cosine_digits(value: float) -> str:
    if not math.isfinite(value):
        return "unknown"
    digits = f"{value:.3f}"
    if digits == "1.000" and value < 1:
        return f"{value:.4f}" if value < 0.99995 else ">0.9999"
    return digits
