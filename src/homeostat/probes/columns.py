"""Results as text: figures in columns."""

import math
from collections.abc import Sequence

from homeostat.probes.results import Estimate


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]], *, names: int = 1) -> list[str]:
    """Lines of a table, the first `names` columns to the left and the others to the right.

    Example:
        >>> print("\\n".join(columns(["start", "cosine"], [["zeros", "1"], ["swapped", "0.5"]])))
        start    cosine
        zeros         1
        swapped     0.5
    """
    widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        return "  ".join(c.ljust(w) if i < names else c.rjust(w) for i, (c, w) in pairs).rstrip()

    return [line(heads), *(line(row) for row in rows)]


def number(estimate: Estimate | None) -> str:
    """A mean with its interval; a dash where nothing was measured.

    Example:
        >>> number(Estimate(0.98765, 0.98, 0.99, 40)), number(None)
        ('0.988 [0.980, 0.990]', '–')
    """
    if estimate is None or math.isnan(estimate.value):
        return "–"
    if math.isnan(estimate.low):  # one example has no interval
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def percent(estimate: Estimate | None) -> str:
    """The same in per cent.

    Example:
        >>> percent(Estimate(1.0, 0.943, 1.0, 64))
        '100 [94.3, 100]'
    """
    if estimate is None or math.isnan(estimate.value):
        return "–"
    if math.isnan(estimate.low):
        return f"{100 * estimate.value:.3g}"
    return f"{100 * estimate.value:.3g} [{100 * estimate.low:.3g}, {100 * estimate.high:.3g}]"
