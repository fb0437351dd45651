"""How far two ends of a run are the same: cosine and distance of their states, for cycles up to their phase.

A cycle that is reached from everywhere is one limit, though two runs may stand at different places of it. So where two
ends are cycles of one period p, one state is compared with all p states of the other's cycle, and the best one counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.engine.norms import row_rms
from homeostat.engine.problem import Problem
from homeostat.probes.ends import End

_COLUMNS = 65_536
"""Entries of a row that are taken to float64 at a time."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two ends of each example, `(rows,)` each. A failed row has cosine 0 and an infinite distance."""

    plain: Tensor
    """float64, cosine of the two last states as they are."""
    cosine: Tensor
    """float64, the same up to the phase of a cycle."""
    distance: Tensor
    """float64, RMS(a - b) / RMS(b), the largest over the leaves, b the first end; up to the phase of a cycle."""
    phased: Tensor
    """bool, whether both are cycles of one period."""
    evaluations: int


def compare(problem: Problem, first: End, second: End) -> Comparison:
    """Compare where `second` ended with where `first` did; `problem` is the map that both ran under."""
    measured = problem.layout.measured()
    failed = first.failed | second.failed
    ours, theirs = [second.leaves[i] for i in measured], [first.leaves[i] for i in measured]
    plain = cosines(ours, theirs).masked_fill(failed, 0)
    distance = _distances(ours, theirs).masked_fill(failed, float("inf"))
    best, evaluations = plain.clone(), 0
    phased = (first.period == second.period) & (first.period > 0) & ~failed
    rows = phased.nonzero().squeeze(1)
    if len(rows):
        ours, periods = [leaf[rows] for leaf in ours], first.period[rows]
        for lag, leaves in _onwards(problem, first, rows):
            theirs, open_ = [leaves[i] for i in measured], lag < periods
            found = torch.where(open_, cosines(ours, theirs), best[rows])
            best[rows] = torch.maximum(best[rows], found)
            apart = torch.where(open_, _distances(ours, theirs), distance[rows])
            distance[rows] = torch.minimum(distance[rows], apart)
            evaluations += len(rows)
    return Comparison(plain, best, distance, phased, evaluations)


def null_cosines(problem: Problem, end: End) -> tuple[Tensor, int]:
    """Mean cosine of each example's end with those of the *other* examples: what a cosine is worth nothing here.

    Returns:
        `(rows,)` float64, up to the phase of cycles of one period; NaN for a failed row, and for one without another
        to compare with. The number of row evaluations.
    """
    measured = problem.layout.measured()
    ours = [end.leaves[i] for i in measured]
    best, evaluations = _all_cosines(ours, ours), 0
    rows = ((end.period > 0) & ~end.failed).nonzero().squeeze(1)
    if len(rows) > 1:
        periods = end.period[rows]
        same = periods[:, None] == periods[None, :]
        mine = [leaf[rows] for leaf in ours]
        for lag, leaves in _onwards(problem, end, rows):
            found = _all_cosines(mine, [leaves[i] for i in measured])
            now = best[rows[:, None], rows[None, :]]
            best[rows[:, None], rows[None, :]] = torch.where(same & (lag < periods), torch.maximum(now, found), now)
            evaluations += len(rows)
    others = ~end.failed[:, None] & ~end.failed[None, :]
    others.fill_diagonal_(False)
    return best.masked_fill(~others, 0).sum(1) / others.sum(1), evaluations  # 0/0 is NaN


def phases(problem: Problem, end: End) -> list[tuple[list[Tensor], Tensor]]:
    """All states of the batch's limits, as leaves, each with the rows that it is one of the limit's states for: the end
    itself for all rows, and what follows it for the rows that end in a cycle.
    """
    every = torch.ones(problem.rows, dtype=torch.bool, device=end.failed.device)
    found = [(end.leaves, every)]
    rows = ((end.period > 0) & ~end.failed).nonzero().squeeze(1)
    if len(rows):
        for lag, leaves in _onwards(problem, end, rows):
            full = [old.index_copy(0, rows, new) for old, new in zip(end.leaves, leaves, strict=True)]
            found.append((full, lag < end.period))
    return found


def cosines(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """`(rows,)` float64, cosine over all leaves, flattened; 1 for equal rows, and 0 where one of them is zero.

    Example:
        >>> cosines([torch.tensor([[1.0, 0.0], [0.0, 0.0]])], [torch.tensor([[1.0, 1.0], [0.0, 0.0]])])
        tensor([0.7071, 1.0000], dtype=torch.float64)
    """
    product, size_a, size_b = (a[0].new_zeros(len(a[0]), dtype=torch.float64) for _ in range(3))
    equal = torch.ones(len(a[0]), dtype=torch.bool, device=a[0].device)
    for x, y in _pieces(a, b):  # in float64, since near 1 the digits count
        product += (x * y).sum(1)
        size_a += x.square().sum(1)
        size_b += y.square().sum(1)
        equal &= (x == y).all(1)
    lengths = size_a.sqrt() * size_b.sqrt()
    found = torch.where(lengths > 0, product / lengths, 0).clamp(-1, 1)
    return torch.where(equal, 1, found)


def _all_cosines(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """`(rows, rows)`, of every row of `a` with every row of `b`."""
    rows = len(a[0])
    product = a[0].new_zeros(rows, rows, dtype=torch.float64)
    size_a, size_b = (a[0].new_zeros(rows, dtype=torch.float64) for _ in range(2))
    for x, y in _pieces(a, b):
        product += x @ y.T
        size_a += x.square().sum(1)
        size_b += y.square().sum(1)
    lengths = size_a.sqrt()[:, None] * size_b.sqrt()[None, :]
    return torch.where(lengths > 0, product / lengths, 0).clamp(-1, 1)


def _pieces(a: Sequence[Tensor], b: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in zip(a, b, strict=True):
        flat_x, flat_y = x.reshape(len(x), -1), y.reshape(len(y), -1)
        for low in range(0, flat_x.shape[1], _COLUMNS):
            yield flat_x[:, low : low + _COLUMNS].double(), flat_y[:, low : low + _COLUMNS].double()


def _distances(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """RMS(a - b) / RMS(b), the largest over the leaves; 0/0 is 0."""
    ratios = []
    for x, y in zip(a, b, strict=True):
        apart = row_rms(x - y).double()
        ratios.append(torch.where(apart == 0, 0, apart / row_rms(y).double()))
    return torch.stack(ratios).amax(0)


def _onwards(problem: Problem, end: End, rows: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    """The states of these rows 1, 2, ... steps after their end, as far as the longest period needs them."""
    part = Problem(
        problem.step, end.leaves, problem.layout, problem.context, problem.context_layout, problem.rows
    ).subset(rows)
    state, step = part.state, part.bind(part.context)
    for lag in range(1, int(end.period[rows].max())):
        with torch.no_grad():
            state = step(state)
        yield lag, state
