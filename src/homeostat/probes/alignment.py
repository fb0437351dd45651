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
from torch import Tensor

from homeostat.engine.iterate import Release, iterate
from homeostat.engine.nest import flatten
from homeostat.engine.norms import out_of_bounds, residuals, row_rms
from homeostat.engine.problem import Problem
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Noise, Own, Zeros
from homeostat.probes.judge import Judge
from homeostat.probes.sweep import BatchSweep, OnStep, RestTest

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


class _Quiet:
    """A monitor that only lets go of rows that rest or fail."""

    def __init__(self, problem: Problem, stochastic: bool, on_step: OnStep | None) -> None:
        self._on_step = on_step
        self._measured = problem.layout.measured()
        self._rest = RestTest(problem.state, self._measured, stochastic)
        self.failed = torch.zeros(problem.rows, dtype=torch.bool, device=problem.state[0].device)

    def observe(
        self, step: int, rows: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], context: Sequence[Any]
    ) -> Release | None:
        """See `Monitor.observe`."""
        if self._on_step is not None:
            self._on_step(step)
        new = [after[i] for i in self._measured]
        _, sizes, relative = residuals([before[i] for i in self._measured], new)
        failed = out_of_bounds(new, sizes)
        release, resting = failed, self._rest.observe(step, relative)
        if resting is not None:
            release = release | resting
        if not bool(release.any()):
            return None
        self.failed[rows[failed]] = True
        return Release(release, failed)

    def keep(self, index: Tensor) -> None:
        """See `Monitor.keep`."""
        self._rest.keep(index)


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
        starts["swapped"] = layout.build([leaf.roll(1, 0) for leaf in final], marks=True)
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
        quiet = _Quiet(problem, model.stochastic, on_step)
        leaves, evaluations = iterate(problem, max_steps=steps, monitor=quiet)
        outputs = model.decode(problem.layout.build(leaves), context)
    first, layout = flatten(swept.state, "state")
    ours = [leaves[i] for i in layout.measured()]
    theirs = [first[i] for i in layout.measured()]
    failed = quiet.failed.cpu().numpy() | (swept.failed_at > 0)
    cosine = _cosine(ours, theirs).cpu().numpy()
    null = _cosine(theirs, [leaf.roll(1, 0) for leaf in theirs]).cpu().numpy()
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
        evaluations=evaluations,
    )


def _cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """`(rows,)` cosine over all leaves; 0 where a state is zero. In float64, since near 1 the digits count."""
    flat_a = torch.cat([leaf.flatten(1).double() for leaf in a], dim=1)
    flat_b = torch.cat([leaf.flatten(1).double() for leaf in b], dim=1)
    return torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1, eps=1e-300)
