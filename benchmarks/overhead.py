"""What an evaluation costs more than in a bare loop, where the state never settles and the stopping test is on.

Every candidate is run once with a counter around the map before it is timed: it must take all its evaluations, in all
rows, to the end (`MAX_STEPS`), or there is no figure. Times are per evaluation that was really made, so that a method
that takes one more does not look dearer, or cheaper, than it is. What accelerates is measured on slow maps too, and the
targets hold for both.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import homeostat as hs
from benchmarks import features, peers_torchdeq
from benchmarks.cells import CELLS, CHAOTIC, SLOW_CELLS, Cell, Counter, bare_loop
from benchmarks.results import Figure, Target
from benchmarks.timing import Paired, Spread, paired

_RTOL = 1e-6  # within the reach of float32, so that it is taken as it stands
_BROYDEN = 30  # memory

# Broyden's method can solve even a chaotic map when it is given time (torchdeq's does, within 200 evaluations, where
# it keeps every update; with the oldest overwritten it ends in NaN instead). In 40 evaluations neither arrives.
_BROYDEN_EVALUATIONS = 40

# Seconds of measurement for each cell: the costly ones need longer for a handful of pairs.
_SECONDS = {"MLP": 10.0, "two-layer MLP": 6.0, "conv": 35.0, "transformer": 15.0}


@dataclass(frozen=True)
class Line:
    """One method with its targets by cell; `memory` is what torchdeq's counterpart gets, where it has one."""

    label: str
    method: Any
    targets: dict[str, float]
    compiled: bool = False
    peer: bool = False
    memory: int | None = None
    only: str = ""


_LINES: dict[str, list[Line]] = {
    "Picard": [
        Line("Picard", hs.Picard(), {"MLP": 1.25, "conv": 1.05}, peer=True),
        Line("Picard, compiled", hs.Picard(), {"MLP": 0.9, "conv": 0.8}, compiled=True),
    ],
    "Anderson": [
        Line("Anderson (memory 6)", hs.Anderson(memory=6), {"MLP": 2.4, "conv": 1.3}, peer=True, memory=6),
        Line("Anderson (default)", hs.Anderson(), {}),
        Line("Anderson (memory 6), compiled", hs.Anderson(memory=6), {}, compiled=True, only="MLP"),
    ],
    "Broyden": [
        Line("Broyden", hs.Broyden(memory=_BROYDEN), {"MLP": 4.0, "conv": 2.0}, peer=True, memory=_BROYDEN),
    ],
}


@dataclass(frozen=True)
class Candidate:
    """A solve that can be timed, and what is known about it."""

    run: Callable[[], Any]
    evaluations: float
    details: dict[str, Any]


def _ours(family: str, line: Line, cell: Cell, evaluations: int) -> Candidate | str:
    """A solve of ours, or why it cannot be measured."""
    why = features.why_not(family) or (features.why_not_compiled() if line.compiled else "")
    if why:
        return why
    options: dict[str, Any] = {"compile": True} if line.compiled else {}
    stop = hs.Stop(rtol=_RTOL, max_steps=evaluations)

    def run(step: Callable[[Tensor, Tensor], Tensor] = cell.step) -> hs.Solution:
        with torch.no_grad():
            return hs.solve(step, cell.state, cell.context, method=line.method, stop=stop, **options)

    counted = Counter(cell.step)
    if not line.compiled:
        run(counted)
        counted.reset()
    solution = run(cell.step if line.compiled else counted)  # a counter would be compiled away
    early = solution.status != hs.Status.MAX_STEPS
    if bool(early.any()):
        kinds = {hs.Status(int(s)).name for s in solution.status[early].unique()}
        return f"{int(early.sum())} rows ended early ({', '.join(sorted(kinds))})"
    made = solution.row_evaluations / len(cell.state)
    if not line.compiled and counted.calls != made:
        return f"row_evaluations says {made} evaluations, the counter {counted.calls}"
    return Candidate(run, made, {"evaluations": made, "residual": float(solution.residual.median())})


