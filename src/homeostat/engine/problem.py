"""An iterated map with a batch to run it on: what every method of the engine works with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from homeostat.engine.nest import Layout, count_rows, flatten, select
from homeostat.errors import ContractError

StepFunction = Callable[[Any, Any], Any]


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
