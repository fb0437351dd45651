"""Clips for the gallery: one example followed step by step, as small pictures of codes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine.iterate import Release, iterate
from homeostat.engine.norms import residuals
from homeostat.engine.problem import Problem
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Own
from homeostat.probes.judge import Judge
from homeostat.probes.results import Clip, Example

_FRAMES = 80


@dataclass(frozen=True)
class Candidate:
    """An example that may be shown: its inputs and targets, a batch of one."""

    difficulty: str
    example: Example
    inputs: Any
    targets: Any

    @classmethod
    def of(cls, difficulty: str, example: Example, inputs: Any, targets: Any, row: int) -> "Candidate":
        """Cut one row out of a batch."""

        def cut(tree: Any) -> Any:
            return pytree.tree_map(lambda x: x[row : row + 1] if isinstance(x, Tensor) else x, tree)

        return cls(difficulty, example, cut(inputs), cut(targets))


def choose(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One that ends right, at the hardest difficulty where any does, and one that ends wrong, at the easiest one;
    in a model that never fails the second is missing, and the other way round. The first of each are taken, so that
    nobody picks a pretty one.
    """
    right = [c for c in candidates if c.example.correct]
    wrong = [c for c in candidates if c.example.correct is False]
    return right[-1:] + wrong[:1]


class _Filming:
    def __init__(self, model: IteratedModel, problem: Problem, judge: Judge, candidate: Candidate, steps: list[int]):
        self._model, self._problem, self._judge, self._candidate = model, problem, judge, candidate
        self._wanted = set(steps)
        self.steps: list[int] = []
        self.frames: list[np.ndarray] = []
        self.residuals: list[float] = []
        self.correct: list[bool | None] = []

    def observe(
        self, step: int, rows: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], context: Sequence[Any]
    ) -> Release | None:
        """See `Monitor.observe`. Stops at the first state that is not finite, which nobody can draw."""
        measured = self._problem.layout.measured()
        residual = float(residuals([before[i] for i in measured], [after[i] for i in measured])[2])
        if not np.isfinite(residual):
            return Release(torch.ones_like(rows, dtype=torch.bool))
        if step not in self._wanted:
            return None
        outputs = self._model.decode(self._problem.layout.build(after), self._problem.context_layout.build(context))
        answers = self._judge.decoded(outputs)
        if answers is None:
            return None
        targets = self._candidate.targets
        target = targets[0].cpu() if isinstance(targets, Tensor) else None
        inputs = pytree.tree_map(lambda x: x[0].cpu() if isinstance(x, Tensor) else x, self._candidate.inputs)
        picture = self._judge.drawing(inputs, answers[0].cpu(), target)
        if picture is None:
            return None
        correct = self._judge.judged("correct", outputs, targets, 1)
        self.steps.append(step)
        self.frames.append(picture)
        self.residuals.append(residual)
        self.correct.append(None if correct is None else bool(correct[0]))
        return None

    def keep(self, index: Tensor) -> None:
        """See `Monitor.keep`; there is nothing to drop."""


def film(model: IteratedModel, judge: Judge, candidate: Candidate, longest: int) -> Clip | None:
    """Follow one example; every step while it is short, then ever wider apart. None where it cannot be drawn."""
    example = candidate.example
    last = example.last_change or longest
    end = min(longest, max(8, round(1.25 * last))) if example.correct else longest
    steps = sorted({round(x) for x in np.geomspace(1, end, _FRAMES)} | {end, example.first_solved or end})
    with torch.no_grad():
        context = model.encode(candidate.inputs)
        problem = Problem.of(model.step, model.initial_state(context, Own().seeded(0, [example.index])), context)
        filming = _Filming(model, problem, judge, candidate, steps)
        iterate(problem, max_steps=end, monitor=filming)
    if not filming.frames:
        return None
    if example.correct:
        title = f"solved at step {example.first_solved}"
    elif example.first_solved is None:
        title = f"never solved in {longest} steps"
    else:
        title = f"solved at step {example.first_solved}, then lost"
    return Clip(
        title=title,
        steps=tuple(filming.steps),
        frames=tuple(tuple(tuple(int(code) for code in row) for row in frame) for frame in filming.frames),
        residuals=tuple(filming.residuals),
        correct=tuple(filming.correct),
        labels=judge.legend[0],
        colours=judge.legend[1],
        difficulty=candidate.difficulty,
        solved=example.correct,
    )
