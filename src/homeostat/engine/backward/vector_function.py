"""What a caller knows about the adjoint system, a start or a preconditioner, as the solvers want to have it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.closures import explain
from homeostat.engine.nest import describe, select
from homeostat.engine.norms import finite_rows
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError


class VectorFunction:
    """A function from a vector in the structure of the state, and the context, to another such vector.

    Args:
        name: of the option, for errors.
        function: what the caller gave.
        problem: whose rows the vectors belong to.
    """

    def __init__(self, name: str, function: Callable[[Any, Any], Any], problem: Problem) -> None:
        self._name, self._function, self._problem = name, function, problem
        self._asked: Tensor | None = None
        self._context: Any = None

    def __call__(self, rows: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The result for some rows, one per measured leaf.

        Raises:
            ContractError: another structure, shape, dtype or device, or a row that is finite no longer.
        """
        problem, layout = self._problem, self._problem.layout
        if rows is not self._asked:
            context = select(problem.context, problem.context_layout, rows)
            self._context, self._asked = problem.context_layout.build(context), rows
        leaves: list[Tensor | None] = [None] * len(layout.kinds)  # carried leaves have no gradient
        for i, x in zip(layout.measured(), vectors, strict=True):
            leaves[i] = x
        try:
            result = self._function(layout.build(leaves), self._context)
        except Exception as error:
            if len(rows) == problem.rows:
                raise
            told = explain(error, self._function, len(rows), problem.rows, self._name)
            if told is error:
                raise
            raise told from error
        try:
            found = layout.spec.flatten_up_to(result)
        except ValueError:
            raise ContractError(f"{self._name} must return the structure of the state that it is given") from None
        found = [found[i] for i in layout.measured()]
        bad = torch.zeros_like(rows, dtype=torch.bool)
        for i, new, old in zip(layout.measured(), found, vectors, strict=True):
            leaf = layout.names[i].replace("state", "vector", 1)
            if describe(new) != describe(old):
                raise ContractError(f"{self._name} changed {leaf}: {describe(old)} became {describe(new)}")
            bad |= ~finite_rows(new)
        if bool(bad.any()):
            bad &= torch.stack([finite_rows(x) for x in vectors]).all(0)
            if bool(bad.any()):
                raise ContractError(f"{self._name} returned a vector that is not finite for one that is")
        return found
