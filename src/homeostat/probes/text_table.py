"""A table as plain text, and how its figures are written."""

import math
from collections.abc import Sequence

from homeostat.probes.results import Estimate


def text_table(heads: Sequence[str], lines: Sequence[Sequence[str]], *, names: int = 1) -> str:
    """Columns set apart by two blanks; the first `names` of them to the left, figures to the right.

    Example:
        >>> print(text_table(["signal", "AUC"], [["residual", "0.9"], ["score", "0.75"]]))
        signal     AUC
        residual   0.9
        score     0.75
    """
    widths = [max(len(line[i]) for line in [heads, *lines]) for i in range(len(heads))]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < names else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(padded).rstrip()

    return "\n".join([row(heads), *(row(line) for line in lines)])


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
    """An estimate with its interval, as in `0.5 [0.4, 0.6]`.

    Example:
        >>> interval(Estimate(0.5, 0.4, 0.6, 10))
        '0.5 [0.4, 0.6]'
    """
    if estimate is None or math.isnan(estimate.value):
        return "–"
    return f"{figure(estimate.value, digits)} [{figure(estimate.low, digits)}, {figure(estimate.high, digits)}]"


def percent(estimate: Estimate | None) -> str:
    """A share in per cent with its interval.

    Example:
        >>> percent(Estimate(0.5, 0.4, 0.6, 10))
        '50 [40, 60]'
    """
    if estimate is None or math.isnan(estimate.value):
        return "–"
    return f"{100 * estimate.value:.0f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
