"""Hypergradients: how the outer loss at an inner solution changes with the hyperparameters."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.bilevel.inner import InnerProblem
from homeostat.bilevel.step import InnerStep
from homeostat.engine import CG, Adjoint, Carry, Implicit, Picard, Shared, Solution, Status, Stop
from homeostat.engine.gradients import Gradient
from homeostat.engine.methods import Method
from homeostat.errors import ContractError, ConvergenceError, ConvergenceWarning, warn_caller

TieredLoss = Callable[..., Tensor]
"""`(parameters, hyperparameters)` or, with a context, `(parameters, hyperparameters, context)` to a scalar."""


@dataclass(frozen=True, repr=False)
class Hypergradient:
    """An outer loss at the solution of inner problems, and its gradient.

    Attributes:
        value: the mean outer loss over the problems that have one; NaN where none has.
        gradient: of `value`, in the structure of the hyperparameters; NaN throughout where `value` is.
        losses: `(problems,)` outer losses; NaN for those whose inner solve diverged or whose outer loss is not finite.
        parameters: the inner solution, as the start was given: without rows for a single problem. It has no graph.
        solution: how the inner solves went, a row for each problem. It holds no graph.
        adjoint: how the solves of the gradient went; None for gradients without one (`Unrolled`, `OneStep`, `Phantom`,
            `Shine`), and where no gradient reaches the hyperparameters by way of the solution.
    """

    value: Tensor
    gradient: Any
    losses: Tensor
    parameters: Any
    solution: Solution
    adjoint: Adjoint | None

    @property
    def converged(self) -> Tensor:
        """`(problems,)` bool: both solves are within tolerance, and the outer loss is finite.

        False where a solve had no tolerance, or where the gradient is not that of the solution but of a few steps.
        """
        good = self.solution.converged & torch.isfinite(self.losses)
        if self.adjoint is None:
            return torch.zeros_like(good)
        return good & (self.adjoint.status == Status.CONVERGED)

    def __repr__(self) -> str:
        leaves = pytree.tree_leaves(self.gradient)
        norm = torch.stack([g.double().square().sum() for g in leaves]).sum().sqrt() if leaves else torch.tensor(0.0)
        count = sum(g.numel() for g in leaves)
        of = f"of {count} hyperparameters, norm {float(norm):.3e}"
        if count == 1:
            of = next(f"{float(g):.6g}" for g in leaves if g.numel())
        found = f"{int(self.converged.sum())} of {len(self.losses)} problems converged, inner and adjoint"
        if self.adjoint is None:
            found = f"{int(self.solution.converged.sum())} of {len(self.losses)} inner problems converged"
        lines = [
            f"Hypergradient: value {float(self.value):.6g}, gradient {of}",
            found,
            repr(self.solution),
            "No adjoint solve" if self.adjoint is None else repr(self.adjoint),
        ]
        return "\n".join(lines)


def hypergradient(
    inner_loss: TieredLoss,
    outer_loss: TieredLoss,
    hyperparameters: Any,
    parameters: Any,
    context: Any = None,
    *,
    step: InnerStep,
    stop: Stop = Stop(),  # noqa: B008 - options are frozen values
    gradient: Gradient = Implicit(CG()),  # noqa: B008
    method: Method = Picard(),  # noqa: B008
    inner_gradient: Callable[..., Any] | None = None,
) -> Hypergradient:
    """Solve inner problems from `parameters`, and differentiate the outer loss at their solutions.

    The problem is `min over h of mean outer(p*(h), h)` where `p*(h)` minimises `inner(p, h)`. Both losses are those of
    one problem and return a scalar.

    Args:
        inner_loss: `(parameters, hyperparameters)`; with a `context`, `(parameters, hyperparameters, context)`.
        outer_loss: the same. Its own dependence on the hyperparameters counts.
        hyperparameters: a floating tensor or a nest of them, the same for all problems.
        parameters: where the inner solves start: a tensor or a nest. Without a `context` those of one problem;
            with one, a row for each problem.
        context: what belongs to each problem (its data), batch first; parts that are the same for all are marked
            `Shared`. None: a single problem.
        step: the inner optimiser.
        stop: of the inner solves. The error of an implicit gradient is that of both solves, divided by `step_size`
            times the smallest curvature: a small step size needs a small `rtol`.
        gradient: the engine's: `Implicit(CG())`, `Implicit(NormalCG())`, `Implicit(GMRES())`, `Implicit(Picard())`,
            `Neumann(terms)`, `Unrolled(last=K)`, `OneStep()`. The adjoint's own tolerance is `Implicit.stop`.
        method: how the step is iterated.
        inner_gradient: the gradient of `inner_loss` with respect to the parameters, written out, with its arguments;
            see `InnerProblem.loss_gradient`.

    Returns:
        A `Hypergradient`. Look at `converged`: where the inner solve stalls, or the adjoint is cut short, the gradient
        is an approximation.

    Raises:
        ContractError: hyperparameters that are not floating tensors, parameters that are not tensors, or a loss that is
            not a scalar; a call inside `torch.inference_mode()`.
        ConvergenceError: `gradient.on_failure` is `"raise"` and a solve failed, or a loss is not finite.

    Source:
        The implicit gradient: Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016, arXiv
        1602.02355. Truncated backpropagation (`Unrolled(last=K)`): Shaban et al., AISTATS 2019, arXiv 1810.10667.

    Example:
        >>> import homeostat as hs
        >>> from homeostat.bilevel import GradientDescent
        >>> target = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> inner = lambda w, h: 0.5 * ((w - target) ** 2).sum() + 0.5 * (h * w**2).sum()  # w = target / (1 + h)
        >>> outer = lambda w, h: w.sum()
        >>> h = torch.ones(2, dtype=torch.float64)
        >>> found = hypergradient(
        ...     inner, outer, h, torch.zeros_like(target), step=GradientDescent(0.5), stop=hs.Stop(rtol=1e-12)
        ... )
        >>> found.gradient, bool(found.converged)  # - target / (1 + h)^2
        (tensor([-0.2500, -0.5000], dtype=torch.float64), True)
    """
    leaves, spec = pytree.tree_flatten(hyperparameters)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            raise ContractError(f"hyperparameters must be floating tensors, not {leaf!r}")
    if not leaves:
        raise ContractError("there are no hyperparameters to take a gradient of")
    for leaf in pytree.tree_leaves(parameters):
        if not isinstance(leaf, Tensor):
            raise ContractError(f"parameters must be tensors, not {leaf!r}")
    if torch.is_inference_mode_enabled():
        raise ContractError("there are no gradients inside torch.inference_mode(); torch.no_grad() may stay")
    single = context is None
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in leaves]
        shared = Shared(pytree.tree_unflatten(leaves, spec))
        start = pytree.tree_map(lambda p: p[None], parameters) if single else parameters
        known = None if inner_gradient is None else _tiered(inner_gradient, single)
        inner = InnerProblem(_tiered(inner_loss, single), step, loss_gradient=known)
        found = inner.solve(start, (shared, context), stop=stop, gradient=gradient, method=method)
        solved = inner.parameters(found)
        outer = InnerProblem(_tiered(outer_loss, single), step)
        losses = outer.losses(solved, (shared, context))
        good = (found.status != Status.DIVERGED) & torch.isfinite(losses.detach())
        _report(found, good, gradient)
        if not bool(good.all()) and bool(good.any()):
            # Again without the others: a NaN that is multiplied by a gradient of 0 is still one.
            losses = losses.detach().index_put((good,), outer.losses(*_rows(good, solved, (shared, context))))
        value = losses[good].mean()  # NaN of nothing
        if bool(good.any()) and value.requires_grad:
            gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
        else:
            missing = 0.0 if bool(good.any()) else float("nan")
            gradients = [torch.full_like(x, missing) for x in leaves]
    if not all(bool(torch.isfinite(g).all()) for g in gradients) and bool(good.any()):
        _fail("the hypergradient is not finite", gradient)
    detached = pytree.tree_map(lambda p: p.detach()[0] if single else p.detach(), solved)
    return Hypergradient(
        value=value.detach(),
        gradient=pytree.tree_unflatten(list(gradients), spec),
        losses=torch.where(good, losses.detach(), torch.nan),
        parameters=detached,
        solution=_without_graph(found),
        adjoint=found.adjoint,
    )


def _tiered(loss: Callable[..., Any], single: bool) -> Callable[[Any, Any], Any]:
    if single:
        return lambda parameters, context: loss(parameters, context[0])
    return lambda parameters, context: loss(parameters, *context)


def _report(found: Solution, good: Tensor, gradient: Gradient) -> None:
    """Say which problems have no outer loss; inner solves that failed are the engine's to report where it does."""
    total, diverged = len(good), int((found.status == Status.DIVERGED).sum())
    if diverged and not isinstance(gradient, Implicit):
        _fail(
            f"the inner solve of {diverged} of {total} problems diverged; they take no part in the gradient", gradient
        )
    lost = total - diverged - int(good.sum())
    if lost:
        _fail(
            f"the outer loss of {lost} of {total} problems is not finite; they take no part in the gradient", gradient
        )


def _fail(message: str, gradient: Gradient) -> None:
    if isinstance(gradient, Implicit) and gradient.on_failure == "raise":
        raise ConvergenceError(message)
    warn_caller(message, ConvergenceWarning)


def _rows(good: Tensor, *nests: Any) -> list[Any]:
    """The rows in the mask `good` of everything that has rows."""

    def choose(x: Any) -> Any:
        return x[good] if isinstance(x, Tensor) else x

    return [pytree.tree_map(choose, nest, is_leaf=lambda x: isinstance(x, Shared)) for nest in nests]


def _without_graph(solution: Solution) -> Solution:
    def bare(x: Any) -> Any:
        return Carry(x.value.detach()) if isinstance(x, Carry) else x.detach()

    state = pytree.tree_map(bare, solution.state, is_leaf=lambda x: isinstance(x, Carry))
    return replace(solution, state=state)
