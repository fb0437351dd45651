"""What is kept on the way to a solution, where a caller asks for it: the best iterate, and the course of residuals."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.record import Record, Table
from homeostat.engine.nest import merge_rows, select
from homeostat.engine.problem import Problem


@dataclass(frozen=True)
class Watch:
    """What to keep, and how often to look."""

    best: bool = False
    """Return the iterate with the lowest residual, not the last."""
    trace: bool = False
    """Keep the residual of every step."""
    inverse: bool = False
    """Keep Broyden's estimate of the inverse Jacobian."""
    check: bool = False
    """Whether rows hear of one another is looked at when the first of them are finished; see `independence`."""
    give_up: bool = False
    """Let go of rows whose residual hardly falls, with the status MAX_STEPS: another method waits for them."""
    sync_every: int | None = None
    """Steps between looks at the stopping test; None: chosen on the way."""


class Observer:
    """Follows a run, step by step."""

    def __init__(self, watch: Watch, problem: Problem) -> None:
        self._watch, self._problem = watch, problem
        self.active = watch.best or watch.trace
        self._course: list[tuple[int, NDArray[np.int64], Table]] = []
        self._best = [leaf.detach() for leaf in problem.state]
        self._lowest = np.full(problem.rows, np.inf)

    def observe(self, record: Record, rows: NDArray[np.int64], ended: NDArray[np.int64]) -> None:
        """Some steps of the rows that are in the batch.

        Args:
            record: the steps.
            rows: places of the rows among all examples.
            ended: number of the record's steps that count for each row: those after it was finished do not.
        """
        with torch.no_grad(), np.errstate(all="ignore"):
            changes, sizes = record.exact_norms()
            ratios = [np.where(c == 0, 0.0, c / s) for c, s in zip(changes, sizes, strict=True)]
            relative = np.max(ratios, 0)
        relative[np.arange(record.steps)[:, None] >= ended] = np.nan
        if self._watch.trace:
            self._course.append((record.first, rows, relative))
        if self._watch.best:
            self._keep_best(record, rows, np.where(np.isfinite(relative), relative, np.inf))

    def _keep_best(self, record: Record, rows: NDArray[np.int64], relative: Table) -> None:
        at = relative.argmin(0)
        lowest = relative.min(0)
        better = lowest < self._lowest[rows]
        self._lowest[rows[better]] = lowest[better]
        device = self._best[0].device
        for step in np.unique(at[better]):
            chosen = better & (at == step)
            source = select(
                record.after[step], self._problem.layout, torch.from_numpy(np.flatnonzero(chosen)).to(device)
            )
            self._best = merge_rows(self._best, torch.from_numpy(rows[chosen]).to(device), source)

    def best(self, leaves: list[Tensor], residual: NDArray[np.float64]) -> tuple[list[Tensor], NDArray[np.float64]]:
        """The best iterates in place of the last, and their residuals; rows that have none keep what they have."""
        if not self._watch.best:
            return leaves, residual
        found = np.isfinite(self._lowest)
        at = torch.from_numpy(np.flatnonzero(found)).to(leaves[0].device)
        return (
            merge_rows(leaves, at, select(self._best, self._problem.layout, at)),
            np.where(found, self._lowest, residual),
        )

    def trace(self) -> Tensor | None:
        """`(rows, steps)`, the relative residual of every step; NaN after a row was finished."""
        if not self._watch.trace:
            return None
        length = max((first + len(table) for first, _, table in self._course), default=0)
        course = np.full((length, self._problem.rows), np.nan)
        for first, rows, table in self._course:
            course[first : first + len(table), rows] = table
        return torch.from_numpy(course.T.copy())
