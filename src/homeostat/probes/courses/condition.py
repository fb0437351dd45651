"""A condition on a signal: what a stopping rule is made of."""

from dataclasses import dataclass
from typing import Any

from homeostat.probes.courses.signals import SIGNALS, Signal


@dataclass(frozen=True)
class Condition:
    """One signal on the right side of a threshold.

    Example:
        >>> Condition("residual", 1e-3), Condition("stable", 8)
        (residual <= 0.001, stable >= 8)
    """

    signal: Signal
    threshold: float

    def holds(self, values: Any) -> Any:
        """Elementwise, for tensors and arrays of the signal; NaN never holds."""
        return values >= self.threshold if SIGNALS[self.signal].larger else values <= self.threshold

    def __repr__(self) -> str:
        return f"{self.signal} {'>=' if SIGNALS[self.signal].larger else '<='} {self.threshold:.6g}"
