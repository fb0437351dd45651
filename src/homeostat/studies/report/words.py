"""How a study's figures are written."""

import math

from homeostat.probes.results import Estimate
from homeostat.studies.claims import Decided

TONES = {
    "holds": ("good", "✓"),
    "does not hold": ("bad", "✕"),
    "not decided": ("open", "?"),
    "not run": ("open", "–"),
}
"""Look and sign of each verdict."""


def ours(found: Decided) -> str:
    """The quantities that a claim was decided by.

    Example:
        >>> from homeostat.studies.claims import Above, Claim, decide
        >>> ours(decide(Claim("a", "", "", "", Above(0)), [("all nets", Estimate(0.5, 0.4, 0.6, 24))]))
        'all nets: 0.500 [0.400, 0.600], n=24'
    """
    return "; ".join(f"{name}: {written(estimate)}" for name, estimate in found.ours) or "–"


def written(estimate: Estimate) -> str:
    """A value, its interval, and how many it is of.

    Example:
        >>> written(Estimate(float("nan"), float("nan"), float("nan"), 3))
        'not measurable, n=3'
    """
    if not math.isfinite(estimate.value):
        return f"not measurable, n={estimate.count}"
    interval = "no interval"
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        interval = f"[{_figure(estimate.low)}, {_figure(estimate.high)}]"
    return f"{_figure(estimate.value)} {interval}, n={estimate.count}"


def _figure(value: float) -> str:
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:z.3f}"


def minutes(seconds: float) -> str:
    """A duration.

    Example:
        >>> minutes(12.3), minutes(300)
        ('12.3 s', '5.0 min')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
