"""Inner objectives: a loss for each row of parameters, and its gradient."""

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
    if torch.compiler.is_compiling() or is_transformed():

        def total(p: Any) -> tuple[Tensor, Tensor]:
            values = objective(p, context)
            return values.sum(), values

        gradient, values = torch.func.grad(total, has_aux=True)(parameters)
        return values.detach(), gradient
    # Plain autograd: the same, without what a transform adds to every operation.
    again = torch.is_grad_enabled()
    leaves, spec = pytree.tree_flatten(parameters)
    with torch.enable_grad():
        at = [p if again and p.requires_grad else p.detach().requires_grad_() for p in leaves]
        values = objective(pytree.tree_unflatten(at, spec), context)
        if not values.requires_grad:  # the parameters are not in it
            return values, pytree.tree_unflatten([torch.zeros_like(x) for x in leaves], spec)
        found = torch.autograd.grad(values.sum(), at, create_graph=again, materialize_grads=True)
    return values.detach(), pytree.tree_unflatten(list(found), spec)
