"""How much a service takes on: sizes, times and the length of its queue. What is beyond is refused, in one line."""

from dataclasses import dataclass

from homeostat.checks import plain_numbers
from homeostat.engine.stop import check_count, check_range


@dataclass(frozen=True)
class Limits:
    """What a service accepts. Like every option it refuses nonsense when it is made.

    Args:
        body: bytes of a request; more is refused (413).
        elements: numbers of one example, over all its parts; more is refused (413).
        examples: examples of one request; more is refused (413).
        queue: examples that wait for a slot, over all requests; a request that does not fit is refused (503).
        slots: examples that are iterated at the same time.
        seconds: from a request's arrival to its answer; later ones end with 504.
        body_seconds: until the whole body has arrived, and until the head has; then 408, or the connection is closed.
        connections: open at the same time; more are refused (503).

    Raises:
        ValueError: an impossible value.

    Example:
        >>> Limits(slots=8).slots
        8
        >>> Limits(seconds=0)
        Traceback (most recent call last):
        ValueError: seconds must be a number above 0, not 0
    """

    body: int = 1_000_000
    elements: int = 100_000
    examples: int = 64
    queue: int = 1024
    slots: int = 64
    seconds: float = 30.0
    body_seconds: float = 10.0
    connections: int = 512

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name in ("body", "elements", "examples", "queue", "slots", "connections"):
            check_count(name, getattr(self, name))
        for name in ("seconds", "body_seconds"):
            value = getattr(self, name)
            check_range(name, value, 0, "a number above 0")
            if value == 0:
                raise ValueError(f"{name} must be a number above 0, not {value!r}")
        if self.examples > self.queue:
            raise ValueError(
                f"examples must be at most queue, or no such request could wait: not {self.examples} > {self.queue}"
            )
