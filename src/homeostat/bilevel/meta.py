"""Meta-learning: parameters from which a few inner steps learn a new task, as an iterated model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from homeostat.bilevel.gradient_descent import GradientDescent
from homeostat.bilevel.objective import RowObjective
from homeostat.bilevel.per_task import PerTask
from homeostat.bilevel.step import InnerStep
from homeostat.engine import CG, Gradient, Implicit, Picard, Solution, Stop, Unrolled, solve
from homeostat.engine.stop import check_option, check_range
from homeostat.errors import ContractError

TaskLoss = Callable[[Any, Any], Tensor]
"""`(outputs, targets) -> ()`: the loss of one task over its samples."""


class MetaLearner(nn.Module):
    """Any module as a learner of tasks: its parameters theta are where the learning of every task begins.

    Task i learns its own parameters phi_i by inner steps on

        loss(module(support_inputs_i), support_targets_i) + regulariser / 2 * |phi_i - theta|^2,

    all tasks of a batch at once, and answers its queries with them. Through `homeostat.solve` the gradient of those
    answers reaches theta: with `Implicit` that is implicit MAML (theta acts through the regulariser alone), with
    `Unrolled` MAML (theta acts as the start, and through the regulariser where there is one).

    The inner problem is a model in the five functions of Homeostat, so that it can be audited and trained as any other.
    Inputs are a dictionary `support_inputs`, `support_targets`, `query_inputs` of tensors, tasks first, then samples.
    A state is what the inner step makes of the parameters of each task, one flat vector `(tasks, parameters)`.

    Parameters with `requires_grad=False` and buffers are constants that all tasks share.

    Args:
        module: maps the samples of one task, `(samples, ...)`, to outputs. It is used, not copied. What it computes
            must depend on parameters and inputs alone: no dropout that is switched on, no buffers that it changes.
        loss: of one task over its support samples, a scalar.
        regulariser: lambda, the pull towards theta, 0 or more.
        inner: the inner step.
        name, trained_steps: see `homeostat.models.IteratedModel`.

    Raises:
        ContractError: a module without parameters to adapt, with parameters of several dtypes, or with BatchNorm.
        ValueError: a regulariser that is negative or not finite.

    Source:
        Finn, Abbeel, Levine, "Model-agnostic meta-learning", ICML 2017, arXiv 1703.03400; Rajeswaran, Finn, Kakade,
        Levine, "Meta-learning with implicit gradients", NeurIPS 2019, arXiv 1909.04630.

    Example:
        >>> import homeostat as hs
        >>> learner = MetaLearner(nn.Linear(1, 1).double(), regulariser=1.0)
        >>> x = torch.linspace(-1, 1, 8, dtype=torch.float64).expand(3, 8)[..., None]  # 3 tasks of 8 samples
        >>> solution = learner.adapt(x, 2 * x, stop=hs.Stop(rtol=1e-9), gradient=hs.Implicit())
        >>> learner.predict(solution.state, x).square().mean().backward()
        >>> {name: tuple(p.shape) for name, p in learner.named(solution.state).items()}
        {'weight': (3, 1, 1), 'bias': (3, 1)}
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        loss: TaskLoss = F.mse_loss,
        regulariser: float = 0.0,
        inner: InnerStep = GradientDescent(),  # noqa: B008 - a frozen value
        name: str = "meta-learner",
        trained_steps: int | None = None,
    ) -> None:
        super().__init__()
        check_range("regulariser", regulariser, 0, "a number, 0 or more")
        check_option("inner", inner, InnerStep, "GradientDescent(0.1)")
        adapted = {key: p for key, p in module.named_parameters() if p.requires_grad}
        if not adapted:
            raise ContractError(f"{type(module).__name__} has no parameters that require a gradient: nothing can adapt")
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in adapted.values()})
        if len(dtypes) > 1:
            raise ContractError(f"the parameters of {type(module).__name__} have several dtypes: {', '.join(dtypes)}")
        for key, part in module.named_modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                raise ContractError(
                    f"{key or 'the module'} is {type(part).__name__}, which keeps or takes statistics over samples; "
                    "use GroupNorm or LayerNorm"
                )
        self.module, self.loss, self.regulariser, self.inner = module, loss, float(regulariser), inner
        self.name, self.trained_steps, self.unit_cost, self.stochastic = name, trained_steps, 1.0, False
        self._outputs = PerTask(module)
        self._names = list(adapted)
        self._shapes = [p.shape for p in adapted.values()]
        self._sizes = [p.numel() for p in adapted.values()]

    @property
    def parameter_count(self) -> int:
        """Numbers that a task adapts."""
        return sum(self._sizes)

    def theta(self) -> Tensor:
        """`(parameters,)`: the meta-parameters as one vector, with their graph."""
        return torch.cat([self.module.get_parameter(name).reshape(-1) for name in self._names])

    def named(self, state: Any) -> dict[str, Tensor]:
        """The parameters of each task by name, `(tasks, *shape)`, in a state."""
        return self._unpacked(self.inner.parameters(state))

    def encode(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs, as they are."""
        return inputs

    def initial_state(self, context: dict[str, Any], start: Any) -> Any:
        """theta for every task; `start.like` makes another start of it."""
        return start.like(self._begin(len(context["support_inputs"])))

    def step(self, state: Any, context: dict[str, Any]) -> Any:
        """One inner step of every task."""
        # theta is put together once a step, and not at every trial of a search.
        return self.inner.step(_TaskObjective(self, self.theta() if self.regulariser else None), state, context)

    def decode(self, state: Any, context: dict[str, Any]) -> Tensor:
        """The answers to the queries."""
        return self.predict(state, context["query_inputs"])

    def objective(self, parameters: Tensor, context: dict[str, Any]) -> Tensor:
        """`(tasks,)`: the inner objective at `(tasks, parameters)`."""
        return _TaskObjective(self, self.theta() if self.regulariser else None)(parameters, context)

    def predict(self, state: Any, inputs: Any) -> Tensor:
        """Outputs `(tasks, samples, ...)` at `(tasks, samples, ...)`, every task with its own parameters."""
        return self._outputs(self.named(state), inputs)

    def adapt(
        self,
        support_inputs: Any,
        support_targets: Any,
        *,
        stop: Stop,
        gradient: Gradient = Implicit(CG()),  # noqa: B008 - options are frozen values
    ) -> Solution:
        """Learn the tasks of a batch; each stops by itself.

        Args:
            support_inputs, support_targets: `(tasks, samples, ...)`.
            stop: `Stop(rtol=0, max_steps=16)` takes 16 inner steps, `Stop(rtol=1e-4)` iterates until a task has
                converged.
            gradient: `Implicit(CG())` for implicit MAML, with inner steps whose system is symmetric such as gradient
                descent; `Unrolled()` for MAML.

        Returns:
            The solution of `homeostat.solve`; a task whose data are not finite is DIVERGED and gets no gradient. Its
            answers mean nothing: leave it out of a loss by `solution.status`.

        Raises:
            ContractError: floating data without a dimension for tasks, samples and what a sample is made of.
            ContractError: targets of another shape than the outputs, or a loss that is not one number a task.
            ValueError: a gradient of the solution, which without a regulariser does not depend on theta.
        """
        if not self.regulariser and not isinstance(gradient, Unrolled):
            raise ValueError(
                f"{type(gradient).__name__} needs a regulariser above 0: without one the solution does not depend on "
                "the meta-parameters; give the learner one, or use Unrolled()"
            )
        if isinstance(support_inputs, Tensor) and support_inputs.is_floating_point() and support_inputs.ndim < 3:
            raise ContractError(
                f"support_inputs are of shape {tuple(support_inputs.shape)}; they must be (tasks, samples, ...), where "
                "a sample has a dimension of its own: one task alone is x[None]"
            )
        if isinstance(support_inputs, Tensor) and support_inputs.ndim > 1 and not support_inputs.shape[1]:
            raise ContractError("a task without support samples has nothing to learn from: give it one at least")
        context = {"support_inputs": support_inputs, "support_targets": support_targets}
        start = self._begin(len(support_inputs))
        return solve(self.step, start, context, method=Picard(), stop=stop, gradient=gradient)

    def _begin(self, tasks: int) -> Any:
        return self.inner.start(self.theta().expand(tasks, -1))

    def fit(self, parameters: Tensor, context: dict[str, Any]) -> Tensor:
        """`(tasks,)`: the loss over the support samples, without the regulariser."""
        return self._losses(self._outputs(self._unpacked(parameters), context["support_inputs"]), context)

    def fit_and_gradient(self, parameters: Tensor, context: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """`fit` and its gradient `(tasks, parameters)`; None where the module's gradient is not written out."""
        found = self._outputs.with_backward(self._unpacked(parameters), context["support_inputs"])
        if found is None:
            return None
        outputs, backward = found
        targets = context["support_targets"]
        self._check(outputs, targets)
        if self.loss is F.mse_loss:
            error = outputs - targets
            slope = error * (2 / error[0].numel())
        else:
            slope = torch.func.grad(lambda out: self._losses(out, context).sum())(outputs)
        pieces = backward(slope)
        return self._losses(outputs, context), torch.cat([pieces[name].flatten(1) for name in self._names], 1)

    def _losses(self, outputs: Any, context: dict[str, Any]) -> Tensor:
        targets = context["support_targets"]
        self._check(outputs, targets)
        if self.loss is F.mse_loss:  # the same number without a transform
            return (outputs - targets).square().flatten(1).mean(1)
        losses = torch.func.vmap(self.loss)(outputs, targets)
        if losses.ndim != 1:
            raise ContractError(f"the loss of a task is one number, not a tensor of shape {tuple(losses.shape[1:])}")
        return losses

    def _check(self, outputs: Any, targets: Any) -> None:
        """Two shapes that differ would be broadcast by the squared error, to another loss than anyone meant."""
        if self.loss is F.mse_loss and outputs.shape != targets.shape:
            raise ContractError(
                f"support_targets are of shape {tuple(targets.shape)}, the outputs for them {tuple(outputs.shape)}"
            )

    def _unpacked(self, parameters: Tensor) -> dict[str, Tensor]:
        pieces = parameters.split(self._sizes, 1)
        return {
            name: piece.view(len(parameters), *shape)
            for name, piece, shape in zip(self._names, pieces, self._shapes, strict=True)
        }


@dataclass(frozen=True)
class _TaskObjective(RowObjective):
    """The inner objective at one theta, `(parameters,)`; None without a regulariser."""

    learner: MetaLearner
    theta: Tensor | None

    def __call__(self, parameters: Tensor, context: dict[str, Any]) -> Tensor:
        value = self.learner.fit(parameters, context)
        if self.theta is None:
            return value
        return value + 0.5 * self.learner.regulariser * (parameters - self.theta).square().sum(1)

    def values_and_gradients(self, parameters: Tensor, context: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        found = self.learner.fit_and_gradient(parameters, context)
        if found is None or self.theta is None:
            return found
        value, gradient = found
        pulled, pull = parameters - self.theta, self.learner.regulariser
        return value + 0.5 * pull * pulled.square().sum(1), torch.add(gradient, pulled, alpha=pull)

    def rows(self, context: dict[str, Any], index: Tensor) -> dict[str, Any]:
        support = {name: context[name] for name in ("support_inputs", "support_targets")}
        return pytree.tree_map(lambda leaf: leaf.index_select(0, index), support)
