"""Where runs from different starts end: Algorithm 1 of arXiv 2211.09961, with the null baseline that it lacks.

The cosine of two final states is taken over all their floating leaves, flattened. States after a ReLU have a positive
cosine whatever they are, so that of *different* examples stands beside it; and since latent states and decoded answers
can disagree, the agreement of the answers stands beside both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from homeostat.engine.nest import flatten
from homeostat.engine.norms import row_rms
from homeostat.engine.problem import Problem
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Noise, Own, Zeros
from homeostat.probes.cycles import cosines
from homeostat.probes.ends import run_to_end
from homeostat.probes.judge import Judge
from homeostat.probes.sweep import BatchSweep, OnStep

_RTOL = 1e-3
"""Of the limit classes of second runs, which nobody asks for here."""

StartName = Literal["zeros", "noise", "swapped"]


@dataclass(frozen=True)
class BatchAlignment:
    """A second run of one batch from another start, compared with the first, `(rows,)` each."""

    start: StartName
    cosine: np.ndarray
    null: np.ndarray
    distance: np.ndarray
    agreement: np.ndarray | None
    correct: np.ndarray | None
    failed: np.ndarray
    evaluations: int


def other_starts(
    model: IteratedModel, context: Any, swept: BatchSweep, *, scale: float, seed: int, indices: Sequence[int]
) -> tuple[dict[StartName, Any], list[str]]:
    """States to start a second run from, and notes on those that cannot be made.

    `zeros` is left out when the model starts from zeros anyway. `swapped` gives every example the final state of
    another one of its batch.
    """
    starts: dict[StartName, Any] = {}
    notes: list[str] = []
    own, layout = flatten(model.initial_state(context, Own()), "state")
    if any(bool(own[i].any()) for i in layout.measured()):
        starts["zeros"] = model.initial_state(context, Zeros().seeded(seed, indices))
    noise = model.initial_state(context, Noise(scale=scale).seeded(seed, indices))
    drawn, _ = flatten(noise, "state")
    if all(torch.equal(drawn[i], own[i]) for i in layout.measured()):
        notes.append("noise start not measured: initial_state(context, start) returns the same state for every start")
        starts.pop("zeros", None)
    else:
        starts["noise"] = noise
    if len(indices) < 2:
        notes.append("swapped start not measured: a batch of one example has no other example's limit")
    else:
        final, _ = flatten(swept.state, "state")
        leaves = list(own)
        for i in layout.measured():  # what is carried along begins as in the model's own start
            leaves[i] = final[i].roll(1, 0)
        starts["swapped"] = layout.build(leaves, marks=True)
    return starts, notes


def align(
    model: IteratedModel,
    context: Any,
    swept: BatchSweep,
    start: StartName,
    state: Any,
    targets: Any,
    judge: Judge,
    steps: int,
    on_step: OnStep | None = None,
) -> BatchAlignment:
    """Run one batch again from `state` for `steps` steps, and compare where it ends with the first run."""
    with torch.no_grad():
        problem = Problem.of(model.step, state, context)
        end = run_to_end(problem, steps, rtol=_RTOL, stochastic=model.stochastic, on_step=on_step)
        outputs = model.decode(problem.layout.build(end.leaves), problem.context_layout.build(problem.context))
    first, layout = flatten(swept.state, "state")
    ours = [end.leaves[i] for i in layout.measured()]
    theirs = [first[i] for i in layout.measured()]
    failed = end.failed.cpu().numpy() | (swept.failed_at > 0)
    cosine = cosines(ours, theirs).cpu().numpy()
    null = cosines(theirs, [leaf.roll(1, 0) for leaf in theirs]).cpu().numpy()
    cosine, null = np.where(failed, 0, cosine), np.where(swept.failed_at > 0, 0, null)
    if len(null) == 1:  # there is no different example to compare with
        null = np.full(1, np.nan)
    distance = np.max(
        [(row_rms(a - b) / row_rms(b).clamp(min=1e-30)).cpu().numpy() for a, b in zip(ours, theirs, strict=True)],
        axis=0,
    )
    answers = judge.decoded(outputs)
    agreement = None
    if answers is not None and swept.answers is not None:
        agreement = (answers == swept.answers).reshape(len(failed), -1).all(1).cpu().numpy() & ~failed
    correct = judge.judged("correct", outputs, targets, len(failed))
    return BatchAlignment(
        start=start,
        cosine=cosine,
        null=null,
        distance=np.where(failed, np.inf, distance),
        agreement=agreement,
        correct=None if correct is None else correct.cpu().numpy() & ~failed,
        failed=failed,
        evaluations=end.evaluations,
    )
