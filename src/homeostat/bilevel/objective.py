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
    leaves, spec = ([parameters], None) if isinstance(parameters, Tensor) else pytree.tree_flatten(parameters)
    graphed = torch.is_grad_enabled()
    if is_transformed() or (graphed and not all(x.requires_grad for x in leaves)):
        # Slower, but there is no other way under a transform; and no graph of its own is left where nobody needs one.
        return torch.func.grad(lambda p: objective(p, context).sum())(parameters)
    if not graphed:
        leaves = [x.detach().requires_grad_() for x in leaves]
    with torch.enable_grad():
        total = objective(leaves[0] if spec is None else pytree.tree_unflatten(leaves, spec), context).sum()
    if total.requires_grad:
        found = list(torch.autograd.grad(total, leaves, create_graph=graphed, materialize_grads=True))
    else:
        found = [torch.zeros_like(x) for x in leaves]
    return found[0] if spec is None else pytree.tree_unflatten(found, spec)
