"""Inner objectives: a loss for each row of parameters, and its gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Objective = Callable[[Any, Any], Tensor]
"""`(parameters, context) -> (rows,)`: parameters are a tensor or a nest of tensors with a row for each problem."""


def row_gradients(objective: Objective, parameters: Any, context: Any) -> Any:
    """The gradient of every row's loss with respect to its own parameters, in their structure.

    The rows are problems of their own, so that the gradient of the sum holds the gradient of each. It can be
    differentiated again, with respect to what `objective` closes over too.

    Example:
        >>> row_gradients(lambda p, c: 0.5 * ((p - c) ** 2).sum(1), torch.zeros(2, 3), torch.ones(2, 3))
        tensor([[-1., -1., -1.],
                [-1., -1., -1.]])
    """
    return torch.func.grad(lambda p: objective(p, context).sum())(parameters)
