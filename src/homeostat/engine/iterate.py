"""The loop itself: apply `step` until every row has been released by a monitor.

Released rows leave the batch together with their context, so that they cost nothing more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from homeostat.engine.nest import Layout, count_rows, flatten, select
from homeostat.errors import ContractError

StepFunction = Callable[[Any, Any], Any]


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


@dataclass(frozen=True)
class Problem:
    """An iterated map with a batch to run it on, as leaves and layouts."""

    step: StepFunction
    state: list[Tensor]
    layout: Layout
    context: list[Any]
    context_layout: Layout
    rows: int

    @classmethod
    def of(cls, step: StepFunction, state: Any, context: Any) -> "Problem":
        """Take apart what a caller gave.

        Raises:
            ContractError: leaves that are neither tensors nor marked, or whose rows do not match.
        """
        leaves, layout = flatten(state, "state")
        context_leaves, context_layout = flatten(context, "context")
        rows = count_rows(leaves, layout, context_leaves, context_layout)
        return cls(step, leaves, layout, context_leaves, context_layout, rows)

    def apply(self, state: Sequence[Tensor], context: Sequence[Any]) -> list[Tensor]:
        """One step on some rows, checked against the contract.

        Raises:
            ContractError: what came back does not match the state, or the state was changed in place: a residual would
                then compare the new state with itself.
        """
        versions = [None if x.is_inference() else x._version for x in state]
        result = self.step(self.layout.build(state), self.context_layout.build(context))
        for name, leaf, version in zip(self.layout.names, state, versions, strict=True):
            if version is not None and leaf._version != version:
                raise ContractError(f"step changed {name} in place; it must return a new tensor")
        return self.layout.read(result, state)

    def subset(self, index: Tensor) -> "Problem":
        """The same map on some of the rows."""
        state = select(self.state, self.layout, index)
        context = select(self.context, self.context_layout, index)
        return Problem(self.step, state, self.layout, context, self.context_layout, len(index))


def iterate(problem: Problem, *, max_steps: int, monitor: Monitor) -> tuple[list[Tensor], int]:
    """Run until every row is released or `max_steps` steps are taken.

    Returns:
        Final leaves in the order of the batch, and the number of row evaluations.
    """
    state, context = problem.state, problem.context
    rows = torch.arange(problem.rows, device=state[0].device)
    pieces: list[tuple[Tensor, list[Tensor]]] = []
    evaluations = 0
    for count in range(1, max_steps + 1):
        if len(rows) == 0:
            break
        after = problem.apply(state, context)
        evaluations += len(rows)
        with torch.no_grad():
            release = monitor.observe(count, rows, [x.detach() for x in state], [x.detach() for x in after], context)
        before, state = state, after
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
        monitor.keep(stay)
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
