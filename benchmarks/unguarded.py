"""What the safeguard costs where nothing had to be guarded: evaluations with it and of the same extrapolation alone.

How it is counted, written down before the judged maps were run:

* a case is a map, a memory and a tolerance on the relative residual that the unguarded run reaches within `LIMIT`
  evaluations; its count is the first evaluation with such a residual;
* the unguarded run falls monotonically where each residual up to that one is below the residual before; in the wider
  sense where none is more than 10 % above the lowest so far;
* the figure is the worst ratio of counts, guarded to unguarded, over the monotone cases. A handful of evaluations makes
  a ratio coarse: the note has the same with two evaluations allowed for the decision, and the numbers of cases.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

import homeostat as hs
from benchmarks import features
from benchmarks.acceleration import choose
from benchmarks.maps import RandomMap, slow_conv, slow_tanh, spectrum
from benchmarks.results import Figure, Target
from homeostat.engine.forward.anderson import TruncatedGramSchmidt
from homeostat.engine.forward.broyden import BroydenUpdates

LIMIT = 1000
TOLERANCES = (1e-3, 1e-6, 1e-9)
MEMORIES = (6, 10)
RATES = (0.9, 0.97, 0.99, 0.997, 0.999, 0.9999)
_MONOTONE = 1.1
_NOISE = 4 * torch.finfo(torch.float64).eps


def unguarded(given: RandomMap, method: hs.Anderson | hs.Broyden, limit: int, tolerance: float) -> list[float]:
    """Relative residuals of the method without a safeguard: from the second evaluation on, every state is proposed."""
    with torch.no_grad():
        state, history, former, former_value, course = given.state, None, None, None, []
        for step in range(1, limit + 1):
            after = given.step(state, given.source)
            value = after.flatten(1)
            residual = value - state.flatten(1)
            course.append(float(residual.norm() / value.norm()))
            if not course[-1] > tolerance:
                break
            proposal = value
            if former is not None and former_value is not None:
                history = history or _history(method, residual)
                proposal = history.propose(step, residual, former, value, former_value)
            # A history may write over the former residual.
            state, former, former_value = proposal.view_as(after), residual.clone(), value
    return course


def _history(method: hs.Anderson | hs.Broyden, like: torch.Tensor) -> TruncatedGramSchmidt | BroydenUpdates:
    kind = TruncatedGramSchmidt if isinstance(method, hs.Anderson) else BroydenUpdates
    return kind(like, method.memory, noise=_NOISE, functional=False)


def guarded(given: RandomMap, method: hs.Anderson | hs.Broyden, limit: int) -> list[float]:
    """The same of our solve."""
    stop = hs.Stop(0.0, 0.0, limit)
    with torch.no_grad():
        found = hs.solve(given.step, given.state, given.source, method=method, stop=stop, trace=True)
    assert found.trace is not None
    return found.trace[0].tolist()


def reached(course: list[float], tolerance: float) -> int | None:
    """Evaluations up to the first residual within a tolerance."""
    return next((i + 1 for i, residual in enumerate(course) if residual <= tolerance), None)


def falls(course: list[float], slack: float = 1.0) -> bool:
    """Whether each residual is below the one before, or with a slack above 1, below so many times the lowest so far."""
    if slack == 1:
        return all(b < a for a, b in pairwise(course))
    return all(b <= slack * min(course[: i + 1]) for i, b in enumerate(course[1:]))


@dataclass(frozen=True)
class Case:
    """One map, memory and tolerance."""

    name: str
    memory: int
    tolerance: float
    alone: int
    """Evaluations without a safeguard."""
    count: float
    """With it; infinite where twice as many and 20 more are not enough."""
    strict: bool
    wide: bool

    @property
    def ratio(self) -> float:
        return self.count / self.alone

    def __str__(self) -> str:
        return f"{self.name}, memory {self.memory}, to {self.tolerance:g}: {self.count:g} against {self.alone}"


def cases(given: RandomMap, method: hs.Anderson | hs.Broyden) -> list[Case]:
    """The cases of a map with a method."""
    course = unguarded(given, method, LIMIT, min(TOLERANCES))
    alone = {tolerance: count for tolerance in TOLERANCES if (count := reached(course, tolerance)) is not None}
    if not alone:
        return []
    ours = guarded(given, method, 2 * max(alone.values()) + 20)
    found = []
    for tolerance, count in alone.items():
        part = course[:count]
        mine = reached(ours, tolerance) or float("inf")
        found.append(Case(given.name, method.memory, tolerance, count, mine, falls(part), falls(part, _MONOTONE)))
    return found


def families(seeds: range, per_family: int) -> dict[str, list[RandomMap]]:
    """What is judged: slow maps of all rates with some seeds, and the random maps that plain iteration solves."""
    return {
        "random maps": [given for given, _ in choose(per_family)[0]],
        "spectra": [spectrum(rate, seed) for rate in RATES for seed in seeds],
        "slow cells": [make(rate, seed) for make in (slow_tanh, slow_conv) for rate in RATES for seed in seeds],
    }


def measure(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """Anderson with its safeguard against the same extrapolation without."""
    if device != "cpu":
        return
    for family, maps in families(range(9000, 9005 if share == 1 else 9001), max(3, round(50 * share))).items():
        name = f"Anderson, evaluations of the unguarded extrapolation where that falls monotonically: {family}, worst"
        rest: dict[str, Any] = {"unit": "x", "target": Target(1.2)}
        if why := features.why_not("Anderson"):
            yield Figure.absent("unguarded", name, why, **rest)
            continue
        found = [case for given in maps for memory in MEMORIES for case in cases(given, hs.Anderson(memory=memory))]
        yield summary(name, found, **rest)


def summary(name: str, found: list[Case], **rest: Any) -> Figure:
    """The figure of some cases."""
    strict = sorted((case for case in found if case.strict), key=lambda case: case.ratio, reverse=True)
    wide = sorted((case for case in found if case.wide), key=lambda case: case.ratio, reverse=True)
    beyond = [sum(case.ratio > 1.2 for case in part) for part in (strict, wide)]
    allowed = max((case.count - 2) / case.alone for case in strict)
    note = (
        f"{len(strict)} of {len(found)} cases are monotone, {beyond[0]} of them beyond 1.2, median "
        f"{strict[len(strict) // 2].ratio:.2f}; less 2 evaluations the worst is {allowed:.2f}; within 10 % monotone "
        f"{len(wide)}, {beyond[1]} beyond, worst {wide[0].ratio:.2f}; worst: {strict[0]}"
    )
    details = {"cases": [[str(case), case.ratio, case.strict, case.wide] for case in found]}
    return Figure("unguarded", name, strict[0].ratio, note=note, details=details, **rest)
