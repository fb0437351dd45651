"""A request that is not answered, with the status and the one line that its client is told."""

from typing import Literal

Outcome = Literal[
    "answered", "refused", "too large", "slow", "queue full", "timed out", "failed", "disconnected", "stopping"
]
"""How a request ended, as the metrics count it."""

OUTCOMES: dict[Outcome, int] = {
    "answered": 200,
    "refused": 422,
    "too large": 413,
    "slow": 408,
    "queue full": 503,
    "timed out": 504,
    "failed": 500,
    "disconnected": 499,
    "stopping": 503,
}
"""The HTTP status of each; 499 is never seen, since there is nobody left to see it."""


class Refusal(Exception):
    """Raised where a request cannot be answered.

    Example:
        >>> Refusal("too large", "2,000,000 bytes").status
        413
    """

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome: Outcome = outcome
        self.message = message

    @property
    def status(self) -> int:
        """The HTTP status."""
        return OUTCOMES[self.outcome]
