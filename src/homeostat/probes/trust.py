"""`compare_trust`: which signal tells, without labels, that an answer is right.

Side by side on the same answers: where a run from another start ends, the residual at the end, softmax confidence, the
steps it took to settle, and the model's own score. Each is turned so that larger means more trust; a run that failed
has the least of every signal, and counts as wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from homeostat.engine.nest import flatten
from homeostat.errors import ContractError, InputError
from homeostat.models.contract import IteratedModel, as_model
from homeostat.models.starts import Own
from homeostat.probes import estimates
from homeostat.probes.answers import asked, judge_of, logits_of
from homeostat.probes.audits.alignment import align, other_starts
from homeostat.probes.columns import columns, percent
from homeostat.probes.examples import (
    ExampleBatch,
    Examples,
    batches_of,
    evaluating,
    groups_of,
    positive,
    whole_number,
)
from homeostat.probes.figures import figure, interval
from homeostat.probes.judge import Judge
from homeostat.probes.ranking import auc, least_area, risk_coverage
from homeostat.probes.repeatable import check_repeatable
from homeostat.probes.results import Estimate
from homeostat.probes.sweep import BatchSweep, sweep_batch

Signal = Literal[
    "alignment", "agreement", "residual", "confidence (mean)", "confidence (least)", "steps to settle", "score"
]
SIGNALS: tuple[Signal, ...] = (
    "alignment",
    "agreement",
    "residual",
    "confidence (mean)",
    "confidence (least)",
    "steps to settle",
    "score",
)
"""
alignment: cosine of the final state with that of the run from the other start. agreement: whether both decode to the
same answer. residual: minus the relative residual of the last step. confidence: softmax probability of the answer, the
mean or the least over the positions where one is asked. steps to settle: minus their number, least where it has not
settled. score: the model's own.
"""


@dataclass(frozen=True)
class TrustRow:
    """One signal at one difficulty."""

    difficulty: str
    signal: Signal
    auc: Estimate | None
    """Chance that a right example has more of it than a wrong one: 1 tells them apart, 0.5 is a coin. None is not
    defined: all examples are right, or all are wrong."""
    aurc: Estimate
    """Area under the risk-coverage curve: mean share of wrong ones among the k most trusted, over all k."""
    points: tuple[tuple[float, float], ...]
    """(coverage, risk), the most trusted first."""
    values: tuple[float, ...]
    """The signal, an entry an example; larger is more trust, minus infinity for a failed run."""


@dataclass(frozen=True)
class TrustGroup:
    """What one difficulty's signals have in common."""

    difficulty: str
    correct: tuple[bool, ...]
    exact: Estimate
    failed: int
    aurc_chance: float
    """AURC of a signal that tells nothing: the share of wrong ones."""
    aurc_perfect: float
    """AURC of a signal that tells everything."""
    missing: dict[str, str]
    """Signals that could not be measured, and why."""


@dataclass(frozen=True, repr=False)
class Trust:
    """What `compare_trust` found; print it for a table."""

    model: str
    steps: int
    start: str
    settle_rtol: float
    groups: tuple[TrustGroup, ...]
    rows: tuple[TrustRow, ...]
    """Difficulty by difficulty, signal by signal."""

    def of(self, difficulty: str, signal: str) -> TrustRow:
        """The row of this difficulty and signal."""
        for row in self.rows:
            if (row.difficulty, row.signal) == (difficulty, signal):
                return row
        raise KeyError(f"no row {difficulty!r}, {signal!r}; there are {[(r.difficulty, r.signal) for r in self.rows]}")

    def __repr__(self) -> str:
        lines, notes = [], []
        for group in self.groups:
            rows = [row for row in self.rows if row.difficulty == group.difficulty]
            for row in rows:
                area = "not defined" if row.auc is None else interval(row.auc)
                name = f"{group.difficulty} (n={len(group.correct)})" if row is rows[0] else ""
                lines.append([name, row.signal, area, interval(row.aurc)])
            what = f"{group.difficulty}: exact {percent(group.exact)} %"
            if all(group.correct) or not any(group.correct):
                which = "right" if all(group.correct) else "wrong"
                notes.append(f"{what}: all are {which}, so that there is nothing to tell apart and no AUC is defined.")
            else:
                notes.append(
                    f"{what}; AURC {figure(group.aurc_chance)} by chance, {figure(group.aurc_perfect)} at best."
                )
            if group.failed:
                notes.append(f"{group.difficulty}: {group.failed} runs failed; they count as wrong, trusted least.")
            notes += [f"{group.difficulty}: no {name}: {why}." for name, why in group.missing.items()]
        text = [
            f"{self.model}: what tells that an answer is right, after {self.steps} steps (other start: {self.start})",
            *columns(["examples", "signal", "AUC", "AURC"], lines, names=2),
            "AUC: chance that a right example is trusted more than a wrong one. AURC: area under risk by coverage, "
            "lower is better. 95 % intervals.",
            *notes,
        ]
        return "\n".join(text)


