"""Follow a batch through every step up to the largest budget, in one pass, holding no trajectory.

Rows leave early only when nothing but rounding is left of them, or when they are not finite; so that what is recorded
for later budgets is what running on would have given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine.iterate import Release, iterate
from homeostat.engine.norms import out_of_bounds, residuals
from homeostat.engine.problem import Problem
from homeostat.models.contract import IteratedModel
from homeostat.probes.courses.signals import same
from homeostat.probes.judge import Judge
from homeostat.probes.limits.limit_test import LimitTest
from homeostat.probes.results import LimitClass

OnStep = Callable[[int], None]
"""Told the number of each step, for progress."""

_WINDOW = 16


class RestTest:
    """Rows of which only rounding is left: for two windows of 16 steps in a row the relative residual was at most one
    unit in the last place, and it did not grow from the first window to the second.

    Growth matters: a start close to an unstable fixed point moves as little at first, and then leaves.
    """

    def __init__(self, state: Sequence[Tensor], measured: Sequence[int], stochastic: bool) -> None:
        self._unit = max(torch.finfo(state[i].dtype).eps for i in measured)
        self._possible = not stochastic and all(state[i].is_floating_point() for i in range(len(state)))
        self._possible = self._possible and len(measured) == len(state)
        self._now: Tensor | None = None
        self._former: Tensor | None = None

    def observe(self, step: int, relative: Tensor) -> Tensor | None:
        """`(active,)` bool at the end of a window, None at other steps. States that carry more than what is measured
        (counters, tokens) never rest, since they may still change the answer.
        """
        if not self._possible:
            return None
        self._now = relative if self._now is None else torch.maximum(self._now, relative)
        if step % _WINDOW:
            return None
        former, self._former, self._now = self._former, self._now, None
        if former is None:
            return None
        return (self._former <= self._unit) & (former <= self._unit) & (self._former <= former)

    def keep(self, index: Tensor) -> None:
        """Drop the rows that left."""
        self._now = None if self._now is None else self._now[index]
        self._former = None if self._former is None else self._former[index]


@dataclass(frozen=True)
class BatchCourse:
    """Every step of one batch, `(rows, steps)` each: what `Courses` are made of."""

    residual: np.ndarray  # float32; NaN from the failure on
    stable: np.ndarray | None  # float32, steps for which the asked answers have stayed the same
    right: np.ndarray  # bool


@dataclass(frozen=True)
class BatchSweep:
    """What became of one batch, as arrays on the host; `budgets` runs along the second axis where there is one."""

    state: Any
    """The final state, in the structure of the model's states; failed rows hold their last finite one."""
    answers: Tensor | None
    correct: np.ndarray | None  # (rows, budgets) bool
    symbols: np.ndarray | None  # (rows, budgets), share
    loss: np.ndarray | None  # (rows, budgets); NaN where the state is not finite
    residual: np.ndarray  # (rows, budgets); infinite where the state is not finite
    failed_at: np.ndarray  # (rows,) int, 0 where it stayed finite
    first_solved: np.ndarray  # (rows,) int, 0 where never
    last_change: np.ndarray | None  # (rows,) int
    settled_at: np.ndarray  # (rows,) int, 0 where not settled at the end
    limit: list[tuple[LimitClass, int | None]]  # limit class and period
    evaluations: int
    course: BatchCourse | None
    """None where it was not asked for, or nothing says what is right."""


