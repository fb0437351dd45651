"""Ratios of times, measured in pairs.

`torch.utils.benchmark` times one statement after another, so that a machine that slows down between two of them puts
its mood into the ratio. Here every candidate stands between two runs of the reference, `R a R b R c R`, and is divided
by the mean of the two: a drift that is linear over three runs cancels. The spread that is reported is that of the
single ratios.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Paired:
    """One candidate against the reference: seconds of each run, and their ratios, pair by pair."""

    seconds: tuple[float, ...]
    reference_seconds: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(mine / other for mine, other in zip(self.seconds, self.reference_seconds, strict=True))


@dataclass(frozen=True)
class Spread:
    """The median of some figures with their 10th and 90th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: tuple[float, ...]) -> "Spread":
        """Percentiles by linear interpolation; with few values these are close to the extremes."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return cls(statistics.median(values), tenths[0], tenths[-1])


@contextmanager
def quiet_collector() -> Iterator[None]:
    """No garbage collection while a clock is running; what has gathered goes before."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def clock(run: Run, device: str) -> float:
    """Seconds of one run. On a GPU the queue is drained before the clock starts and before it stops."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


Clock = Callable[[], float]


def interleaved(
    reference: Clock, candidates: Mapping[str, Clock], *, seconds: float, least: int, most: int
) -> dict[str, Paired]:
    """Read every candidate's clock between two readings of the reference's, round after round.

    Args:
        reference: runs what is divided by, and says how many seconds it took.
        candidates: the same for what is timed, by name.
        seconds: rounds are begun until this much time is spent,
        least, most: but at least and at most so many.
    """
    if not candidates:
        return {}
    mine: dict[str, list[float]] = {name: [] for name in candidates}
    beside: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    rounds = 0
    with quiet_collector():
        while rounds < least or (rounds < most and time.perf_counter() < end):
            before = reference()
            for name, candidate in candidates.items():
                mine[name].append(candidate())
                after = reference()
                beside[name].append((before + after) / 2)
                before = after
            rounds += 1
    return {name: Paired(tuple(mine[name]), tuple(beside[name])) for name in candidates}


def paired(
    reference: Run,
    candidates: Mapping[str, Run],
    *,
    device: str = "cpu",
    seconds: float = 10.0,
    least: int = 5,
    most: int = 60,
    warm_up: int = 2,
) -> dict[str, Paired]:
    """Time runs of this process against a reference, in pairs.

    Args:
        reference, candidates: what is run.
        device: where the runs compute.
        seconds, least, most: how long, see `interleaved`.
        warm_up: runs of everything before the first that counts.

    Example:
        >>> found = paired(lambda: sum(range(1000)), {"twice": lambda: sum(range(2000))}, seconds=0.1)
        >>> 1 < Spread.of(found["twice"].ratios).median < 4
        True
    """
    for run in (reference, *candidates.values()):
        for _ in range(warm_up):
            run()
    clocks = {name: partial(clock, run, device) for name, run in candidates.items()}
    return interleaved(partial(clock, reference, device), clocks, seconds=seconds, least=least, most=most)