def compare_trust(
    model: Any,
    examples: Examples | Mapping[str, Examples],
    *,
    steps: int,
    judge: Any = None,
    start: Literal["swapped", "noise"] = "swapped",
    noise_scale: float = 1.0,
    settle_rtol: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Trust:
    """Compare signals that are known without labels by how well they tell right answers from wrong ones.

    Args:
        model: anything with the functions of the contract.
        examples: batches `(inputs, targets)`, or several such iterables by the name of their difficulty. AUCs are
            taken within a difficulty: over several of them, any signal that tells the difficulty would look good.
        steps: budget of both runs.
        judge: has `correct`, and `answers` for agreement and confidence (see `Judge`); the model's own object when
            None.
        start: where the second run starts: from another example's final state (Algorithm 1 of arXiv 2211.09961), or
            from noise.
        noise_scale: standard deviation of that noise.
        settle_rtol: relative residual at which an example counts as settled.
        seed: of the starts and the bootstrap.
        device: where to run; that of the model's parameters when None.

    Raises:
        InputError: no examples, impossible options, or nothing that says what is right.
        ContractError: a model that breaks the contract, or that draws random numbers.

    Example:
        >>> import homeostat as hs
        >>> model = hs.from_functions(  # squares, but only while they are not too large for its step
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.ones_like(x),
        ...     step=lambda z, x: z + 0.2 * (x - z * z),
        ...     decode=lambda z, x: z,
        ... )
        >>> class Right:
        ...     def correct(self, outputs, targets):
        ...         return ((outputs - targets).abs() < 1e-2).all(1)
        >>> x = torch.linspace(1, 60, 40)[:, None]
        >>> found = compare_trust(model, [(x, x.sqrt())], steps=200, judge=Right())
        >>> found.of("all examples", "residual").auc
        1.000 [0.895, 1.000] n=40
    """
    chosen = judge_of(model, judge)
    steps, seed = whole_number("steps", steps), whole_number("seed", seed, least=0, most=2**63 - 2)
    settle_rtol, noise_scale = positive("settle_rtol", settle_rtol), positive("noise_scale", noise_scale)
    if start not in ("swapped", "noise"):
        raise InputError(f"start must be 'swapped' or 'noise', not {start!r}")
    if chosen.correct is None:
        raise InputError("trust is about what is right: give a judge with correct(outputs, targets)")
    iterated = as_model(model, where="the model")
    if iterated.stochastic:
        raise ContractError(f"{iterated.name}'s step draws random numbers, so that two runs differ by chance")
    groups, rows = [], []
    with evaluating(model, device) as where:
        for name, batches in groups_of(examples).items():
            collected = _Collected(name)
            for batch in batches_of(name, batches, where):
                _one_batch(iterated, batch, chosen, steps, start, noise_scale, settle_rtol, seed, collected)
            group, found = collected.summarise(seed)
            groups.append(group)
            rows += found
    other = "another example's limit" if start == "swapped" else f"noise {noise_scale:g}"
    return Trust(iterated.name, steps, other, settle_rtol, tuple(groups), tuple(rows))


class _Collected:
    """The signals of one difficulty, batch after batch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.correct: list[np.ndarray] = []
        self.failed: list[np.ndarray] = []
        self.signals: dict[Signal, list[np.ndarray]] = {signal: [] for signal in SIGNALS}
        self.missing: dict[str, str] = {}

    def add(self, signal: Signal, values: np.ndarray | Tensor, failed: np.ndarray) -> None:
        array = values.double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)
        bad = np.isnan(array) & ~failed
        if bad.any():
            self.missing[signal] = f"it is not a number for {int(bad.sum())} examples that did not fail"
        self.signals[signal].append(np.where(failed, -np.inf, array))

    def summarise(self, seed: int) -> tuple[TrustGroup, list[TrustRow]]:
        right, failed = np.concatenate(self.correct), np.concatenate(self.failed)
        rows = []
        for signal, parts in self.signals.items():
            if signal in self.missing or not parts:
                continue
            values = np.concatenate(parts)
            curve = risk_coverage(values, right, seed=seed)
            area = auc(values, right)
            rows.append(TrustRow(self.name, signal, area, curve.area, curve.points, tuple(values.tolist())))
        group = TrustGroup(
            difficulty=self.name,
            correct=tuple(right.tolist()),
            exact=estimates.share(right),
            failed=int(failed.sum()),
            aurc_chance=float((~right).mean()),
            aurc_perfect=least_area(int((~right).sum()), len(right)),
            missing=self.missing,
        )
        return group, rows


def _one_batch(
    model: IteratedModel,
    batch: ExampleBatch,
    judge: Judge,
    steps: int,
    start: Literal["swapped", "noise"],
    noise_scale: float,
    rtol: float,
    seed: int,
    into: _Collected,
) -> None:
    if batch.indices.start == 0:
        check_repeatable(model, batch.inputs, seed=seed, indices=batch.indices, steps=steps)
    own = Own().seeded(seed, batch.indices)
    swept, context = sweep_batch(
        model, batch.inputs, batch.targets, judge, [steps], rtol, lambda context: model.initial_state(context, own)
    )
    failed = swept.failed_at > 0
    if swept.correct is None:
        raise InputError(f"difficulty {into.name!r} has no targets, so that nothing says what is right")
    into.correct.append(swept.correct[:, -1] & ~failed)
    into.failed.append(failed)
    into.add("residual", -swept.residual[:, -1], failed)
    settled = np.where(swept.settled_at > 0, -swept.settled_at.astype(float), -np.inf)
    into.add("steps to settle", settled, failed)
    _second_run(model, context, batch, swept, judge, steps, start, noise_scale, seed, into, failed)
    with torch.no_grad():
        leaves, layout = flatten(swept.state, "state")
        state = layout.build(leaves)
        parts, context_layout = flatten(context, "context")
        bare = context_layout.build(parts)
        outputs, score = model.decode(state, bare), model.score(state, bare)
    if score is None:
        into.missing["score"] = "the model has none"
    elif not isinstance(score, Tensor) or score.shape != (batch.rows,):
        raise ContractError(f"score(state, context) must return a tensor of shape ({batch.rows},), one an example")
    else:
        into.add("score", score, failed)
    logits = logits_of(outputs, judge)
    if logits is None:
        why = "the answers are not the largest of floating logits along dimension 1"
        into.missing |= {"confidence (mean)": why, "confidence (least)": why}
        return
    top = logits.double().softmax(1).amax(1)
    where = asked(batch.targets, top.long()).reshape(batch.rows, -1)
    top = top.reshape(batch.rows, -1)
    into.add("confidence (mean)", (top * where).sum(1) / where.sum(1), failed)
    into.add("confidence (least)", top.masked_fill(~where, float("inf")).amin(1), failed)


def _second_run(
    model: IteratedModel,
    context: Any,
    batch: ExampleBatch,
    swept: BatchSweep,
    judge: Judge,
    steps: int,
    start: Literal["swapped", "noise"],
    noise_scale: float,
    seed: int,
    into: _Collected,
    failed: np.ndarray,
) -> None:
    """Alignment and agreement with a run from the other start."""
    starts, _ = other_starts(model, context, swept, scale=noise_scale, seed=seed, indices=batch.indices)
    if start not in starts:
        why = "initial_state(context, start) returns the same state for every start"
        if start == "swapped":
            why = "a batch of one example has no other example's limit to start from"
        into.missing |= {"alignment": why, "agreement": why}
        return
    other = align(model, context, swept, start, starts[start], batch.targets, judge, steps)
    into.add("alignment", np.where(other.failed, -1.0, other.cosine), failed)
    if other.agreement is None:
        into.missing["agreement"] = "nothing decodes the answers"
    else:
        into.add("agreement", other.agreement, failed)
