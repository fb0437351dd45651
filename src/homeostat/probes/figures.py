"""Figures of any size in a table: steps, rates, residuals."""

import math

from homeostat.probes.results import Estimate


def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many digits that count; what is not a number is a dash.

    Example:
        >>> figure(0.12345), figure(1234.5), figure(float("inf")), figure(None)
        ('0.123', '1234', 'inf', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.{digits}g}"


def interval(estimate: Estimate | None, digits: int = 3) -> str:
    """An estimate with its interval, which too few examples do not have.

    Example:
        >>> interval(Estimate(12.0, 10.0, float("inf"), 10)), interval(Estimate(3.0, float("nan"), float("nan"), 1))
        ('12 [10, inf]', '3')
    """
    if estimate is None or math.isnan(estimate.value):
        return "–"
    if math.isnan(estimate.low):
        return figure(estimate.value, digits)
    return f"{figure(estimate.value, digits)} [{figure(estimate.low, digits)}, {figure(estimate.high, digits)}]"
