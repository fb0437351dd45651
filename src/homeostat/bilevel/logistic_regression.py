"""Regularised logistic regression with one regularisation weight per feature, tuned on validation data."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from homeostat.bilevel.gradient_descent import GradientDescent
from homeostat.bilevel.hypergradient import hypergradient
from homeostat.engine import Status, Stop, Unrolled
from homeostat.engine.gradients import Gradient
from homeostat.engine.stop import check_count, check_range
from homeostat.errors import ContractError, ConvergenceError


def logistic_loss(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The mean binary cross-entropy, in nats, of a linear classifier without intercept.

    Args:
        weights: `(features,)`.
        x: `(examples, features)`.
        y: `(examples,)`, 0 or 1.

    Example:
        >>> logistic_loss(torch.zeros(2), torch.ones(3, 2), torch.ones(3))
        tensor(0.6931)
    """
    logits = x @ weights
    return (F.softplus(logits) - y * logits).mean()


def regularised_loss(weights: Tensor, penalties: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`logistic_loss` plus half the sum of `penalties * weights**2`, both `(features,)`."""
    return logistic_loss(weights, x, y) + 0.5 * (penalties * weights.square()).sum()


def regularised_gradient(weights: Tensor, penalties: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of `regularised_loss` with respect to the weights, written out.

    Example:
        >>> w, h, x, y = torch.ones(2), torch.ones(2), torch.eye(2), torch.ones(2)
        >>> by_autograd = torch.func.grad(regularised_loss)(w, h, x, y)
        >>> bool(torch.allclose(regularised_gradient(w, h, x, y), by_autograd))
        True
    """
    return (torch.sigmoid(x @ weights) - y) @ x / len(y) + penalties * weights


@dataclass(frozen=True, repr=False)
class RegularisationTuning:
    """How regularisation weights were tuned.

    Attributes:
        penalties: `(features,)`, the last ones.
        weights: `(features,)`, the classifier of the last step, trained with the penalties before that step.
        validation_loss: `(steps,)` nats, before each step.
        training_loss: `(steps,)` regularised inner loss at the classifier of each step.
        inner_residual: `(steps,)` relative residual of the inner solve, RMS of its last move over RMS of the weights.
        adjoint_residual: `(steps,)` of the hypergradient's linear system; NaN for a gradient without one.
    """

    penalties: Tensor
    weights: Tensor
    validation_loss: Tensor
    training_loss: Tensor
    inner_residual: Tensor
    adjoint_residual: Tensor

    def __repr__(self) -> str:
        count = len(self.validation_loss)
        lines = [
            f"{'step':>6} {'validation loss':>16} {'inner loss':>11} {'inner residual':>15} {'adjoint residual':>17}"
        ]
        for k in sorted({0, *(round(i * (count - 1) / 5) for i in range(1, 6))}):
            lines.append(
                f"{k:>6} {float(self.validation_loss[k]):>16.5f} {float(self.training_loss[k]):>11.5f} "
                f"{float(self.inner_residual[k]):>15.1e} {float(self.adjoint_residual[k]):>17.1e}"
            )
        low, high = float(self.penalties.min()), float(self.penalties.max())
        return "\n".join(["RegularisationTuning", *lines, f"penalties from {low:.2e} to {high:.2e}"])


def tune_regularisation(
    training: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    *,
    outer_steps: int = 1000,
    outer_step_size: float = 1.0,
    momentum: float = 0.9,
    inner: GradientDescent = GradientDescent(0.1),  # noqa: B008 - options are frozen values
    stop: Stop = Stop(rtol=0, max_steps=100),  # noqa: B008
    gradient: Gradient = Unrolled(last=10),  # noqa: B008
    start: float = 1.0,
    lowest: float = 1e-8,
) -> RegularisationTuning:
    """Tune one regularisation weight per feature by gradient descent on the validation loss.

    The inner problem is `regularised_loss` on the training data, from weights of 0 at every outer step; the outer one
    is `logistic_loss` on the validation data. The outer optimiser is gradient descent with momentum, `v <- momentum v +
    g`, `h <- max(h - outer_step_size v, lowest)`.

    Args:
        training: `x (examples, features)` and `y (examples,)` of 0 and 1.
        validation: the same.
        outer_steps: hypergradients taken.
        outer_step_size: of the outer optimiser.
        momentum: of the outer optimiser, from 0 to below 1.
        inner: how the weights are trained.
        stop: for how long; by default 100 steps each.
        gradient: how the hypergradient is taken: by default through the last 10 of those steps.
        start: penalties at the beginning.
        lowest: penalties are kept at this or above.

    Raises:
        ContractError: shapes that do not match, labels other than 0 and 1, or one class alone.
        ConvergenceError: an inner solve diverged, or a loss or a hypergradient is not finite: the step is too long.

    Source:
        The problem and its truncated gradient: Franceschi et al., "Forward and reverse gradient-based hyperparameter
        optimization", ICML 2017, arXiv 1703.01785; Shaban et al., AISTATS 2019, arXiv 1810.10667.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(80, 3, generator=generator)
        >>> data = x, (x[:, 0] > 0).float()  # two of the three features say nothing
        >>> tuned = tune_regularisation((x[:40], data[1][:40]), (x[40:], data[1][40:]), outer_steps=15)
        >>> int(tuned.penalties.argmin()), bool(tuned.validation_loss[-1] < tuned.validation_loss[0])
        (0, True)
    """
    check_count("outer_steps", outer_steps)
    check_range("outer_step_size", outer_step_size, 1e-12, "above 0")
    check_range("momentum", momentum, 0, "0 or more and below 1", high=1 - 1e-12)
    check_range("start", start, 0, "a number, 0 or more")
    check_range("lowest", lowest, 0, "a number, 0 or more")
    x, y = _checked("training", training)
    x_valid, y_valid = _checked("validation", validation)
    if x_valid.shape[1] != x.shape[1]:
        raise ContractError(f"training has {x.shape[1]} features, validation {x_valid.shape[1]}")

    zeros = x.new_zeros(x.shape[1])
    penalties, velocity = zeros + start, torch.zeros_like(zeros)
    rows, weights = [], zeros
    for k in range(outer_steps):
        found = hypergradient(
            lambda w, h: regularised_loss(w, h, x, y),
            lambda w, h: logistic_loss(w, x_valid, y_valid),
            penalties,
            zeros,
            step=inner,
            stop=stop,
            gradient=gradient,
            inner_gradient=lambda w, h: regularised_gradient(w, h, x, y),
        )
        if int(found.solution.status) == Status.DIVERGED or not bool(torch.isfinite(found.gradient).all()):
            raise ConvergenceError(f"outer step {k} has no finite hypergradient; penalties reach {penalties.max():.2e}")
        weights = found.parameters
        adjoint = found.losses.new_tensor([float("nan")]) if found.adjoint is None else found.adjoint.residual
        inner_loss = regularised_loss(weights, penalties, x, y)
        rows.append(
            torch.stack([found.value, inner_loss, found.solution.residual[0], adjoint[0].to(found.value.dtype)])
        )
        velocity = momentum * velocity + found.gradient
        penalties = (penalties - outer_step_size * velocity).clamp(min=lowest)
    return RegularisationTuning(penalties, weights, *torch.stack(rows, 1))


def _checked(name: str, data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, y = data
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(y):
        raise ContractError(f"{name} must be x (examples, features) and y (examples,), not {x.shape} and {y.shape}")
    if not x.is_floating_point():
        raise ContractError(f"{name} has features of {x.dtype}; floating ones are needed")
    if not bool(torch.isfinite(x).all()):
        raise ContractError(f"{name} has features that are not finite")
    if not bool(((y == 0) | (y == 1)).all()):
        raise ContractError(f"labels of {name} must be 0 or 1")
    if bool((y == y[0]).all()):
        raise ContractError(f"{name} has one class alone, {int(y[0])}: there is nothing to tell apart")
    return x, y.to(x.dtype)
