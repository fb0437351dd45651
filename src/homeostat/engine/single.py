"""One problem, whatever the shape of its state: a batch of one row, of which neither the step nor the caller hears."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine.nest import Carry, Shared, is_mark
from homeostat.engine.problem import Problem
from homeostat.engine.step_function import StepFunction, with_context
from homeostat.engine.stop import Stop
from homeostat.errors import ContractError


class OneProblem:
    """A step on a state in the caller's own shapes, as one on a batch with a single row.

    Attributes:
        step: what the caller gave, with two arguments.
    """

    def __init__(self, step: Callable[[Any, Any], Any]) -> None:
        self.step = step

    @property
    def __wrapped__(self) -> Callable[[Any, Any], Any]:
        return self.step

    def __call__(self, state: Any, context: Any) -> Any:
        return _each(_as_row, self.step(without_row(state), context))


def one_row(step: StepFunction, state: Any, context: Any, stop: Stop) -> tuple[OneProblem, Any, Any]:
    """Step, state and context of a batch whose only row is the whole state, and whose context is shared as it is.

    Raises:
        ContractError: a stop with one number an example.
    """
    for name, value in (("rtol", stop.rtol), ("max_steps", stop.max_steps)):
        if isinstance(value, Tensor):
            raise ContractError(f"batched=False solves one problem: stop.{name} must be a number, not a tensor")
    shared = pytree.tree_map(_share, context, is_leaf=is_mark)
    return OneProblem(with_context(step, context)), pytree.tree_map(_as_row, state, is_leaf=is_mark), shared


def named_as_one(problem: Problem) -> Problem:
    """The problem of a single row, whose errors speak of the caller's own shapes."""
    return replace(problem, layout=replace(problem.layout, single=True))


def without_row(nest: Any) -> Any:
    """A nest of leaves with a single row in the caller's own shapes."""
    return _each(_without_row, nest)


def _each(change: Callable[[Any], Any], nest: Any) -> Any:
    """`pytree.tree_map` for what states mostly are, at a fraction of its cost: it is taken at every step."""
    if isinstance(nest, Tensor):
        return change(nest)
    kind = type(nest)
    if kind is tuple:
        return tuple([_each(change, x) for x in nest])
    if kind is list:
        return [_each(change, x) for x in nest]
    if kind is dict:
        return {key: _each(change, x) for key, x in nest.items()}
    return pytree.tree_map(change, nest, is_leaf=is_mark)


def _as_row(leaf: Any) -> Any:
    if isinstance(leaf, Carry):
        return Carry(_as_row(leaf.value))
    return leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf


def _without_row(leaf: Any) -> Any:
    if isinstance(leaf, Carry):
        return Carry(_without_row(leaf.value))
    return leaf.squeeze(0) if isinstance(leaf, Tensor) else leaf


def _share(leaf: Any) -> Any:
    if leaf is None or isinstance(leaf, Shared):
        return leaf
    return Shared(leaf.value if isinstance(leaf, Carry) else leaf)