def _torchdeq(family: str, memory: int | None, cell: Cell, evaluations: int) -> Candidate | str:
    if not peers_torchdeq.available():
        return peers_torchdeq.MISSING
    counted = Counter(cell.step)
    state, _ = peers_torchdeq.overhead_run(family, replace(cell, step=counted), evaluations, memory)()
    if counted.calls != evaluations:
        return f"ended after {counted.calls} evaluations"
    if not bool(torch.isfinite(state).all()):
        return "ended in NaN"
    run = peers_torchdeq.overhead_run(family, cell, evaluations, memory)
    return Candidate(run, counted.calls, {"evaluations": counted.calls})


def _least(family: str, cell: Cell, seconds: float) -> int:
    """Rounds at least: few where one takes many seconds, as with torchdeq's Broyden on a large state."""
    if seconds < 5 or (family == "Broyden" and "MLP" not in cell.name):
        return 3
    return 5


def _table(family: str, cell: Cell, evaluations: int, device: str, seconds: float, where: str) -> list[Figure]:
    """All lines of a family on one cell, timed in one series of pairs; `where` ends their names."""
    lines = [line for line in _LINES[family] if line.only in ("", cell.name)]
    found: dict[str, Candidate | str] = {line.label: _ours(family, line, cell, evaluations) for line in lines}
    for line in lines:
        if line.peer:
            found[f"torchdeq {line.label}"] = _torchdeq(family, line.memory, cell, evaluations)
    measured: dict[str, Paired] = paired(
        lambda: bare_loop(cell, evaluations),
        {label: candidate.run for label, candidate in found.items() if isinstance(candidate, Candidate)},
        device=device,
        seconds=seconds,
        least=_least(family, cell, seconds),
        warm_up=3 if "MLP" in cell.name else 1,
    )
    figures = []
    for line in lines:
        limit = line.targets.get(cell.name)
        target = None if limit is None else Target(limit)
        name = f"{line.label} over a bare loop, {cell.name} cell{where}"
        details: dict[str, Any] = {"cell": cell.name, "device": device}
        peer = ""
        other = found.get(f"torchdeq {line.label}")
        if isinstance(other, Candidate):
            beside = measured[f"torchdeq {line.label}"]
            ratios = [evaluations / other.evaluations * ratio for ratio in beside.ratios]
            spread = Spread.of(tuple(ratios))
            peer = f"{spread.median:.2f} [{spread.low:.2f}–{spread.high:.2f}]"
            details["torchdeq"] = {"ratios": ratios, "seconds": Spread.of(beside.seconds).median, **other.details}
        elif isinstance(other, str):
            peer = other
        candidate = found[line.label]
        if isinstance(candidate, str):
            rest = {"target": target, "peer": peer, "details": details}
            figures.append(Figure.absent(family.lower(), name, candidate, **rest))
            continue
        details.update(candidate.details)
        rest = {"target": target, "peer": peer, "details": details, "scale": evaluations / candidate.evaluations}
        figures.append(Figure.ratio(family.lower(), name, measured[line.label], **rest))
    return figures


def measure(family: str, device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """All overheads of one family of methods, cell by cell.

    Args:
        family: "Picard", "Anderson" or "Broyden".
        device: where.
        share: of the time that a full measurement takes.
    """
    for name, make in CELLS.items():
        cell = make(CHAOTIC, device=device)
        evaluations = _BROYDEN_EVALUATIONS if family == "Broyden" else cell.evaluations
        yield from _table(family, cell, evaluations, device, share * _SECONDS[name], "")
    if family != "Picard":
        for name, make in SLOW_CELLS.items():
            cell = make(device=device)
            evaluations = _BROYDEN_EVALUATIONS if family == "Broyden" else cell.evaluations
            yield from _table(family, cell, evaluations, device, share * _SECONDS[name] / 2, ", slow map")
