"""An inner problem: a loss, an optimiser's step, and the engine that iterates one on the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from homeostat.bilevel.objective import KnownGradient, Objective, row_gradients
from homeostat.bilevel.step import InnerStep
from homeostat.engine import CG, Carry, Implicit, Picard, Shared, Solution, Stop, solve
from homeostat.engine.gradients import Gradient
from homeostat.engine.methods import Method
from homeostat.engine.stop import check_option
from homeostat.errors import ContractError

Loss = Callable[[Any, Any], Tensor]
"""`(parameters, context) -> scalar`: the loss of one problem, without a batch dimension."""


@dataclass(frozen=True)
class InnerProblem:
    """A batch of minimisation problems, solved and differentiated by `homeostat.solve`.

    A row is a problem of its own (a task, a fold, a value of a hyperparameter): it stops by itself, and its answer does
    not depend on who shares its batch.

    Args:
        loss: `(parameters, context) -> scalar` of one problem, taken over the batch with `torch.func.vmap`: no
            data-dependent control flow, no `.item()`. With `batched`, `(parameters, context) -> (rows,)` of a batch, in
            which no row may depend on another.
        step: the optimiser.
        batched: whether `loss` takes a batch.
        loss_gradient: the gradient of `loss` with respect to the parameters, written out, with the same arguments;
            saves time where the loss is small. It is compared with the loss at the end of each solve. None: autograd.

    Gradients of a solution reach the context and what `loss` closes over.

    Example:
        >>> import homeostat as hs
        >>> from homeostat.bilevel import GradientDescent
        >>> def ridge(weights, task):
        ...     x, y, penalty = task
        ...     return 0.5 * ((x @ weights - y) ** 2).mean() + 0.5 * penalty * weights.square().sum()
        >>> problem = InnerProblem(ridge, GradientDescent(0.5))
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(4, 20, 3, generator=generator), torch.randn(4, 20, generator=generator)
        >>> penalty = torch.full((4,), 0.1, requires_grad=True)
        >>> solution = problem.solve(torch.zeros(4, 3), (x, y, penalty), stop=hs.Stop(rtol=1e-6))
        >>> problem.parameters(solution).square().sum().backward()
        >>> bool(solution.converged.all()), bool((penalty.grad < 0).all())  # a larger penalty, smaller weights
        (True, True)
    """

    loss: Loss | Objective
    step: InnerStep
    batched: bool = False
    loss_gradient: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise ValueError(f"loss must be a function (parameters, context) -> loss, not {self.loss!r}")
        check_option("step", self.step, InnerStep, "hs.bilevel.GradientDescent(0.1)")
        if self.loss_gradient is not None and not callable(self.loss_gradient):
            raise ValueError(f"loss_gradient must be None or a function, not {self.loss_gradient!r}")
        if not isinstance(self.batched, bool):
            raise ValueError(f"batched must be True or False, not {self.batched!r}")

    def solve(
        self,
        parameters: Any,
        context: Any = None,
        *,
        stop: Stop = Stop(),  # noqa: B008 - options are frozen values
        gradient: Gradient = Implicit(CG()),  # noqa: B008
        method: Method = Picard(),  # noqa: B008
    ) -> Solution:
        """Iterate the step from `parameters` until each problem is done.

        Args:
            parameters: where to start; a tensor or a nest of tensors, with a row for each problem.
            context: what `loss` needs beside them, batch first; parts that are the same for all problems are marked
                `Shared`.
            stop: when a problem is done; its residual is that of the step, see `Stop`. `rtol=0` takes every step.
            gradient: any of the engine's. `Implicit(CG())` suits gradient descent and Newton's method; momentum and
                proximal steps have a system that is not symmetric (`Implicit(GMRES())`), and say so.
            method: `Picard()` takes the optimiser's steps as they are; `Anderson()` accelerates plain descent.

        Returns:
            The `Solution` of the iteration; `InnerProblem.parameters` takes the parameters out of it.

        Raises:
            ContractError: a loss that is not one number a problem, or that `loss_gradient` is not the gradient of.
            ConvergenceError: problems did not converge and `gradient.on_failure` is `"raise"`.
        """
        objective = self.objective(context)

        def step(state: Any, present: Any) -> Any:
            return self.step.step(objective, state, present)

        found = solve(step, self.step.start(parameters), context, method=method, stop=stop, gradient=gradient)
        if self.loss_gradient is not None:
            self._check_gradient(pytree.tree_map(lambda p: p.detach(), self.parameters(found)), context)
        return found

    def parameters(self, solution: Solution) -> Any:
        """The parameters of every problem, with a row for each."""
        state = pytree.tree_map(_bare, solution.state, is_leaf=lambda x: isinstance(x, Carry))
        return self.step.parameters(state)

    def losses(self, parameters: Any, context: Any = None) -> Tensor:
        """`(rows,)`: the loss of every problem."""
        bare = pytree.tree_map(_bare, context, is_leaf=lambda x: isinstance(x, Shared))
        return self.objective(context)(parameters, bare)

    def objective(self, context: Any) -> Objective:
        """The loss of a batch; `context` says with its marks what is the same for all problems."""
        loss = _checked(self.loss if self.batched else _over_rows(self.loss, context))
        if self.loss_gradient is None:
            return loss
        return KnownGradient(loss, self.loss_gradient if self.batched else _over_rows(self.loss_gradient, context))

    def _check_gradient(self, parameters: Any, context: Any) -> None:
        """A written-out gradient that is not that of the loss would have another solution, and nobody would know."""
        objective = self.objective(context)
        assert isinstance(objective, KnownGradient)
        bare = pytree.tree_map(_bare, context, is_leaf=lambda x: isinstance(x, Shared))
        with torch.no_grad():
            written = pytree.tree_leaves(row_gradients(objective, parameters, bare))
            found = pytree.tree_leaves(row_gradients(objective.objective, parameters, bare))
            for w, f, p in zip(written, found, pytree.tree_leaves(parameters), strict=True):
                # Near a solution both are what is left of larger terms: compared with the gradient at the parameters'
                # own size.
                scale = f.abs().amax() + p.abs().amax()
                if not bool(((w - f).abs() <= 10 * torch.finfo(f.dtype).eps ** 0.5 * scale).all() | ~scale.isfinite()):
                    raise ContractError("loss_gradient is not the gradient of the loss")


def functional(module: nn.Module, loss: Callable[[Any, Any], Tensor]) -> Loss:
    """The loss of one problem for a module: its parameters are the inner problem's, its inputs come in the context.

    The context of one problem is `(inputs, targets)`. Buffers stay as they are, and the module is called as it is set:
    dropout, and normalisation in training mode, are refused by `torch.func.vmap`.

    Args:
        module: any; called with parameters that are handed in, its own are not changed.
        loss: `(outputs, targets) -> scalar`.

    Example:
        >>> import homeostat as hs
        >>> from homeostat.bilevel import GradientDescent
        >>> net = nn.Linear(2, 1)
        >>> problem = InnerProblem(functional(net, nn.functional.mse_loss), GradientDescent(0.1))
        >>> tasks = torch.ones(5, 8, 2), torch.zeros(5, 8, 1)
        >>> solution = problem.solve(module_parameters(net, rows=5), tasks)
        >>> problem.parameters(solution)["weight"].shape
        torch.Size([5, 1, 2])
    """

    def of_one(parameters: Any, context: Any) -> Tensor:
        inputs, targets = context
        return loss(torch.func.functional_call(module, parameters, (inputs,)), targets)

    return of_one


def module_parameters(module: nn.Module, rows: int) -> dict[str, Tensor]:
    """A module's trainable parameters by name, the same for each of `rows` problems.

    They are views: gradients of `Unrolled` reach the module's own.

    Example:
        >>> {name: tuple(p.shape) for name, p in module_parameters(nn.Linear(2, 3), rows=4).items()}
        {'weight': (4, 3, 2), 'bias': (4, 3)}
    """
    return {name: p.expand(rows, *p.shape) for name, p in module.named_parameters() if p.requires_grad}


def _bare(node: Any) -> Any:
    return node.value if isinstance(node, Carry | Shared) else node


def _map(function: Callable[[Any], Any], nest: Any) -> Any:
    """`function` of every leaf; a lone tensor is spared the taking apart, which costs as much as a small loss."""
    return function(nest) if isinstance(nest, Tensor) else pytree.tree_map(function, nest)


def _count(nest: Any) -> int:
    return len(nest) if isinstance(nest, Tensor) else len(pytree.tree_leaves(nest)[0])


def _over_rows(function: Callable[[Any, Any], Any], context: Any) -> Callable[[Any, Any], Any]:
    """A function of one problem as a function of a batch of them."""
    # `vmap` takes the mark's place for whatever is inside it: None, not mapped.
    marked = pytree.tree_map(
        lambda x: None if isinstance(x, Shared) or x is None else 0, context, is_leaf=lambda x: isinstance(x, Shared)
    )
    mapped = torch.func.vmap(function, in_dims=(0, marked))
    dims, spec = pytree.tree_flatten(marked)

    def over_rows(parameters: Any, present: Any) -> Any:
        if _count(parameters) != 1:
            return mapped(parameters, present)
        # One problem alone is spared the transform, which costs several times what a small loss does.
        parts = spec.flatten_up_to(present)
        given = pytree.tree_unflatten([x if d is None else x[0] for d, x in zip(dims, parts, strict=True)], spec)
        found = function(_map(lambda p: p[0], parameters), given)
        return _map(lambda x: x[None] if isinstance(x, Tensor) else x, found)

    return over_rows


def _checked(objective: Objective) -> Objective:
    def checked(parameters: Any, context: Any) -> Tensor:
        found = objective(parameters, context)
        rows = _count(parameters)
        if not isinstance(found, Tensor) or found.shape != (rows,):
            what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
            raise ContractError(f"an inner loss is one number a problem; of {rows} problems it gave {what}")
        return found

    return checked