class _Recorder:
    """The monitor of a sweep: keeps the newest judgement of every row and copies it at each budget."""

    def __init__(
        self,
        model: IteratedModel,
        problem: Problem,
        judge: Judge,
        targets: Any,
        budgets: Sequence[int],
        rtol: float,
        on_step: OnStep | None,
        course: bool,
        asked: Tensor | None,
    ) -> None:
        self._on_step, self._asked = on_step, asked
        self._model, self._problem, self._judge, self._rtol = model, problem, judge, rtol
        self._budgets = list(budgets)
        self._measured = problem.layout.measured()
        self._rest = RestTest(problem.state, self._measured, model.stochastic)
        self._targets = targets
        rows, device = problem.rows, problem.state[0].device
        self.limits = LimitTest(rows, self._budgets[-1], device)

        def whole(value: int) -> Tensor:
            return torch.full((rows,), value, dtype=torch.int64, device=device)

        self.failed_at, self.first_solved = whole(0), whole(0)
        self.last_change, self.settled_at = whole(0), whole(0)
        self.residual = torch.full((rows,), float("inf"), dtype=torch.float64, device=device)
        self.now: dict[str, Tensor] = {}
        self.answers: Tensor | None = None
        self.history: dict[str, list[np.ndarray]] = {"residual": []}
        self.course: dict[str, np.ndarray] | None = None
        if course and judge.correct is not None and targets is not None:
            size = (rows, self._budgets[-1])
            self.course = {"residual": np.full(size, np.nan, np.float32), "right": np.zeros(size, bool)}
            self._kept = whole(0)

    def observe(
        self, step: int, rows: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], context: Sequence[Any]
    ) -> Release | None:
        """See `Monitor.observe`."""
        if self._on_step is not None:
            self._on_step(step)
        old, new = [before[i] for i in self._measured], [after[i] for i in self._measured]
        changes, sizes, relative = residuals(old, new)
        failed = out_of_bounds(new, sizes)
        relative = relative.masked_fill(failed, float("inf"))
        self.residual[rows] = relative.double()
        settled = relative <= self._rtol
        since = self.settled_at[rows]
        self.settled_at[rows] = torch.where(settled, torch.where(since > 0, since, step), 0)
        self.limits.observe(step, rows, new, changes, sizes, relative)
        release, resting = failed, self._rest.observe(step, relative)
        if resting is not None:
            release = release | resting
        leaving = bool(release.any())
        at_budget = step == self._budgets[len(self.history["residual"])]
        self._judge_rows(step, rows, after, context, failed, in_full=at_budget or leaving)
        if at_budget:
            self._record()
        if self.course is not None:
            self._note(self.course, step, rows, relative, failed, release)
        if not leaving:
            return None
        self.failed_at[rows[failed]] = step
        return Release(release, failed)

    def _note(
        self, course: dict[str, np.ndarray], step: int, rows: Tensor, relative: Tensor, failed: Tensor, release: Tensor
    ) -> None:
        """This step of the course; what leaves at rest would go on as it is."""
        places, lost = rows.cpu().numpy(), failed.cpu().numpy()
        course["residual"][places, step - 1] = np.where(lost, np.nan, relative.float().cpu().numpy())
        course["right"][places, step - 1] = self.now["correct"][rows].cpu().numpy()
        if self.answers is not None:
            kept = course.setdefault("stable", np.full_like(course["residual"], np.nan))
            kept[places, step - 1] = np.where(lost, np.nan, self._kept[rows].cpu().numpy())
        gone = rows[release & ~failed].cpu().numpy()
        for name, values in course.items():
            values[gone, step:] = values[gone, step - 1][:, None]
            if name == "stable":
                values[gone, step:] += np.arange(1, values.shape[1] - step + 1, dtype=np.float32)

    def _judge_rows(
        self, step: int, rows: Tensor, after: Sequence[Tensor], context: Sequence[Any], failed: Tensor, in_full: bool
    ) -> None:
        """Newest answers and their judgement; symbols and loss are asked for only where they will be read."""
        problem, judge = self._problem, self._judge
        outputs = self._model.decode(problem.layout.build(after), problem.context_layout.build(context))
        targets = None if self._targets is None else _rows(self._targets, rows)
        for name in ("correct", "symbols", "loss") if in_full else ("correct",):
            values = judge.judged(name, outputs, targets, len(rows))
            if values is None:
                continue
            worst = float("nan") if name == "loss" else 0
            values = torch.where(failed, torch.full_like(values, worst), values)  # a label of a NaN is no answer
            if name not in self.now:
                self.now[name] = values.new_zeros(problem.rows)
            self.now[name][rows] = values
            if name == "correct":
                first = self.first_solved[rows]
                self.first_solved[rows] = torch.where((first == 0) & values, step, first)
        answers = judge.decoded(outputs)
        if answers is None:
            return
        if self.answers is None:
            self.answers = answers.new_full((problem.rows, *answers.shape[1:]), -1)
        elif step > 1:
            former = self.answers[rows]
            changed = (answers != former).reshape(len(rows), -1).any(1) | failed
            if self.course is not None:
                asked = None if self._asked is None else self._asked[rows]
                self._kept[rows] = torch.where(same(answers, former, asked), self._kept[rows] + 1, 0)
            self.last_change[rows] = torch.where(changed, step, self.last_change[rows])
        self.answers[rows] = answers

    def _record(self) -> None:
        self.history["residual"].append(self.residual.cpu().numpy().copy())
        for name, values in self.now.items():
            self.history.setdefault(name, []).append(values.cpu().numpy().copy())

    def finish(self) -> dict[str, np.ndarray]:
        """Histories `(rows, budgets)`. Budgets after the last row has left hold what it left with."""
        while len(self.history["residual"]) < len(self._budgets):
            self._record()
        return {name: np.stack(values, axis=1) for name, values in self.history.items()}

    def keep(self, index: Tensor) -> None:
        """See `Monitor.keep`."""
        self._rest.keep(index)
        self.limits.keep(index)


def sweep_batch(
    model: IteratedModel,
    inputs: Any,
    targets: Any,
    judge: Judge,
    budgets: Sequence[int],
    rtol: float,
    start: Callable[[Any], Any],
    on_step: OnStep | None = None,
    course: bool = False,
) -> tuple[BatchSweep, Any]:
    """Run one batch to the largest budget from the state that `start(context)` gives; with `course`, keep every step.

    Returns:
        What became of it, and the context.
    """
    with torch.no_grad():
        context = model.encode(inputs)
        problem = Problem.of(model.step, start(context), context)
        recorder = _Recorder(model, problem, judge, targets, budgets, rtol, on_step, course, judge.asked_of(inputs))
        leaves, evaluations = iterate(problem, max_steps=budgets[-1], monitor=recorder, check=not model.stochastic)
    history = recorder.finish()
    change = recorder.last_change.cpu().numpy() if recorder.answers is not None else None
    swept = BatchSweep(
        state=problem.layout.build(leaves, marks=True),
        answers=recorder.answers,
        correct=history.get("correct"),
        symbols=history.get("symbols"),
        loss=history.get("loss"),
        residual=history["residual"],
        failed_at=recorder.failed_at.cpu().numpy(),
        first_solved=recorder.first_solved.cpu().numpy(),
        last_change=change,
        settled_at=recorder.settled_at.cpu().numpy(),
        limit=recorder.limits.classes(recorder.failed_at > 0, recorder.residual, rtol),
        evaluations=evaluations,
        course=None if recorder.course is None else BatchCourse(**{"stable": None, **recorder.course}),
    )
    return swept, context


def _rows(targets: Any, rows: Tensor) -> Any:
    """Rows of targets: a tensor, or a tuple, list or dict of them."""
    return pytree.tree_map(lambda x: x[rows] if isinstance(x, Tensor) else x, targets)
