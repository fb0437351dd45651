"""A model with a batch to check it on, and the five functions as a probe calls them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine.nest import Shared
from homeostat.engine.problem import Problem
from homeostat.models.conformance.differences import Difference
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Own, Start


class Wrong(Exception):
    """What a check found to be wrong, in words."""

    def __init__(self, message: str, difference: Difference | None = None) -> None:
        super().__init__(message)
        self.difference = difference


class Untested(Exception):
    """Why a check could not be made."""


@dataclass
class Case:
    """What checks share; earlier ones fill in what later ones need."""

    subject: Any
    """What was handed in."""
    model: IteratedModel
    inputs: Any
    targets: Any
    judge: Any
    rows: int
    steps: int
    seed: int
    rtol: float | None
    context: Any = None
    state: Any = None
    later: Any = None
    """The state after a few steps."""
    random: bool = False
    """`step` gives something else each time."""
    unsure: set[str] = field(default_factory=set)
    """Functions that failed, so that what needs them is not tested."""

    def start(self, context: Any, rows: Sequence[int], start: Start | None = None) -> Any:
        """`initial_state`, told which examples these are, as every probe does."""
        return self.model.initial_state(context, (Own() if start is None else start).seeded(self.seed, tuple(rows)))

    def step(self, state: Any, context: Any) -> Any:
        """One step, as the engine takes it: without marks, and checked against the state that it was given."""
        problem = Problem.of(self.model.step, state, context)
        leaves = problem.apply(problem.state, problem.context)
        return problem.layout.build(leaves, marks=True)

    def read(self, name: str, state: Any, context: Any) -> Any:
        """`decode` or `score`, given what they are given in a run."""
        problem = Problem.of(self.model.step, state, context)
        bare = problem.layout.build(problem.state), problem.context_layout.build(problem.context)
        return getattr(self.model, name)(*bare)

    def need(self, *functions: str) -> None:
        """Give up where a function that a check builds on has failed already."""
        for function in functions:
            if function in self.unsure:
                raise Untested(f"needs {function}, which failed")


def rows_in(inputs: Any) -> int | None:
    """Rows of a batch of inputs; None where its tensors do not agree, or there are none."""
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    counts = {len(leaf) for leaf in leaves}
    return counts.pop() if len(counts) == 1 else None


def shared_names(context: Any) -> set[str]:
    """Names of the leaves that are marked `Shared`."""
    pairs = pytree.tree_flatten_with_path(context, is_leaf=lambda node: isinstance(node, Shared))[0]
    return {"context" + pytree.keystr(path) for path, node in pairs if isinstance(node, Shared)}


def examples(count: int) -> str:
    return "1 example" if count == 1 else f"{count} examples"


def said(error: Exception) -> str:
    """An exception in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
