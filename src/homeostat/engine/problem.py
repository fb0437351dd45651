"""An iterated map with a batch to run it on: what every method of the engine works with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils import _pytree as pytree

from homeostat.engine.closures import explain, explain_dtypes
from homeostat.engine.in_place import Snapshot
from homeostat.engine.nest import Layout, append, count_rows, flatten, select
from homeostat.engine.step_function import StepFunction, with_context
from homeostat.errors import ContractError

BoundStep = Callable[[list[Tensor]], list[Tensor]]
"""From leaves of a state to leaves of the next."""


@dataclass(frozen=True)
class Problem:
    """An iterated map with a batch to run it on, as leaves and layouts."""

    step: Callable[[Any, Any], Any]
    state: list[Tensor]
    layout: Layout
    context: list[Any]
    context_layout: Layout
    rows: int
    whole: int | None = -1
    """Rows of the batch that these were taken from; -1: they are all of it, None: rows come and go."""
    own: bool = False
    """A map of the engine's own: nobody wants to hear of what it closes over."""
    compared: bool = True
    """Whether what a step must leave alone is held against what it was, by value, also where changes are counted."""

    @classmethod
    def of(cls, step: StepFunction, state: Any, context: Any) -> "Problem":
        """Take apart what a caller gave.

        Raises:
            ContractError: leaves that are neither tensors nor marked, or whose rows do not match; a step that takes
                other arguments than the state, and a context if there is one.
            TypeError: a step that cannot be called.
        """
        step = with_context(step, context)
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
        return cls(first.step, state, first.layout, context, first.context_layout, rows, whole=None)

    def apply(self, state: list[Tensor], context: Sequence[Any]) -> list[Tensor]:
        """One step on some rows, checked against the contract; see `bind`. For several steps bind once."""
        return self.bind(context)(state)

    def bind(self, context: Sequence[Any], *, compare: bool = True, returned: set[int] | None = None) -> BoundStep:
        """One step on some rows as a function of the state's leaves alone, checked against the contract.

        What a step must leave alone, its state and its context, is held against what it was by PyTorch's own count of
        changes. Where `compared`, or where there is no such count, it is compared by value at the first call, and again
        when a step returns the very tensor that it was given and did not before.

        Args:
            context: leaves of the context of these rows.
            compare: compare by value at the first call.
            returned: leaves that are known to come back as they were given, and are what they were; others are added.

        Raises:
            ContractError: (the function) what came back does not match the state, or the state or context was changed
                in place: a residual would then compare the new state with itself.
        """
        layout, nest = self.layout, self.context_layout.build(context)
        returned = set() if returned is None else returned
        compare = compare and (self.compared or any(x.is_inference() for x in self.state))
        bind = self._bind_lone if layout.lone else self._bind_nest
        return bind(context, nest, compare, returned)

    def subset(self, index: Tensor) -> "Problem":
        """The same map on some of the rows."""
        state = select(self.state, self.layout, index)
        context = select(self.context, self.context_layout, index)
        whole = self.rows if self.whole == -1 else self.whole
        return replace(self, state=state, context=context, rows=len(index), whole=whole)

    def _bind_lone(self, context: Sequence[Any], nest: Any, compare: bool, returned: set[int]) -> BoundStep:
        step, layout, first = self.step, self.layout, compare

        def apply(state: list[Tensor]) -> list[Tensor]:
            nonlocal first
            old = state[0]
            if first:
                first = False
                return self._compared(apply, state, context, returned)
            version = None if old.is_inference() else old._version
            try:
                new = step(old, nest)
                if version is not None and old._version != version:
                    raise _changed_in_place(layout.names[0])
                after = layout.read(new, state)
            except Exception as error:
                told = self._explained(error, state, context)
                if told is error:
                    raise
                raise told from error
            if ((new is old and self.compared) or version is None) and 0 not in returned and _is_same(after[0], old):
                self._compared(apply, state, context, returned)
            return after

        return apply

    def _bind_nest(self, context: Sequence[Any], nest: Any, compare: bool, returned: set[int]) -> BoundStep:
        step, layout, first = self.step, self.layout, compare

        def apply(state: list[Tensor]) -> list[Tensor]:
            nonlocal first
            if first:
                first = False
                return self._compared(apply, state, context, returned)
            versions = [None if x.is_inference() else x._version for x in state]
            try:
                result = step(layout.build(state), nest)
                for name, leaf, version in zip(layout.names, state, versions, strict=True):
                    if version is not None and leaf._version != version:
                        raise _changed_in_place(name)
                after = layout.read(result, state)
            except Exception as error:
                told = self._explained(error, state, context)
                if told is error:
                    raise
                raise told from error
            doubtful = [i for i, version in enumerate(versions) if self.compared or version is None]
            if any(_is_same(after[i], state[i]) for i in doubtful if i not in returned):
                self._compared(apply, state, context, returned)
            return after

        return apply

    def _compared(
        self, apply: BoundStep, state: list[Tensor], context: Sequence[Any], returned: set[int]
    ) -> list[Tensor]:
        """One call, with what it was given held against what it was before."""
        own, shared = list(zip(self.layout.names, state, strict=True)), []
        for name, kind, leaf in zip(self.context_layout.names, self.context_layout.kinds, context, strict=True):
            if kind != "shared":
                own.append((name, leaf))
            elif leaf is not None:
                shared += [(name, x) for x in pytree.tree_leaves(leaf) if isinstance(x, Tensor)]
        snapshot = Snapshot(own, shared)
        known = set(returned)
        returned.update(range(len(state)))  # one look is enough
        after = apply(state)
        changed = snapshot.changed()
        if changed is not None:
            raise _changed_in_place(changed)
        returned.intersection_update(known | {i for i, new in enumerate(after) if _is_same(new, state[i])})
        return after

    def _explained(self, error: Exception, state: list[Tensor], context: Sequence[Any]) -> Exception:
        """The error to raise for one that the step raised on some rows."""
        if self.own:
            return error
        names = (*self.layout.names, *self.context_layout.names)
        told = explain_dtypes(error, self.step, list(zip(names, (*state, *context), strict=True)))
        rows, whole = len(state[0]), self.rows if self.whole == -1 else self.whole
        return told if told is not error or rows == whole else explain(error, self.step, rows, whole)


def _is_same(new: Tensor, old: Tensor) -> bool:
    """Whether a step handed back its input. Views of it count where nobody counts changes."""
    if new is old:
        return True
    return old.is_inference() and not is_functorch_wrapped_tensor(new) and new.data_ptr() == old.data_ptr()


def _changed_in_place(name: str) -> ContractError:
    what = "return a new tensor" if name.startswith("state") else "leave its context as it is"
    return ContractError(f"step changed {name} in place; it must {what}")
