"""Which gradient a solve gives: values; the gradients themselves are in `backward`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from homeostat.checks import is_whole, plain_numbers
from homeostat.engine.methods import CG, GMRES, AdjointMethod, Anderson, Method, NormalCG, Picard
from homeostat.engine.stop import Stop, check_count, check_range

OnFailure = Literal["warn", "raise", "mask", "fallback"]


@dataclass(frozen=True)
class Implicit:
    """The gradient of the fixed point itself, by the implicit function theorem; memory does not grow with steps.

    With `z* = f(z*)`, `backward` solves `u = J^T u + g` for the incoming gradient `g`, per example, and passes `u` to
    one more evaluation of `f`, which is recorded when `solve` is called: `f` may be another one afterwards (a mode,
    a variable, fast weights), but a tensor that it used may not be changed in place before `backward`. It is as
    exact as both solves are converged; it is 0 for the start. Derivatives of any order (`create_graph=True`), and
    forward mode, are those of the fixed point as well, by further solves with `J` and its transpose.

    The residual of that solve is RMS(J^T u + g - u) over RMS(J^T u + g), the largest over the measured leaves, with
    every method; `Solution.adjoint` has it after `backward`. States in half precision are solved for in float32, with
    products in the dtype of the state.

    Args:
        method: how that system is solved: `Picard`, `Anderson`, `CG`, `GMRES` or `NormalCG`. `Picard` needs a `J` of
            spectral radius below 1, `CG` an `I - J` that is symmetric and positive definite; `GMRES` and `NormalCG`
            need only that it is regular. Several are tried in turn, each on the rows that those before it did not
            bring to their tolerance; `Picard` and `Anderson`, where they are not the last, let go of rows whose
            residual does not fall, after 48 steps at the earliest.
            `GMRES` begins where it would begin alone, the others where the best one before them ended. A row's
            gradient is that with the lowest residual of all, and `Solution.adjoint.method` says whose it is. What is
            solved by `GMRES()` alone is so with the default as well, and where neither reaches its tolerance the
            default's residual is no larger. One method that is named is all that is tried.
        stop: when the solve stops, after so many steps of each method at most (`GMRES`: products; `NormalCG`: pairs of
            them; `CG`: iterations). With `rtol=0, atol=0` the first method takes exactly that many: truncated on
            purpose. None:
            500 steps and a relative residual of 1e-5, or that of the forward solve where it is tighter (the tightest
            row's), but never less than 4 units in the last place of the state's dtype or of the autocast in use.
        on_failure: for rows whose forward or adjoint solve did not converge; where a solve was given no tolerance
            (`rtol=0, atol=0`), using up its steps is what was asked of it and no failure: `Solution.residual` and
            `Solution.adjoint` say how far it got. `"warn"` uses them and warns with counts;
            `"raise"` raises ConvergenceError; `"mask"` gives them no gradient; `"fallback"` gives them the one-step
            gradient, `u = g`; the last two warn as well. Rows whose forward solve diverged never get a gradient, and
            rows whose adjoint diverged get none but with `"fallback"`. An incoming gradient that is not finite is
            passed on as it is, so that a scaler of losses sees it.
        start: from the incoming gradient and the context to where the solve begins, in place of `u = g`: a solution of
            before, or a guess. A function of vectors in the structure of the state, with None for leaves that are not
            measured, in float32 at least; it gets rows that are to be solved, and the context of these without its
            marks.
        preconditioner: a linear function of such a vector and the context, row by row, that comes near
            `(I - J)^-T` times it. `GMRES` is preconditioned with it from the right, `Picard` and `Anderson` iterate
            `u + P (J^T u + g - u)`; the residual is the true one all the same. `NormalCG` does without, so that it
            is not enough alone; with `CG`, which would need a symmetric one, it is refused.

    Source:
        Bai, Kolter, Koltun, "Deep equilibrium models", NeurIPS 2019, arXiv 1909.01377, theorem 1.

    Example:
        >>> Implicit(on_failure="mask").on_failure
        'mask'
    """

    method: AdjointMethod | tuple[AdjointMethod, ...] = (Anderson(), GMRES(), NormalCG())
    stop: Stop | None = None
    on_failure: OnFailure = "warn"
    start: Callable[[Any, Any], Any] | None = None
    preconditioner: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        methods = self.method if isinstance(self.method, tuple) else (self.method,)
        if not methods or not all(isinstance(one, AdjointMethod) for one in methods):
            raise ValueError(
                f"method must be Picard, Anderson, CG, GMRES or NormalCG, made, or a tuple, not {self.method!r}"
            )
        if self.stop is not None:
            if not isinstance(self.stop, Stop):
                raise ValueError(f"stop must be a Stop, not {self.stop!r}")
            if isinstance(self.stop.max_steps, torch.Tensor) or isinstance(self.stop.rtol, torch.Tensor):
                raise ValueError("the adjoint's stop takes plain numbers, not tensors")
        if self.on_failure not in ("warn", "raise", "mask", "fallback"):
            raise ValueError(f"on_failure must be 'warn', 'raise', 'mask' or 'fallback', not {self.on_failure!r}")
        for name, function in (("start", self.start), ("preconditioner", self.preconditioner)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function of a vector and the context, not {function!r}")
        if self.preconditioner is not None:
            if any(isinstance(one, CG) for one in methods):
                raise ValueError("CG would need a preconditioner that is symmetric: use GMRES()")
            if all(isinstance(one, NormalCG) for one in methods):
                raise ValueError(
                    "NormalCG has no use for a preconditioner, which it would need transposed: use GMRES()"
                )


@dataclass(frozen=True)
class Phantom:
    """The phantom gradient: backpropagation through a few damped steps that start at the solution.

    `z_{i+1} = (1 - damping) z_i + damping f(z_i)` from the solved state on. What `solve` returns is the solved state
    itself and not the last of these: a choice of gradient changes no answer, and `residual` and `status` stay those of
    what is returned. A second derivative is that of these steps with their start held constant, not of the solution.

    Args:
        steps: number of steps with a graph.
        damping: share of the way that each of them goes, above 0 and at most 1.

    Source:
        Geng et al., "On training implicit models", NeurIPS 2021, arXiv 2111.05177 (unrolling form).

    Example:
        >>> Phantom()
        Phantom(steps=5, damping=0.5)
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_count("steps", self.steps)
        check_range("damping", self.damping, 1e-6, "above 0 and at most 1", high=1.0)


@dataclass(frozen=True)
class OneStep:
    """The gradient of one step at the solution, `J` taken as 0 (also "Jacobian-free"): cheap and biased.

    The value stays the solved state's. A second derivative is that of the one step with its start held constant.

    Source:
        Fung et al., "JFB: Jacobian-free backpropagation for implicit networks", AAAI 2022, arXiv 2103.12803.

    Example:
        >>> OneStep()
        OneStep()
    """


@dataclass(frozen=True)
class Neumann:
    """The first `terms` terms of the series `u = g + J^T g + (J^T)^2 g + ...`; `terms=1` is `OneStep`.

    `Solution.adjoint` tells after `backward` how far from the whole series that was. A second derivative raises.

    Source:
        Lorraine, Vicol, Duvenaud, "Optimizing millions of hyperparameters by implicit differentiation", AISTATS 2020.

    Example:
        >>> Neumann()
        Neumann(terms=5)
    """

    terms: int = 5

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_count("terms", self.terms)


@dataclass(frozen=True)
class Shine:
    """The inverse Jacobian that Broyden's method built on its way to the solution, used for the gradient as it is.

    Needs `method=Broyden()`. Costs no Jacobian product beside the last one; how good it is depends on the forward
    solve. A row whose estimate is larger than `fallback_ratio` times the incoming gradient gets the one-step gradient.
    No residual is measured, so that `Solution.adjoint` stays None. A second derivative raises.

    Args:
        fallback_ratio: largest ratio of norms that is trusted.

    Source:
        Ramzi et al., "SHINE: SHaring the INverse Estimate from the forward pass for bi-level optimization and implicit
        models", ICLR 2022, arXiv 2106.00553.

    Example:
        >>> Shine()
        Shine(fallback_ratio=1.3)
    """

    fallback_ratio: float = 1.3

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_range("fallback_ratio", self.fallback_ratio, 0, "a number, 0 or more")


@dataclass(frozen=True)
class Unrolled:
    """Backpropagation through the steps that were taken; exact for what was computed, and it reaches the start.

    Where no method is named, the steps are plain ones (`Picard()`): what is trained by its steps is run by its steps.

    Args:
        last: keep the graph of the last `last` steps of each example only (truncated backpropagation; the start then
            gets a gradient only where an example took no more than that). None keeps all of them.
        checkpoint: keep only the states and take each step again in `backward`: less memory, one more evaluation a
            step.

    Where `stop` has a tolerance and `last` is given, the steps before are taken twice: once to find where each example
    stops, once to come back to `last` steps before that. With an accelerated method, which has to be named, those last
    steps are plain.
    Second derivatives are those of the computed steps, and so is forward mode (without `last`). Checkpoints take the
    steps again and refuse to where these give other values by then; under the transforms of `torch.func` they do not
    work.

    Example:
        >>> Unrolled(last=5)
        Unrolled(last=5, checkpoint=False)
    """

    last: int | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.last is not None and (not is_whole(self.last) or self.last < 1):
            raise ValueError(f"last must be None or a whole number, 1 or more, not {self.last!r}")
        if not isinstance(self.checkpoint, bool):
            raise ValueError(f"checkpoint must be True or False, not {self.checkpoint!r}")


Gradient = Implicit | Phantom | OneStep | Neumann | Shine | Unrolled


def default_method(gradient: Gradient) -> Method:
    """How to iterate where nobody says: a gradient of steps is one of plain steps, and any other of the fixed point.

    Example:
        >>> default_method(Unrolled()), default_method(Implicit())
        (Picard(damping=1.0), Anderson(memory=10, damping=1.0))
    """
    return Picard() if isinstance(gradient, Unrolled) else Anderson()
