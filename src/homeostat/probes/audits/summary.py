"""From the arrays of batches to the figures of a difficulty: means, intervals, tables."""

from collections.abc import Sequence

import numpy as np

from homeostat.probes import estimates
from homeostat.probes.audits.alignment import BatchAlignment
from homeostat.probes.audits.clips import Candidate
from homeostat.probes.results import LIMIT_CLASSES, Alignment, Budget, Difficulty, Example
from homeostat.probes.sweep import BatchSweep


class Collected:
    """What the batches of one difficulty gave, row after row."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.examples: list[Example] = []
        self.sweeps: list[BatchSweep] = []
        self.alignments: dict[str, list[BatchAlignment]] = {}
        self.candidates: list[Candidate] = []
        self.notes: dict[str, None] = {}
        self.symbols = 1

    def at(self, budgets: Sequence[int], horizon: int | None) -> np.ndarray | None:
        if horizon is None or horizon not in budgets or any(s.correct is None for s in self.sweeps):
            return None
        place = list(budgets).index(horizon)
        return np.concatenate([s.correct[:, place] for s in self.sweeps if s.correct is not None])


def examples_of(swept: BatchSweep, aligned: Sequence[BatchAlignment], first: int) -> list[Example]:
    """Every row of a batch as an `Example`; the first one is number `first` of its difficulty."""
    found = []
    for row in range(len(swept.failed_at)):
        correct = None if swept.correct is None else bool(swept.correct[row, -1])
        solved = int(swept.first_solved[row]) or None
        limit, period = swept.limit[row]
        found.append(
            Example(
                index=first + row,
                correct=correct,
                first_solved=solved,
                last_change=None if swept.last_change is None else int(swept.last_change[row]),
                lost=None if correct is None else solved is not None and not correct,
                settled_at=int(swept.settled_at[row]) or None,
                residual=float(swept.residual[row, -1]),
                limit=limit,
                period=period,
                failed_at=int(swept.failed_at[row]) or None,
                alignment={a.start: float(a.cosine[row]) for a in aligned},
            )
        )
    return found


def summarise(collected: Collected, steps: Sequence[int], rtol: float, seed: int, light_cone: int | None) -> Difficulty:
    """The figures of one difficulty.

    Args:
        steps: the budgets of the audit.
        rtol: relative residual that counts as settled.
        seed: of the bootstrap intervals.
    """
    sweeps = collected.sweeps
    failed_at = np.concatenate([s.failed_at for s in sweeps])
    residual = np.concatenate([s.residual for s in sweeps])

    correct, symbols, loss = (_joined(sweeps, name) for name in ("correct", "symbols", "loss"))
    budgets = []
    for place, budget in enumerate(steps):
        failed = (failed_at > 0) & (failed_at <= budget)
        finite = None if loss is None else loss[~failed, place]
        budgets.append(
            Budget(
                steps=budget,
                exact=None if correct is None else estimates.share(correct[:, place]),
                symbol=None if symbols is None else estimates.clustered_share(symbols[:, place], collected.symbols),
                loss=None if finite is None or len(finite) == 0 else float(finite.mean()),
                residual_median=float(np.median(residual[:, place])),
                residual_high=float(np.quantile(residual[:, place], 0.9, method="higher")),
                settled=estimates.share((residual[:, place] <= rtol) & ~failed),
                failed=int(failed.sum()),
            )
        )
    table = None
    if correct is not None:
        settled = (residual[:, -1] <= rtol) & (failed_at == 0)
        right = correct[:, -1]
        cells = [[int((a & b).sum()) for b in (right, ~right)] for a in (settled, ~settled)]
        table = ((cells[0][0], cells[0][1]), (cells[1][0], cells[1][1]))
    limits = {kind: sum(example.limit == kind for example in collected.examples) for kind in LIMIT_CLASSES}
    return Difficulty(
        name=collected.name,
        light_cone=light_cone,
        budgets=tuple(budgets),
        alignments=tuple(_alignment(start, parts, steps[-1], seed) for start, parts in collected.alignments.items()),
        limits=limits,
        settled_correct=table,
        examples=tuple(collected.examples),
        row_evaluations=sum(s.evaluations for s in sweeps),
        notes=tuple(collected.notes),
    )


def _joined(parts: Sequence[BatchSweep] | Sequence[BatchAlignment], name: str) -> np.ndarray | None:
    """One field of all batches, or None where a batch could not measure it."""
    arrays = [getattr(part, name) for part in parts]
    return None if any(array is None for array in arrays) else np.concatenate(arrays)


def _alignment(start: str, parts: Sequence[BatchAlignment], steps: int, seed: int) -> Alignment:
    cosine, null, distance, failed = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("cosine", "null", "distance", "failed")
    )
    agreement, correct = _joined(parts, "agreement"), _joined(parts, "correct")
    return Alignment(
        start=start,  # type: ignore[arg-type]
        steps=steps,
        cosine=estimates.mean(cosine, seed=seed),
        null=estimates.mean(null[~np.isnan(null)], seed=seed),
        distance=float(np.median(distance)),
        agreement=None if agreement is None else estimates.share(agreement),
        exact=None if correct is None else estimates.share(correct),
        failed=int(failed.sum()),
    )
