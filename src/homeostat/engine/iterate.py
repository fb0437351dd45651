"""The observed loop: apply `step` until every row has been released by a monitor that sees every state.

Released rows leave the batch together with their context, so that they cost nothing more.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from homeostat.engine.forward.independence import check_rows
from homeostat.engine.forward.looks import is_due, took
from homeostat.engine.nest import select
from homeostat.engine.problem import Problem


class Release(NamedTuple):
    """Rows that leave after a step. Both masks run over the rows that are still in the batch."""

    rows: Tensor
    """`(active,)` bool: these rows are finished."""
    revert: Tensor | None = None
    """`(active,)` bool, a part of `rows`: these keep the state from before the step."""


class Monitor(Protocol):
    """Watches an iteration and says which rows are finished. Runs without gradients."""

    def observe(
        self, step: int, rows: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], context: Sequence[Any]
    ) -> Release | None:
        """Called after every step.

        Args:
            step: number of steps taken so far, from 1.
            rows: `(active,)` int64, which examples of the batch the leaves belong to.
            before, after: leaves of the state before and after this step, `(active, ...)`.
            context: leaves of the context of these rows.

        Returns:
            Rows to release, or None to go on with all of them.
        """
        ...

    def keep(self, index: Tensor) -> None:
        """Rows have left: `index` are the positions, among the active rows so far, of those that stay."""
        ...


def iterate(problem: Problem, *, max_steps: int, monitor: Monitor, check: bool = False) -> tuple[list[Tensor], int]:
    """Run until every row is released or `max_steps` steps are taken.

    Args:
        problem: the map, its start and context.
        max_steps: most steps.
        monitor: watches, and releases rows.
        check: look whether rows hear of one another, where that is due; see `independence`.

    Returns:
        Final leaves in the order of the batch, and the number of row evaluations, the check not counted.

    Raises:
        ContractError: rows depend on one another.
    """
    if check:
        check = is_due(problem)
        problem = replace(problem, compared=check)
    state, context = problem.state, problem.context
    rows = torch.arange(problem.rows, device=state[0].device)
    pieces: list[tuple[Tensor, list[Tensor]]] = []
    evaluations = 0
    step = problem.bind(context)
    for count in range(1, max_steps + 1):
        if len(rows) == 0:
            break
        after = step(state)
        evaluations += len(rows)
        with torch.no_grad():
            release = monitor.observe(count, rows, [x.detach() for x in state], [x.detach() for x in after], context)
        before, state = state, after
        if check and (release is not None or count == max_steps):
            whole = release is None or bool(release.rows.all())
            check_rows(problem, before, after, context, noise=whole)
            check = False
        if release is None:
            continue
        for mask, source in _outgoing(release, before, after):
            index = mask.nonzero().squeeze(1)
            if len(index):
                pieces.append((rows[index], select(source, problem.layout, index)))
        stay = (~release.rows).nonzero().squeeze(1)
        rows = rows[stay]
        state = select(state, problem.layout, stay)
        if len(rows):
            context = select(context, problem.context_layout, stay)
            step = problem.bind(context)
        monitor.keep(stay)
    took(problem, evaluations // max(problem.rows, 1))
    pieces.append((rows, state))
    if len(pieces) == 1:
        return list(state), evaluations
    order = torch.cat([index for index, _ in pieces]).argsort()
    leaves = [torch.cat([piece[i] for _, piece in pieces]).index_select(0, order) for i in range(len(state))]
    return leaves, evaluations


def _outgoing(release: Release, before: list[Tensor], after: list[Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
    if release.revert is None:
        return [(release.rows, after)]
    return [(release.rows & ~release.revert, after), (release.revert, before)]
