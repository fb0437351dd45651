"""Whether acceleration accelerates, and never loses badly where it cannot: evaluations, not seconds."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import homeostat as hs
from benchmarks import features, peers_torchdeq
from benchmarks.cells import Counter
from benchmarks.criteria import CRITERIA, Criterion
from benchmarks.maps import FAMILIES, LIMIT, RTOL, SHIFTS, RandomMap, random_map, shift, spectrum
from benchmarks.results import Figure, Target

_SYSTEMS = 5
_RELATIVE = Criterion("relative", RTOL)


def _evaluations(given: RandomMap, method: Any, limit: int, criterion: Criterion = _RELATIVE) -> tuple[int, bool]:
    """Evaluations of a solve of ours, counted outside of it, and whether it converged."""
    stop = criterion.ours(given.state[0].numel(), limit)
    counted = Counter(given.step)
    with torch.no_grad():
        hs.solve(counted, given.state, given.source, method=method, stop=hs.Stop(max_steps=1))
        counted.reset()
        found = hs.solve(counted, given.state, given.source, method=method, stop=stop)
    return counted.rows, bool(found.converged.all())


def _torchdeq_evaluations(given: RandomMap, limit: int, criterion: Criterion = _RELATIVE) -> tuple[int, bool]:
    """The same from torchdeq's Anderson, which takes two evaluations at least."""
    counted = Counter(given.step)
    run = peers_torchdeq.solver("Anderson", limit, **criterion.theirs)
    try:
        _, statistics = run(counted, given.state, given.source)
    except (RuntimeError, IndexError):  # a singular system; or no step beyond the first two
        return counted.calls, False
    return counted.calls, bool((statistics[criterion.lowest] < criterion.tolerance).all())


def _middle(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


def linear(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """Evaluations to 1e-6 on linear maps; the worst of a few systems."""
    del share
    if device != "cpu":  # evaluations are the same anywhere
        return
    for criterion in CRITERIA:
        for rate, limit in ((0.9, 40), (0.99, 130)):
            yield _on_spectrum(rate, limit, criterion)


def _on_spectrum(rate: float, limit: int, criterion: Criterion) -> Figure:
    name = f"Anderson (default), linear, spectrum on [0, {rate}], to {criterion}: worst of {_SYSTEMS} systems"
    systems = [spectrum(rate, seed) for seed in range(_SYSTEMS)]
    peer = ""
    if peers_torchdeq.available():
        theirs = [_torchdeq_evaluations(system, 2500, criterion) for system in systems]
        peer = f"{max(n for n, _ in theirs):,}" + ("" if all(ok for _, ok in theirs) else " (not converged)")
    plain = [_evaluations(system, hs.Picard(), 5000, criterion)[0] for system in systems]
    rest: dict[str, Any] = {"unit": "evaluations", "target": Target(limit), "peer": peer}
    if why := features.why_not("Anderson"):
        return Figure.absent("acceleration", name, why, details={"picard": plain}, **rest)
    ours = [_evaluations(system, hs.Anderson(), 5000, criterion) for system in systems]
    worst = max(float(n) if ok else math.inf for n, ok in ours)
    counts = [n for n, _ in ours]
    details = {"anderson": counts, "picard": plain, "seeds": list(range(_SYSTEMS))}
    note = f"median {_middle(counts)}; Picard {max(plain)}"
    return Figure("acceleration", name, worst, note=note, details=details, **rest)


@dataclass(frozen=True)
class Race:
    """Acceleration against plain iteration on one map."""

    name: str
    plain: int
    fast: int
    converged: bool

    @property
    def bounded(self) -> bool:
        return self.converged and self.fast <= 1.5 * self.plain + 5

    @property
    def near(self) -> bool:
        return self.converged and self.fast <= self.plain + 5

    def __str__(self) -> str:
        return f"{self.name}: {self.fast if self.converged else 'not converged'} against {self.plain}"


def choose(count: int) -> tuple[list[tuple[RandomMap, int]], int]:
    """`count` maps of each family that plain iteration solves, with its steps; and how many were left out."""
    chosen, left_out = [], 0
    for family in FAMILIES:
        seed = found = 0
        while found < count:
            given = random_map(family, seed)
            steps, converged = _evaluations(given, hs.Picard(), LIMIT)
            seed += 1
            if converged:
                chosen.append((given, steps))
                found += 1
            else:
                left_out += 1
    return chosen, left_out


def _race(maps: list[tuple[RandomMap, int]], fast: Callable[[RandomMap, int], tuple[int, bool]]) -> list[Race]:
    races = []
    for given, plain in maps:
        # A solve that is beyond the bound has lost; how far it would go on is not asked.
        evaluations, converged = fast(given, 2 * plain + 20)
        races.append(Race(given.name, plain, evaluations, converged))
    return races


def safeguard(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """Anderson against plain iteration on 200 random maps and on shifts."""
    if device != "cpu":
        return
    maps, left_out = choose(max(5, round(50 * share)))
    shifts = [shift(length) for length in (SHIFTS if share == 1 else SHIFTS[::16])]
    maps += [(given, _evaluations(given, hs.Picard(), LIMIT)[0]) for given in shifts]
    what = f"{len(maps) - len(shifts)} random maps and {len(shifts)} shifts"
    worst_name = f"Anderson beyond 1.5 Picard + 5, on {what}"
    near_name = f"Anderson within Picard + 5, on {what}"
    peers = ["", ""]
    theirs: list[Race] = []
    if peers_torchdeq.available():
        theirs = _race(maps, _torchdeq_evaluations)
        peers = [
            f"{sum(not race.bounded for race in theirs)} maps",
            f"{100 * sum(race.near for race in theirs) / len(theirs):.1f} %",
        ]
    bounded: dict[str, Any] = {"unit": "maps", "target": Target(0), "peer": peers[0]}
    near: dict[str, Any] = {"unit": "%", "target": Target(95, "at least"), "peer": peers[1]}
    if why := features.why_not("Anderson"):
        yield Figure.absent("safeguard", worst_name, why, **bounded)
        yield Figure.absent("safeguard", near_name, why, **near)
        return
    races = _race(maps, lambda given, limit: _evaluations(given, hs.Anderson(), limit))
    races.sort(key=lambda race: race.fast - race.plain if race.converged else 10**9, reverse=True)
    by_ratio = sorted(races, key=lambda race: race.fast / race.plain if race.converged else 10**9, reverse=True)
    details = {
        "left_out": left_out,
        "worst_by_difference": [str(race) for race in races[:10]],
        "worst_by_ratio": [str(race) for race in by_ratio[:10]],
        "saved": 1 - sum(race.fast for race in races) / sum(race.plain for race in races),
        "races": [[race.name, race.plain, race.fast, race.converged] for race in races],
        "torchdeq": [[race.name, race.plain, race.fast, race.converged] for race in theirs],
    }
    lost = [race for race in races if not race.bounded]
    note = f"worst: {races[0]}; {by_ratio[0]}"
    yield Figure("safeguard", worst_name, float(len(lost)), note=note, details=details, **bounded)
    share_near = 100 * sum(race.near for race in races) / len(races)
    random_only = [race for race in races if not race.name.startswith("shift")]
    note = f"random maps alone {100 * sum(race.near for race in random_only) / len(random_only):.1f} %"
    yield Figure("safeguard", near_name, share_near, note=note, **near)
