"""Inner objectives: a loss for each row of parameters, and its gradient."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine.backward.functional import is_transformed

Objective = Callable[[Any, Any], Tensor]
"""`(parameters, context) -> (rows,)`: parameters are a tensor or a nest of tensors with a row for each problem."""


@dataclass(frozen=True)
class KnownGradient:
    """An objective whose gradient is written out, `(parameters, context) -> ` the structure of the parameters.

    Example:
        >>> square = KnownGradient(lambda p, c: 0.5 * p.square().sum(1), lambda p, c: p)
        >>> row_gradients(square, torch.tensor([[3.0]]), None)
        tensor([[3.]])
    """

    objective: Objective
    gradient: Callable[[Any, Any], Any]

    def __call__(self, parameters: Any, context: Any) -> Tensor:
        return self.objective(parameters, context)


class RowObjective(ABC):
    """An objective that can be had for some of its rows, which spares a search the rows that have found their step, and
    that may know a shorter way to its gradient than autograd.
    """

    @abstractmethod
    def __call__(self, parameters: Any, context: Any) -> Tensor:
        """`(rows,)` losses."""

    @abstractmethod
    def rows(self, context: Any, index: Tensor) -> Any:
        """The context of the rows `index`, `(k,)` int64; a row may be asked for several times."""

    def values_and_gradients(self, parameters: Any, context: Any) -> tuple[Tensor, Any] | None:
        """`(rows,)` losses and their gradient, made of operations that can be differentiated again; None leaves it to
        autograd.
        """
        return None


def row_gradients(objective: Objective, parameters: Any, context: Any) -> Any:
    """The gradient of every row's loss with respect to its own parameters, in their structure.

    The rows are problems of their own, so that the gradient of the sum holds the gradient of each. It can be
    differentiated again, with respect to what `objective` closes over too.

    Example:
        >>> row_gradients(lambda p, c: 0.5 * ((p - c) ** 2).sum(1), torch.zeros(2, 3), torch.ones(2, 3))
        tensor([[-1., -1., -1.],
                [-1., -1., -1.]])
    """
    if isinstance(objective, KnownGradient):
        return objective.gradient(parameters, context)
    return row_values_and_gradients(objective, parameters, context)[1]


def row_values_and_gradients(objective: Objective, parameters: Any, context: Any) -> tuple[Tensor, Any]:
    """Every row's loss, `(rows,)` and without a graph, and its gradient as `row_gradients` gives it.

    Example:
        >>> row_values_and_gradients(lambda p, c: 0.5 * ((p - c) ** 2).sum(1), torch.zeros(2, 3), torch.ones(2, 3))[0]
        tensor([1.5000, 1.5000])
    """
    if isinstance(objective, KnownGradient):
        return objective(parameters, context).detach(), objective.gradient(parameters, context)
    if isinstance(objective, RowObjective):
        known = objective.values_and_gradients(parameters, context)
        if known is not None:
            return known[0].detach(), known[1]
    # A lone tensor is spared the taking apart and putting together, which costs more than a small loss.
    leaves, spec = ([parameters], None) if isinstance(parameters, Tensor) else pytree.tree_flatten(parameters)
    graphed = torch.is_grad_enabled()
    if is_transformed() or (graphed and not all(x.requires_grad for x in leaves)):
        # Slower, but there is no other way under a transform; and no graph of its own is left where nobody needs one.

        def total(p: Any) -> tuple[Tensor, Tensor]:
            values = objective(p, context)
            return values.sum(), values

        gradient, values = torch.func.grad(total, has_aux=True)(parameters)
        return values.detach(), gradient
    if not graphed:
        leaves = [x.detach().requires_grad_() for x in leaves]
    with torch.enable_grad():
        values = objective(leaves[0] if spec is None else pytree.tree_unflatten(leaves, spec), context)
    if values.requires_grad:
        ones = torch.ones_like(values)
        found = list(torch.autograd.grad(values, leaves, ones, create_graph=graphed, materialize_grads=True))
    else:
        found = [torch.zeros_like(x) for x in leaves]
    return values.detach(), found[0] if spec is None else pytree.tree_unflatten(found, spec)
