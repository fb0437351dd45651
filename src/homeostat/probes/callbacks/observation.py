"""What a monitor saw at one moment of a training, as values and as numbers for a logger."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from homeostat.probes.columns import columns, number, percent
from homeostat.probes.results import LIMIT_CLASSES, Estimate, LimitClass


@dataclass(frozen=True)
class Reading:
    """The examples of one difficulty.

    An example fails where a state is not finite or out of bounds, in the run from the other start or in that which it
    is compared with.
    """

    alignment: Estimate | None
    """Mean cosine of the two last states of an example, failed ones 0; None where nothing could be compared."""
    null: Estimate | None
    """The same between *different* examples: what it is worth nothing."""
    residual_median: float | None
    """Of RMS(f(z) - z) / RMS(f(z)) at the end, over the examples where that is finite; None where it is in none."""
    residual_high: float | None
    """90th percentile."""
    shares: dict[LimitClass, Estimate]
    """Share of examples that end in a fixed point, a cycle, ..., with Wilson's interval."""
    failed: Estimate


@dataclass(frozen=True, repr=False)
class Observation:
    """What a monitor saw; print it for a table."""

    at: int
    """Training steps so far."""
    steps: int
    """Budget of every run, in steps of the model."""
    start: str
    """The other start, see `align_starts`."""
    readings: dict[str, Reading] = field(default_factory=dict)
    """By the name of the difficulty; empty where the probe itself failed."""
    error: str = ""
    """Why the probe failed."""
    evaluations: int = 0
    """Evaluations of `step`, times examples."""
    seconds: float = 0.0

    def scalars(self, prefix: str = "homeostat") -> dict[str, float]:
        """Numbers for a logger, all finite. What could not be measured is missing; `failed` never is.

        Example:
            >>> Observation(at=10, steps=32, start="swapped", error="no such file").scalars()
            {'homeostat/failed': 1.0, 'homeostat/seconds': 0.0}
        """
        if self.error:
            return {f"{prefix}/failed": 1.0, f"{prefix}/seconds": self.seconds}
        found: dict[str, float | None] = {}
        for name, reading in self.readings.items():
            head = prefix if len(self.readings) == 1 else f"{prefix}/{name}"
            if reading.alignment is not None:
                found[f"{head}/alignment"] = reading.alignment.value
                found[f"{head}/alignment_low"] = reading.alignment.low
                found[f"{head}/alignment_high"] = reading.alignment.high
            found[f"{head}/alignment_null"] = None if reading.null is None else reading.null.value
            found[f"{head}/residual_median"] = reading.residual_median
            found[f"{head}/residual_high"] = reading.residual_high
            found |= {f"{head}/limit/{kind.replace(' ', '_')}": reading.shares[kind].value for kind in LIMIT_CLASSES}
            found[f"{head}/failed"] = reading.failed.value
        found[f"{prefix}/seconds"] = self.seconds
        return {key: value for key, value in found.items() if value is not None and math.isfinite(value)}

    def __repr__(self) -> str:
        head = f"after {self.at} training steps: {self.steps} steps of the model, alignment from the start {self.start}"
        if self.error:
            return f"{head}\nnot measured: {self.error}"
        heads = ["examples", "n", "alignment", "null", "residual (median, 90 %)", *LIMIT_CLASSES, "failed"]
        lines = [self._line(name, reading) for name, reading in self.readings.items()]
        return "\n".join([head, *columns(heads, lines), "Shares in %."])

    @staticmethod
    def _line(name: str, reading: Reading) -> Sequence[str]:
        sizes = ["–" if x is None else f"{x:.1e}" for x in (reading.residual_median, reading.residual_high)]
        return [
            name,
            str(reading.failed.count),
            *("–" if x is None else number(x) for x in (reading.alignment, reading.null)),
            ", ".join(sizes),
            *(percent(reading.shares[kind]) for kind in LIMIT_CLASSES),
            percent(reading.failed),
        ]
