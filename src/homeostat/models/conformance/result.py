"""What `check_model` found, as values."""

import textwrap
from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "not tested"]


@dataclass(frozen=True)
class Check:
    """One thing that the contract asks for."""

    name: str
    status: Status
    message: str
    """What is wrong in which function and leaf, and what would be right; what was seen; or why it was not tested."""
    difference: float | None = None
    """Largest difference that was seen, relative to the root mean square of the leaf; of whole numbers the share that
    differs. None where nothing is compared."""
    tolerance: float | None = None


@dataclass(frozen=True, repr=False)
class Conformance:
    """Checks passed, failed and not tested; print it for a table."""

    model: str
    rows: int
    steps: int
    """Steps of the longest run."""
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Nothing is wrong, as far as it could be tested."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")

    def __repr__(self) -> str:
        counts = [f"{sum(c.status == s for c in self.checks)} {s}" for s in ("passed", "failed", "not tested")]
        lines = [f"{self.model}: {', '.join(counts)} ({self.rows} examples, {self.steps} steps)"]
        width = max(len(check.name) for check in self.checks)
        for check in self.checks:
            message = check.message
            if check.difference is not None and check.status == "passed":
                message += f" (largest difference {check.difference:.1e}, tolerance {check.tolerance:.0e})"
            front = f"  {check.status:10}  {check.name:{width}}  "
            lines += textwrap.wrap(message, 120, initial_indent=front, subsequent_indent=" " * len(front)) or [front]
        return "\n".join(lines)
