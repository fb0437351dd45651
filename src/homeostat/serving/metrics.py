"""Metrics in Prometheus form."""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from homeostat.serving.queue import Job, Queue
from homeostat.serving.refusal import OUTCOMES, Outcome
from homeostat.serving.solver import Failed, Solver

_STEPS = tuple(2**power for power in range(17))
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What a service counts. Names begin with `homeostat_`; times are in seconds.

    Args:
        slots: examples that are iterated at the same time.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._registry = CollectorRegistry()
        place = {"registry": self._registry, "namespace": "homeostat"}
        self._requests = Counter("requests", "Requests to /v1/predict, by how they ended.", ["outcome"], **place)
        for outcome in OUTCOMES:  # so that each is there, with 0, before it happens
            self._requests.labels(outcome)
        self._status = Counter("answers", "Examples answered, by how their iteration ended.", ["status"], **place)
        self._abstained = Counter("abstentions", "Examples on whose answer the policy would not stake.", **place)
        self._steps = Histogram("steps", "Steps of an answered example.", buckets=_STEPS, **place)
        self._latency = Histogram("latency_seconds", "From a request's arrival to its end.", buckets=_SECONDS, **place)

    def request(self, outcome: Outcome, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(outcome).inc()
        self._latency.observe(seconds)

    def found(self, job: Job, found: Any) -> None:
        """An example has been settled."""
        if isinstance(found, Failed):
            return
        self._status.labels(str(found.status)).inc()
        self._steps.observe(found.steps)
        if found.abstained:
            self._abstained.inc()

    def watch(self, queue: Queue, solver: Solver) -> None:
        """Read what these know whenever somebody asks."""
        self._registry.register(_Live(lambda: _live(queue, solver, self._slots)))

    def text(self) -> tuple[bytes, str]:
        """Everything, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Live:
    """A collector whose figures are made when they are asked for."""

    def __init__(self, collect: Callable[[], Iterable[Any]]) -> None:
        self.collect = collect


def _live(queue: Queue, solver: Solver, slots: int) -> Iterable[Any]:
    account = solver.account()
    gauges = {
        "queue_depth": (len(queue), "Examples that wait for a slot."),
        "in_flight": (solver.in_flight, "Examples that are being solved."),
        "slots": (slots, "Examples that can be iterated at the same time."),
        "occupancy": (
            account.filled / account.rounds if account.rounds else 0.0,
            "Mean share of the slots that was filled in a round, since the start.",
        ),
        "up": (int(solver.alive), "Whether examples are being solved."),
    }
    counters = {
        "rounds": (account.rounds, "Calls of the model's step."),
        "row_evaluations": (account.row_evaluations, "Evaluations of the step, over examples: the true cost."),
        "examples_finished": (account.finished, "Examples that were answered."),
        "examples_dropped": (account.dropped, "Examples given up in the batch: timed out, or the client had gone."),
        "examples_failed": (account.failed, "Examples on which the model raised an exception."),
        "restarts": (account.restarts, "Streams that ended because the model raised an exception."),
    }
    for name, (value, words) in gauges.items():
        yield GaugeMetricFamily(f"homeostat_{name}", words, value=value)
    for name, (value, words) in counters.items():
        yield CounterMetricFamily(f"homeostat_{name}", words, value=value)
