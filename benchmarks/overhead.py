"""What an evaluation costs more than in a bare loop, where the state never settles and the stopping test is on.

Every candidate is run once with a counter around the map before it is timed: it must take all its evaluations, in all
rows, to the end (`MAX_STEPS`), or there is no figure. Times are per evaluation that was really made, so that a method
that takes one more does not look dearer, or cheaper, than it is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import homeostat as hs
from benchmarks import features, peers_torchdeq
from benchmarks.cells import CELLS, CHAOTIC, CONTRACTING, Cell, bare_loop
from benchmarks.results import Figure, Target
from benchmarks.timing import Paired, paired

_RTOL = 1e-6  # within the reach of float32, so that it is taken as it stands
_BROYDEN_MEMORY = 30

# Targets by what is measured and on which cell.
_TARGETS = {
    ("Picard", "MLP"): 1.25,
    ("Picard", "conv"): 1.05,
    ("Picard, compiled", "MLP"): 0.9,
    ("Picard, compiled", "conv"): 0.8,
    ("Anderson (memory 6)", "MLP"): 2.4,
    ("Anderson (memory 6)", "conv"): 1.3,
    ("Broyden", "MLP"): 4.0,
    ("Broyden", "conv"): 2.0,
}

# Seconds of measurement for each cell: the costly ones need longer for a handful of pairs.
_SECONDS = {"MLP": 12.0, "conv": 40.0, "transformer": 25.0}


@dataclass(frozen=True)
class Candidate:
    """A solve that can be timed, and what is known about it."""

    label: str
    family: str
    run: Callable[[], Any]
    evaluations: float
    details: dict[str, Any]


def _ours(label: str, family: str, method: Any, cell: Cell, evaluations: int, compiled: bool) -> Candidate | str:
    """A solve of ours, or why it cannot be measured."""
    why = features.why_not(family) or (features.why_not_compiled() if compiled else "")
    if why:
        return why
    options: dict[str, Any] = {"compile": True} if compiled else {}
    stop = hs.Stop(rtol=_RTOL, max_steps=evaluations)

    def run(step: Callable[[Tensor, Tensor], Tensor] = cell.step) -> hs.Solution:
        with torch.no_grad():
            return hs.solve(step, cell.state, cell.context, method=method, stop=stop, **options)

    counted = Counter(cell.step)
    solution = run(cell.step if compiled else counted)  # a counter would be compiled away
    early = solution.status != hs.Status.MAX_STEPS
    if bool(early.any()):
        kinds = {hs.Status(int(s)).name for s in solution.status[early].unique()}
        return f"{int(early.sum())} rows ended early ({', '.join(sorted(kinds))})"
    made = solution.row_evaluations / len(cell.state)
    if not compiled and counted.calls != made:
        return f"row_evaluations says {made} evaluations, the counter {counted.calls}"
    return Candidate(label, family, run, made, {"evaluations": made, "residual": float(solution.residual.median())})


def _torchdeq(family: str, memory: int | None, cell: Cell, evaluations: int) -> Candidate | str:
    if not peers_torchdeq.available():
        return peers_torchdeq.MISSING
    counted = Counter(cell.step)
    state, _ = peers_torchdeq.overhead_run(family, replace(cell, step=counted), evaluations, memory)()
    if counted.calls != evaluations:
        return f"torchdeq ended after {counted.calls} evaluations"
    run = peers_torchdeq.overhead_run(family, cell, evaluations, memory)
    finite = bool(torch.isfinite(state).all())
    return Candidate(f"torchdeq {family}", family, run, counted.calls, {"evaluations": counted.calls, "finite": finite})


class Counter:
    """A map that counts its calls."""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.step = step
        self.calls = 0

    def __call__(self, state: Tensor, context: Tensor) -> Tensor:
        self.calls += 1
        return self.step(state, context)


def _lines(families: set[str]) -> list[tuple[str, str, Any, bool, int | None]]:
    """Label, family, method, compiled, and the memory that torchdeq gets where it is its counterpart."""
    lines: list[tuple[str, str, Any, bool, int | None]] = [
        ("Picard", "Picard", hs.Picard(), False, None),
        ("Picard, compiled", "Picard", hs.Picard(), True, None),
        ("Anderson (memory 6)", "Anderson", hs.Anderson(memory=6), False, 6),
        ("Anderson (memory 6), compiled", "Anderson", hs.Anderson(memory=6), True, None),
        ("Anderson (default)", "Anderson", hs.Anderson(), False, hs.Anderson().memory),
        ("Broyden", "Broyden", hs.Broyden(memory=_BROYDEN_MEMORY), False, _BROYDEN_MEMORY),
    ]
    return [line for line in lines if line[1] in families]


def _table(
    cell: Cell, families: set[str], device: str, evaluations: int, seconds: float, title: str, with_targets: bool
) -> list[Figure]:
    """All lines of one cell, timed in one series of pairs."""
    ours: dict[str, Candidate | str] = {}
    theirs: dict[str, Candidate | str] = {}
    for label, family, method, compiled, memory in _lines(families):
        if not with_targets and label not in ("Picard", "Anderson (memory 6)", "Broyden"):
            continue
        ours[label] = _ours(label, family, method, cell, evaluations, compiled)
        if not compiled and label != "Anderson (default)":
            theirs[label] = _torchdeq(family, memory, cell, evaluations)
    made = [c for c in (*ours.values(), *theirs.values()) if isinstance(c, Candidate)]
    if not made:
        measured: dict[str, Paired] = {}
    else:
        measured = paired(
            lambda: bare_loop(cell, evaluations),
            {c.label: c.run for c in made},
            device=device,
            seconds=seconds,
            warm_up=1 if cell.name != "MLP" else 3,
        )

    figures = []
    for label, candidate in ours.items():
        limit = _TARGETS.get((label, cell.name)) if with_targets else None
        target = None if limit is None else Target(limit)
        name = f"{label} over a bare loop, {title}"
        peer, beside = "", theirs.get(label)
        details: dict[str, Any] = {"cell": cell.name, "device": device}
        if isinstance(beside, Candidate):
            other = Figure.ratio("", "", measured[beside.label], scale=evaluations / beside.evaluations)
            peer = f"{other.value:.2f} [{other.low:.2f}–{other.high:.2f}]"
            details["torchdeq"] = {**other.details, **beside.details}
        elif isinstance(beside, str):
            peer = "–"
            details["torchdeq"] = beside
        group = next(line[1].lower() for line in _lines(families) if line[0] == label)
        if isinstance(candidate, str):
            figures.append(Figure.absent(group, name, candidate, target=target, peer=peer, details=details))
            continue
        details.update(candidate.details)
        figures.append(
            Figure.ratio(
                group,
                name,
                measured[label],
                scale=evaluations / candidate.evaluations,
                target=target,
                peer=peer,
                details=details,
            )
        )
    return figures


def measure(families: set[str], device: str = "cpu", share: float = 1.0):
    """All overheads of some families, cell by cell; yields figures as they are made.

    Args:
        families: of "Picard", "Anderson", "Broyden".
        device: where.
        share: of the time that a full measurement takes.
    """
    for name, make in CELLS.items():
        cell = make(CHAOTIC, device=device)
        yield from _table(
            cell, families, device, cell.evaluations, share * _SECONDS[name], f"{name} cell", with_targets=True
        )
    # On a map that never settles a safeguarded method may hold its extrapolation back, and be cheap for that reason.
    # Here it is at work: the first evaluations on a map that contracts, too few of them for any row to arrive.
    cell = CELLS["MLP"](CONTRACTING, device=device)
    yield from _table(
        cell, families, device, 12, share * 8, "MLP cell, the first 12 evaluations of a contraction", with_targets=False
    )
