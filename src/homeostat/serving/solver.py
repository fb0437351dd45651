"""The one thread that solves: examples from the queue go through a batch that stays full, and a crash costs only those
that caused it."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from homeostat.serving.queue import Job, Queue, Ticket

_LOG = logging.getLogger("homeostat.serving")


class Found(Protocol):
    """What a stream yields for each example as it finishes."""

    index: int
    outputs: Any
    steps: int
    residual: float
    status: Any
    confidence: Any
    abstained: bool


OpenStream = Callable[[Iterable[Any]], Iterator[Any]]
"""From the inputs of one example after the other, with `PENDING` where there is none just now, to a stream of `Found`
that has `rounds`, `occupancy`, `row_evaluations` and `drop`."""


class Failed(Exception):
    """What a question ends with on which the model raised an exception."""


@dataclass
class Account:
    """What the solver has done so far, for the metrics."""

    rounds: int = 0
    filled: float = 0.0
    """Slots that were filled in a round, summed over rounds."""
    row_evaluations: int = 0
    finished: int = 0
    dropped: int = 0
    """Given up in the batch: their client had gone, or their time was over."""
    failed: int = 0
    restarts: int = 0
    """Streams that a model ended with an exception."""

    def after(self, stream: Any) -> "Account":
        """With what a stream has done."""
        rounds = getattr(stream, "rounds", 0)
        if not rounds:
            return replace(self)
        return replace(
            self,
            rounds=self.rounds + rounds,
            filled=self.filled + rounds * stream.occupancy,
            row_evaluations=self.row_evaluations + stream.row_evaluations,
        )


class Solver:
    """Runs streams over a queue until that is closed and empty.

    When the model raises an exception, each example that was in the batch is run once more by itself, so that those
    which did not cause it get their answers, and those which did get `Failed`; then a new stream begins.

    Args:
        open_stream: makes a stream.
        queue: where the examples come from.
        pending: what the stream is handed while there is nothing to read but something in the batch.
        on_found: told each job that somebody waited for, with what was found.
    """

    def __init__(
        self, open_stream: OpenStream, queue: Queue, pending: object, on_found: Callable[[Job, Any], None]
    ) -> None:
        self._open, self._queue, self._pending, self._on_found = open_stream, queue, pending, on_found
        self._past, self._lock = Account(), threading.Lock()
        self._running = _Running()
        self._thread = threading.Thread(target=self._run, name="solver", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether examples are still being solved."""
        return self._thread.is_alive()

    @property
    def in_flight(self) -> int:
        """Examples that were taken from the queue, are not finished, and that somebody waits for."""
        return len(self._running.held)

    def account(self) -> Account:
        """What has been done so far, the running stream included."""
        with self._lock:
            return self._past.after(self._running.stream)

    def forget(self, ticket: Ticket) -> None:
        """Nobody waits for a ticket any more: its examples leave the queue and the batch. For any thread."""
        ticket.abandon()
        self._queue.withdraw(ticket)
        running = self._running
        for index in running.of(ticket):
            if running.take(index) is not None:
                running.drop(index)
                self._count("dropped")

    def stop(self, seconds: float) -> bool:
        """Let what is in flight finish, for so many seconds; returns whether it did."""
        self._queue.close()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not (self._queue.closed and len(self._queue) == 0):
            for job in self._serve():
                self._alone(job)

    def _serve(self) -> list[Job]:
        """One stream, until the queue is closed or the model raises; returns the jobs that were lost by that."""
        running = self._running = _Running()
        try:
            running.stream = self._open(self._feed(running))
            for found in running.stream:
                job = running.take(found.index)
                if job is not None:
                    self._settle(job, found)
        except BaseException as error:  # SystemExit too: whatever a model does, the service goes on
            _LOG.exception("the model raised %s with %d examples in flight", type(error).__name__, len(running.held))
            self._count("restarts")
        self._close()
        return running.take_all()

    def _feed(self, running: "_Running") -> Iterator[Any]:
        """What the stream reads."""
        index = 0
        while True:
            job = self._queue.take(wait=not running.held)
            if job is not None:
                running.put(index, job)
                index += 1
                yield job.inputs
                # A ticket that was given up just before its job stood in the batch.
                if job.ticket.abandoned:
                    self.forget(job.ticket)
            elif running.held:
                yield self._pending
            else:
                return

    def _alone(self, job: Job) -> None:
        """A job whose stream crashed, in a stream of its own."""
        if job.ticket.abandoned:
            self._count("dropped")
            return
        running = self._running = _Running()
        running.put(0, job)
        found: Any = None
        try:
            running.stream = self._open(iter([job.inputs]))
            found = next(running.stream, None)  # none where it was given up meanwhile
        except BaseException as error:
            _LOG.error("the model raised %s: %s on one example by itself", type(error).__name__, error)
            found = Failed(type(error).__name__)
        self._close()
        if running.take(0) is not None:
            self._settle(job, found)

    def _settle(self, job: Job, found: Any) -> None:
        if job.ticket.abandoned:
            self._count("dropped")
            return
        self._count("failed" if isinstance(found, Failed) else "finished")
        self._on_found(job, found)
        job.ticket.settle(job.place, found)

    def _count(self, name: str) -> None:
        with self._lock:
            setattr(self._past, name, getattr(self._past, name) + 1)

    def _close(self) -> None:
        """Add what the stream did to the account, and let go of it."""
        running = self._running
        with self._lock:
            stream, running.stream = running.stream, None
            self._past = self._past.after(stream)
        close = getattr(stream, "close", None)
        if close is not None:
            close()


@dataclass
class _Running:
    """A stream, with the jobs that it was given by their places in its input. Two threads take them away."""

    held: dict[int, Job] = field(default_factory=dict)
    stream: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, index: int, job: Job) -> None:
        """A job was handed over."""
        with self.lock:
            self.held[index] = job

    def take(self, index: int) -> Job | None:
        """A job has ended; None where it had already."""
        with self.lock:
            return self.held.pop(index, None)

    def take_all(self) -> list[Job]:
        """All that have not ended."""
        with self.lock:
            jobs, self.held = list(self.held.values()), {}
        return jobs

    def of(self, ticket: Ticket) -> list[int]:
        """The places of a ticket's jobs."""
        with self.lock:
            return [index for index, job in self.held.items() if job.ticket is ticket]

    def drop(self, index: int) -> None:
        """Let the stream let go of a job, where it can."""
        drop = getattr(self.stream, "drop", None)
        if drop is not None:
            drop(index)
