"""Depth against breadth: is the next evaluation better spent on a longer run, or on another start?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.engine import Status
from homeostat.engine.nest import flatten
from homeostat.engine.norms import out_of_bounds, residuals
from homeostat.engine.problem import Problem
from homeostat.errors import InputError
from homeostat.inference.breadth import Breadth, widen
from homeostat.inference.stopped import Stopped
from homeostat.models.contract import as_model
from homeostat.models.starts import own_start
from homeostat.probes import estimates
from homeostat.probes.answers import judge_of
from homeostat.probes.columns import columns
from homeostat.probes.courses.signals import AnswerReader
from homeostat.probes.examples import ExampleBatch, Examples, batches_of, evaluating, groups_of, whole_number
from homeostat.probes.judge import Judge
from homeostat.probes.results import Estimate


@dataclass(frozen=True)
class FrontierPoint:
    """So many steps from so many starts."""

    depth: int
    starts: int
    exact: Estimate
    """Share of the examples whose chosen answer is right (Wilson)."""
    leading: bool
    """Whether no cheaper or equally dear point is more accurate."""

    @property
    def evaluations(self) -> int:
        """Of `step`, an example."""
        return self.depth * self.starts


@dataclass(frozen=True, repr=False)
class Frontier:
    """What `breadth_frontier` found; print it for a table."""

    model: str
    choose: str
    examples: int
    points: tuple[FrontierPoint, ...]
    """By evaluations; of equal ones the deepest first."""

    def at(self, depth: int, starts: int) -> FrontierPoint:
        """The point of this depth and breadth."""
        for point in self.points:
            if (point.depth, point.starts) == (depth, starts):
                return point
        raise KeyError(f"no point of {depth} steps from {starts} starts")

    def __repr__(self) -> str:
        lines = [
            [
                f"{point.evaluations:,}",
                f"{point.depth:,}",
                f"{point.starts}",
                f"{100 * point.exact.value:.1f} [{100 * point.exact.low:.1f}, {100 * point.exact.high:.1f}]",
                "best so far" if point.leading else "",
            ]
            for point in self.points
        ]
        return "\n".join(
            [
                f"{self.model}: depth against breadth, answers chosen by {self.choose}, n={self.examples}",
                *columns(["evaluations", "steps", "starts", "exact %", ""], lines, names=0),
                "Evaluations of step an example. 95 % intervals (Wilson); points are of the same examples.",
            ]
        )


def breadth_frontier(
    model: Any,
    examples: Examples | Mapping[str, Examples],
    *,
    depths: Sequence[int],
    starts: Sequence[int],
    breadth: Breadth | None = None,
    judge: Any = None,
    device: str | torch.device | None = None,
) -> Frontier:
    """Accuracy for every depth and every number of starts, on the same examples.

    Args:
        model: anything with the functions of the contract.
        examples: batches `(inputs, targets)`, or several such iterables by name; all of them together.
        depths: numbers of steps.
        starts: numbers of starts; the first is always the model's own.
        breadth: how answers are chosen, and where the other starts lie; its own number of starts is not used. The
            majority, from noise, when None.
        judge: has `correct`, and `answers` where a vote compares them; the model's own object when None.
        device: where to run; that of the model's parameters when None.

    Raises:
        InputError: no examples, impossible numbers, or nothing that says what is right.

    Example:
        >>> import homeostat as hs
        >>> model = hs.from_functions(  # ends at 1 or at -1, by the sign of its start
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.full_like(x, -0.1),
        ...     step=lambda z, x: torch.tanh(3 * z),
        ...     decode=lambda z, x: (z > 0).long(),
        ... )
        >>> class Right:
        ...     def correct(self, outputs, targets):
        ...         return (outputs == targets).all(1)
        >>> x = torch.zeros(8, 1)
        >>> found = breadth_frontier(model, [(x, x.long())], depths=[2, 8], starts=[1, 4], judge=Right())
        >>> [(p.evaluations, p.exact.value) for p in found.points if p.starts == 1]
        [(2, 1.0), (8, 1.0)]
    """
    chosen = judge_of(model, judge)
    if chosen.correct is None:
        raise InputError("nothing says what is right: give a judge with correct(outputs, targets)")
    depths = sorted({whole_number("depths", depth) for depth in depths})
    starts = sorted({whole_number("starts", number, most=4096) for number in starts})
    if not depths or not starts:
        raise InputError("give at least one depth and one number of starts")
    plan = replace(breadth or Breadth(1), starts=starts[-1])
    iterated = as_model(model, where="the model")
    right: dict[tuple[int, int], list[np.ndarray]] = {(d, s): [] for d in depths for s in starts}
    with evaluating(model, device) as where, torch.no_grad():
        for name, batches in groups_of(examples).items():
            for batch in batches_of(name, batches, where):
                for key, values in _one_batch(iterated, batch, chosen, plan, depths, starts):
                    right[key].append(values.cpu().numpy())
    return _frontier(iterated.name, plan.choose, {key: np.concatenate(parts) for key, parts in right.items()})


def _one_batch(
    model: Any, batch: ExampleBatch, judge: Judge, plan: Breadth, depths: Sequence[int], starts: Sequence[int]
) -> list[tuple[tuple[int, int], Tensor]]:
    """`(depth, starts)`, and which examples are right there."""
    inputs, targets, rows = batch.inputs, batch.targets, batch.rows
    context = model.encode(inputs)
    own = model.initial_state(context, own_start(rows))
    begun = plan.begin(own, lambda start: model.initial_state(context, start))
    wide = widen({"model": context, "asked": judge.asked_of(inputs)}, plan.starts)
    parts, context_layout = flatten(wide, "context")
    bare = context_layout.build(parts)
    problem = Problem.of(model.step, begun, wide["model"])
    step, state = problem.bind(problem.context), problem.state
    measured = problem.layout.measured()
    failed = torch.zeros(problem.rows, dtype=torch.bool, device=state[0].device)
    found: list[tuple[tuple[int, int], Tensor]] = []
    for taken in range(1, depths[-1] + 1):
        before, state = state, step(state)
        new = [state[i] for i in measured]
        _, sizes, relative = residuals([before[i] for i in measured], new)
        failed = failed | out_of_bounds(new, sizes)
        if taken not in depths:
            continue
        tree = problem.layout.build(state)
        status = torch.where(failed, int(Status.DIVERGED), int(Status.MAX_STEPS)).to(torch.int8)
        steps = torch.full_like(status, taken, dtype=torch.int64)
        reader = AnswerReader.of(model.decode(tree, bare["model"]), judge)
        stopped = Stopped.at(model, reader, tree, bare, steps, steps, relative, status, failed)
        for number in starts:
            some = torch.arange(number * rows, device=failed.device)
            asked = None if bare["asked"] is None else bare["asked"][:rows]
            runs = stopped.rows(some)
            run, _ = replace(plan, starts=number).choose_runs(runs, asked)
            picked = runs.rows(run * rows + torch.arange(rows, device=run.device))
            correct = judge.judged("correct", picked.outputs, targets, rows)
            if correct is None:
                raise InputError("examples need targets: without them nothing says what is right")
            found.append(((taken, number), correct & (picked.status != int(Status.DIVERGED))))
    return found


def _frontier(model: str, choose: str, right: Mapping[tuple[int, int], np.ndarray]) -> Frontier:
    points, best = [], -1.0
    order = sorted(right, key=lambda key: (key[0] * key[1], -key[0]))
    for depth, number in order:
        exact = estimates.share(right[depth, number])
        rivals = [right[d, s].mean() for d, s in order if d * s == depth * number]
        leading = exact.value > best and exact.value >= max(rivals)
        best = max(best, exact.value) if leading else best
        points.append(FrontierPoint(depth, number, exact, leading))
    return Frontier(model, choose, len(next(iter(right.values()))), tuple(points))
