"""The one thread that solves: examples from the queue go through a batch that stays full, and a crash costs only those
that caused it."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from homeostat.serving.queue import Job, Queue

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
that has `rounds` and `row_evaluations`."""


class Failed(Exception):
    """What a question ends with on which the model raised an exception."""


@dataclass
class Account:
    """What the solver has done so far, for the metrics."""

    rounds: int = 0
    row_evaluations: int = 0
    finished: int = 0
    dropped: int = 0
    """Finished after their client had gone or their time was over."""
    failed: int = 0
    restarts: int = 0
    """Streams that a model ended with an exception."""


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
        self._past = Account()
        self._stream: Any = None
        self._held: dict[int, Job] = {}
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
        """Examples that were taken from the queue and are not finished."""
        return len(self._held)

    def account(self) -> Account:
        """What has been done so far, the running stream included."""
        past, stream = self._past, self._stream
        return Account(
            rounds=past.rounds + getattr(stream, "rounds", 0),
            row_evaluations=past.row_evaluations + getattr(stream, "row_evaluations", 0),
            finished=past.finished,
            dropped=past.dropped,
            failed=past.failed,
            restarts=past.restarts,
        )

    def stop(self, seconds: float) -> bool:
        """Let what is in flight finish, for so many seconds; returns whether it did."""
        self._queue.close()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not (self._queue.closed and len(self._queue) == 0):
            suspects = self._serve()
            for job in suspects:
                self._alone(job)

    def _serve(self) -> list[Job]:
        """One stream, until the queue is closed or the model raises; returns the jobs that were lost by that."""
        try:
            self._stream = stream = self._open(self._feed())
            for found in stream:
                self._settle(self._held.pop(found.index), found)
        except BaseException as error:  # SystemExit too: whatever a model does, the service goes on
            _LOG.exception("the model raised %s with %d examples in flight", type(error).__name__, len(self._held))
            self._past.restarts += 1
        finally:
            self._close()
        lost, self._held = list(self._held.values()), {}
        return lost

    def _feed(self) -> Iterator[Any]:
        """What the stream reads."""
        index = 0
        while True:
            job = self._queue.take(wait=not self._held)
            if job is not None:
                self._held[index] = job
                index += 1
                yield job.inputs
            elif self._held:
                yield self._pending
            else:
                return

    def _alone(self, job: Job) -> None:
        """A job whose stream crashed, in a stream of its own."""
        if job.ticket.abandoned:
            self._past.dropped += 1
            return
        try:
            self._stream = stream = self._open(iter([job.inputs]))
            (found,) = stream
        except BaseException as error:
            _LOG.error("the model raised %s: %s on one example by itself", type(error).__name__, error)
            found = Failed(type(error).__name__)
        finally:
            self._close()
        self._settle(job, found)

    def _settle(self, job: Job, found: Any) -> None:
        if job.ticket.abandoned:
            self._past.dropped += 1
            return
        if isinstance(found, Failed):
            self._past.failed += 1
        else:
            self._past.finished += 1
        self._on_found(job, found)
        job.ticket.settle(job.place, found)

    def _close(self) -> None:
        """Add what the stream did to the account, and let go of it."""
        stream, self._stream = self._stream, None
        self._past.rounds += getattr(stream, "rounds", 0)
        self._past.row_evaluations += getattr(stream, "row_evaluations", 0)
        close = getattr(stream, "close", None)
        if close is not None:
            close()


def waited(job: Job) -> float:
    """Seconds since a job was admitted."""
    return time.perf_counter() - job.since
