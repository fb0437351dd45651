"""Examples on their way to the solver: a bounded queue between the requests and the one thread that solves."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from homeostat.serving.refusal import Refusal
from homeostat.serving.subject import Question


@dataclass(eq=False)
class Ticket:
    """One request: its questions, and what was found for each so far.

    Attributes:
        questions: in the order of the request.
        done: called, from the thread that solves, when the last one has been settled.
        found: what the stream gave, or the exception that the model raised; None while open.
        abandoned: nobody waits any more: what is found is dropped.
    """

    questions: Sequence[Question]
    done: Callable[[], None]
    found: list[Any] = field(default_factory=list)
    abandoned: bool = False
    open: int = 0

    def __post_init__(self) -> None:
        self.open = len(self.questions)
        self.found = [None] * self.open

    def settle(self, place: int, found: Any) -> None:
        """Keep what was found for one question."""
        self.found[place] = found
        self.open -= 1
        if self.open == 0 and not self.abandoned:
            self.done()

    def abandon(self) -> None:
        """Nobody waits any more; let go of what there is."""
        self.abandoned = True
        self.questions, self.found = (), [None] * len(self.found)


@dataclass(frozen=True, eq=False)
class Job:
    """One question of a ticket."""

    ticket: Ticket
    place: int
    inputs: Any


class Queue:
    """First in, first out; requests are admitted whole or not at all.

    Args:
        most: examples that may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Nothing is admitted any more."""
        return self._closed

    def admit(self, ticket: Ticket) -> None:
        """Put all questions of a ticket into the queue.

        Raises:
            Refusal: there is no room for all of them, or the service is stopping.
        """
        jobs = [Job(ticket, place, question.inputs) for place, question in enumerate(ticket.questions)]
        with self._changed:
            if self._closed:
                raise Refusal("stopping", "the service is stopping")
            if len(self._waiting) + len(jobs) > self._most:
                raise Refusal("queue full", f"{len(self._waiting)} examples are waiting already; try again later")
            self._waiting.extend(jobs)
            self._changed.notify()

    def take(self, *, wait: bool) -> Job | None:
        """The next job that somebody waits for; None where there is none now, or, when waiting, none will come."""
        with self._changed:
            while True:
                while self._waiting:
                    job = self._waiting.popleft()
                    if not job.ticket.abandoned:
                        return job
                if not wait or self._closed:
                    return None
                self._changed.wait()

    def withdraw(self, ticket: Ticket) -> int:
        """Take what is left of a ticket out of the queue, so that it frees its room; returns how many these were."""
        with self._changed:
            before = len(self._waiting)
            self._waiting = deque(job for job in self._waiting if job.ticket is not ticket)
            return before - len(self._waiting)

    def close(self) -> None:
        """Admit nothing more; what waits is still taken."""
        with self._changed:
            self._closed = True
            self._changed.notify()
