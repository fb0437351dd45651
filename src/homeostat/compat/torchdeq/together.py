"""A whole batch iterated until every row is within tolerance, with the best state of each row: torchdeq's rule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.pace import Pace
from homeostat.engine.forward.picard import PicardStepper
from homeostat.engine.forward.record import Record, to_host
from homeostat.engine.forward.run import make_stepper
from homeostat.engine.methods import Method, Picard
from homeostat.engine.nest import merge_rows, select
from homeostat.engine.norms import row_lengths
from homeostat.engine.problem import Problem

Table = NDArray[np.float64]

_TINY = 1e-9
"""What torchdeq adds to the norm of f(z) before it divides by it."""


@dataclass(frozen=True)
class Together:
    """How a batch ended."""

    state: Any
    """In the structure of the start: the last f(z), where that is within tolerance in all rows; otherwise of each row
    the f(z) with the lowest error. (Rows that are coupled must be from one and the same step.)"""
    samples: list[Any]
    """The same, after the evaluations that were asked for; those never reached have the state at the end."""
    absolute: Table
    """`(steps, rows)`, Euclidean norm of f(z) - z over all leaves of a row."""
    relative: Table
    """`(steps, rows)`, the same over the Euclidean norm of f(z)."""
    lowest_absolute: Table
    lowest_relative: Table
    """`(rows,)`."""
    at: Table
    """`(rows,)`, the evaluation with the lowest error; 0 for the start."""
    max_steps: int
    device: torch.device

    def trace(self, course: Table, lowest: Table, first: float) -> Table:
        """`(rows, 1 + max_steps)`: the course of an error behind a column `first`, and the lowest up to the end."""
        rest = self.max_steps - len(course)
        rows = len(lowest)
        return np.concatenate([np.full((1, rows), first), course, np.broadcast_to(lowest, (rest, rows))]).T

    def behind(self, absolute: Table) -> "Together":
        """The same with one more evaluation in front, from 0, whose value was the start, of these sizes `(rows,)`.

        It is taken to have been the best where none of the others was.
        """
        none, relative = self.at == 0, np.ones_like(absolute)
        return replace(
            self,
            absolute=np.concatenate([absolute[None], self.absolute]),
            relative=np.concatenate([relative[None], self.relative]),
            lowest_absolute=np.where(none, absolute, self.lowest_absolute),
            lowest_relative=np.where(none, relative, self.lowest_relative),
            at=self.at + 1,
            max_steps=self.max_steps + 1,
        )


def solve_together(
    step: Callable[[Any], Any],
    state: Any,
    *,
    method: Method,
    max_steps: int,
    tol: float,
    relative: bool,
    samples: Sequence[int] = (),
    final: bool = False,
) -> Together:
    """Apply `step` to all rows until the error of each is below `tol`, or `max_steps` times.

    Args:
        step: `state -> state`. It always gets all rows, so that it may couple them.
        state: a tensor or a nest of tensors, batch first.
        method: how to iterate.
        max_steps: most evaluations; 0 returns the start.
        tol: below which error a row is finished; 0 takes all steps.
        relative: whether that error, and the lowest, is the relative one.
        samples: evaluations after which the state is kept.
        final: return the last state in any case.

    Example:
        >>> found = solve_together(
        ...     lambda z: 0.5 * z + 1, torch.zeros(2, 1), method=Picard(), max_steps=50, tol=1e-3, relative=False
        ... )
        >>> found.state[0].round(decimals=2), found.at
        (tensor([2.]), array([11., 11.]))
    """
    problem = Problem.of(lambda z, _: step(z), state, None)
    problem = Problem(
        problem.step, [x.detach() for x in problem.state], problem.layout, [None], problem.context_layout, problem.rows
    )
    course = _Course(problem, relative, final)
    kept: dict[int, list[Tensor]] = {}
    with torch.no_grad():
        stepper = _PlainSteps(problem, method) if isinstance(method, Picard) else make_stepper(problem, method)
        pace = Pace(problem.state, None)
        marks = sorted({mark for mark in samples if mark < max_steps} | {max_steps})
        taken, done, record = 0, False, None
        while taken < max_steps and not done:
            room = next(mark for mark in marks if mark > taken) - taken
            record = stepper.advance(pace.next(room) if tol > 0 else min(room, _UNTESTED), record_all=True)
            taken += record.steps
            done = course.add(record, tol)
            pace.observe(course.closest)
            if not done:
                kept[taken] = course.best
    layout, best = problem.layout, course.best
    if done:
        assert record is not None
        best = record.after[course.steps - record.first - 1]
    return Together(
        state=layout.build(best),
        samples=[layout.build(kept.get(mark, best)) for mark in samples],
        absolute=course.table(course.absolute),
        relative=course.table(course.relative),
        lowest_absolute=course.lowest[0],
        lowest_relative=course.lowest[1],
        at=course.at,
        max_steps=max_steps,
        device=problem.state[0].device,
    )


_UNTESTED = 4
"""Steps to a look where nothing is tested: as many as the states of may be kept."""


class _PlainSteps(PicardStepper):
    """Plain steps of which nothing is measured at once: what they leave behind is measured block by block."""

    def _first_step(self, state: list[Tensor]) -> list[Tensor]:
        after = super()._first_step(state)
        step, device = self.problem.step, state[0].device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            # A step that kept the contract once is not looked at again; autocast changes dtypes, which wants a look.
            lone = self.problem.layout.lone
            self._apply = lambda z: [step(z[0], None)] if lone else list(step(tuple(z), None))
        return after

    def receive(self, record: Record, after: list[Tensor]) -> None:
        """See `Stepper.receive`."""
        record.before.append(self.state)
        record.after.append(after)
        self.state = self.last = after
        self.taken += 1


class _Course:
    """The errors so far, and the best state of each row."""

    def __init__(self, problem: Problem, relative: bool, final: bool) -> None:
        self._layout, self._rows, self._which, self._final = problem.layout, problem.rows, int(relative), final
        self.absolute: list[Table] = []
        self.relative: list[Table] = []
        self.lowest = [np.full(problem.rows, np.inf), np.full(problem.rows, np.inf)]
        self.at = np.zeros(problem.rows)
        self.best = problem.state
        self.steps = 0
        """Steps that count: those after the one that finished the last row do not."""
        self.closest: list[float] = []

    def add(self, record: Record, tol: float) -> bool:
        """Look at some steps; whether all rows are finished."""
        errors = _errors(record)
        error = errors[self._which]
        worst = error.max(1)
        met = worst < tol  # a NaN is not
        done = bool(met.any())
        count = int(met.argmax()) + 1 if done else record.steps
        self.closest = (worst / tol).tolist() if tol > 0 else []
        self.steps = record.first + count
        self.absolute.append(errors[0][:count])
        self.relative.append(errors[1][:count])
        for i in (0, 1):
            finite = np.where(np.isfinite(errors[i][:count]), errors[i][:count], np.inf)
            if i == self._which:
                self._keep(record, finite)
            self.lowest[i] = finite[-1] if self._final else np.minimum(self.lowest[i], finite.min(0))
        return done

    def _keep(self, record: Record, error: Table) -> None:
        """The best states after some steps; called before `lowest` knows of them."""
        last = len(error) - 1
        if self._final:
            self.at[:] = record.first + last + 1
            self.best = record.after[last]
            return
        place = last - error[::-1].argmin(0)  # of equals the last, which is no copy
        better = error[place, np.arange(self._rows)] < self.lowest[self._which]
        self.at[better] = record.first + place[better] + 1
        if better.all() and (place == last).all():
            self.best = record.after[last]
            return
        device = self.best[0].device
        for step in np.unique(place[better]):
            rows = torch.from_numpy(np.flatnonzero(better & (place == step))).to(device)
            self.best = merge_rows(self.best, rows, select(record.after[step], self._layout, rows))

    def table(self, parts: list[Table]) -> Table:
        """`(steps, rows)`."""
        return np.concatenate(parts) if parts else np.zeros((0, self._rows))


def _errors(record: Record) -> tuple[Table, Table]:
    """Absolute and relative errors of the steps, `(steps, rows)` each."""
    if record.lengths:
        sizes = [row_lengths(x[i]) for x in record.after for i in record.measured]
        table = to_host(torch.stack([*record.lengths, *sizes]))
        table = table.reshape(2, record.steps, len(record.measured), -1)
    else:
        table = to_host(torch.stack([_plain_lengths(record, i) for i in record.measured], 2))
    change, size = table[:, :, 0] if table.shape[2] == 1 else np.sqrt(np.square(table).sum(2))
    with np.errstate(all="ignore"):
        return change, change / (size + _TINY)


def _plain_lengths(record: Record, leaf: int) -> Tensor:
    """Norms of one leaf's f(z) - z, and of its f(z), `(2, steps, rows)`; of plain steps, one behind the other."""
    course = [record.before[0][leaf], *(after[leaf] for after in record.after)]
    if record.steps == 1:
        return torch.stack([row_lengths(course[1] - course[0]), row_lengths(course[1])])[:, None]
    states = torch.stack(course)
    rows = states.shape[1]
    lengths = [row_lengths(x.flatten(0, 1)).view(-1, rows) for x in (states[1:] - states[:-1], states[1:])]
    return torch.stack(lengths)
