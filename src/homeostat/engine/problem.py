"""An iterated map with a batch to run it on: what every method of the engine works with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from homeostat.engine.nest import Layout, append, count_rows, flatten, select
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

    @classmethod
    def together(cls, problems: "Sequence[Problem]") -> "Problem":
        """The rows of problems with the same layouts and shapes as one batch; what is shared is the first one's."""
        first = problems[0]
        state = append([problem.state for problem in problems], first.layout)
        context = append([problem.context for problem in problems], first.context_layout)
        rows = sum(problem.rows for problem in problems)
        return cls(first.step, state, first.layout, context, first.context_layout, rows)

    def apply(self, state: list[Tensor], context: Sequence[Any]) -> list[Tensor]:
        """One step on some rows, checked against the contract; see `bind`."""
        return self.bind(context)(state)

    def bind(self, context: Sequence[Any]) -> Callable[[list[Tensor]], list[Tensor]]:
        """One step on some rows as a function of the state's leaves alone, checked against the contract.

        Raises:
            ContractError: (the function) what came back does not match the state, or the state was changed in place: a
                residual would then compare the new state with itself.
        """
        step, layout, nest = self.step, self.layout, self.context_layout.build(context)
        if layout.lone:

            def apply_lone(state: list[Tensor]) -> list[Tensor]:
                old = state[0]
                version = None if old.is_inference() else old._version
                new = step(old, nest)
                if version is not None and old._version != version:
                    raise _changed_in_place(layout.names[0])
                return layout.read(new, state)

            return apply_lone

        def apply(state: list[Tensor]) -> list[Tensor]:
            versions = [None if x.is_inference() else x._version for x in state]
            result = step(layout.build(state), nest)
            for name, leaf, version in zip(layout.names, state, versions, strict=True):
                if version is not None and leaf._version != version:
                    raise _changed_in_place(name)
            return layout.read(result, state)

        return apply

    def subset(self, index: Tensor) -> "Problem":
        """The same map on some of the rows."""
        state = select(self.state, self.layout, index)
        context = select(self.context, self.context_layout, index)
        return Problem(self.step, state, self.layout, context, self.context_layout, len(index))


def _changed_in_place(name: str) -> ContractError:
    return ContractError(f"step changed {name} in place; it must return a new tensor")
