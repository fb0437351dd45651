"""Which gradient a recipe trains with: the engine's, as data.

`"unrolled"` goes back through the graphed steps that the depth draws. All others are gradients of a fixed point: a
solver iterates until each example has converged, for as many steps as the depth draws at most, and the gradient is
taken where it ends.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from homeostat.engine import (
    CG,
    GMRES,
    Anderson,
    Broyden,
    Gradient,
    Implicit,
    Neumann,
    NormalCG,
    OneStep,
    Phantom,
    Picard,
    Shine,
    Stop,
    Unrolled,
)
from homeostat.engine.methods import Method
from homeostat.training.data import Data

_SOLVERS: dict[str, Method] = {"picard": Picard(), "anderson": Anderson(), "broyden": Broyden()}
# "anderson" is the engine's own choice, which leaves to others what Anderson does not solve.
_ADJOINTS = {"picard": Picard(), "anderson": Implicit().method, "cg": CG(), "gmres": GMRES(), "normal-cg": NormalCG()}


class _FixedPoint(Data):
    solver: Literal["picard", "anderson", "broyden"] = "picard"
    """How the fixed point is found."""
    rtol: float = Field(default=1e-5, ge=0, allow_inf_nan=False)
    """Relative residual at which an example stops; 0 takes every step that was drawn."""

    @property
    def recorded(self) -> int:
        """Evaluations of the step that are recorded for the gradient."""
        return 1

    def options(self) -> Gradient:
        """What the engine is asked for."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _possible(self) -> "_FixedPoint":
        self.options()  # the engine's own checks, now and not at the first training step
        return self


class ImplicitGradient(_FixedPoint):
    """`homeostat.Implicit`: the derivative of the fixed point.

    Example:
        >>> ImplicitGradient(adjoint="gmres", on_failure="mask").options().on_failure
        'mask'
    """

    kind: Literal["implicit"] = "implicit"
    adjoint: Literal["picard", "anderson", "cg", "gmres", "normal-cg"] = "anderson"
    """How the adjoint system is solved; `"cg"` needs a step whose Jacobian is symmetric. `"anderson"` leaves rows that
    it does not solve to GMRES, then to conjugate gradients on the normal equations; others are all that is tried."""
    adjoint_steps: int | None = Field(default=None, ge=1)
    """Its most steps, with the tolerance of the solver; None leaves both to the engine."""
    on_failure: Literal["warn", "raise", "mask", "fallback"] = "warn"

    def options(self) -> Gradient:
        stop = None if self.adjoint_steps is None else Stop(rtol=self.rtol, max_steps=self.adjoint_steps)
        return Implicit(method=_ADJOINTS[self.adjoint], stop=stop, on_failure=self.on_failure)


class PhantomGradient(_FixedPoint):
    """`homeostat.Phantom`: backpropagation through a few damped steps at the solution.

    Example:
        >>> PhantomGradient(steps=3).options()
        Phantom(steps=3, damping=0.5)
    """

    kind: Literal["phantom"] = "phantom"
    steps: int = Field(default=5, ge=1)
    damping: float = Field(default=0.5, gt=0, le=1)

    @property
    def recorded(self) -> int:
        """Evaluations of the step that are recorded for the gradient."""
        return self.steps

    def options(self) -> Gradient:
        return Phantom(steps=self.steps, damping=self.damping)


class OneStepGradient(_FixedPoint):
    """`homeostat.OneStep`: the gradient of one step at the solution."""

    kind: Literal["one-step"] = "one-step"

    def options(self) -> Gradient:
        return OneStep()


class NeumannGradient(_FixedPoint):
    """`homeostat.Neumann`: the first terms of the series for the implicit gradient."""

    kind: Literal["neumann"] = "neumann"
    terms: int = Field(default=5, ge=1)

    def options(self) -> Gradient:
        return Neumann(terms=self.terms)


class ShineGradient(_FixedPoint):
    """`homeostat.Shine`: the inverse Jacobian that Broyden's method has built on its way."""

    kind: Literal["shine"] = "shine"
    solver: Literal["broyden"] = "broyden"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    fallback_ratio: float = Field(default=1.3, ge=0, allow_inf_nan=False)

    def options(self) -> Gradient:
        return Shine(fallback_ratio=self.fallback_ratio)


def _tag(given: Any) -> str | None:
    """Which form a gradient has: a name alone, or options by kind."""
    if isinstance(given, str):
        return "name"
    return given.get("kind") if isinstance(given, dict) else getattr(given, "kind", None)


GradientChoice = Annotated[
    Annotated[Literal["unrolled", "implicit"], Tag("name")]
    | Annotated[ImplicitGradient, Tag("implicit")]
    | Annotated[PhantomGradient, Tag("phantom")]
    | Annotated[OneStepGradient, Tag("one-step")]
    | Annotated[NeumannGradient, Tag("neumann")]
    | Annotated[ShineGradient, Tag("shine")],
    Discriminator(
        _tag,
        custom_error_type="gradient",
        custom_error_message="a gradient is 'unrolled', 'implicit', or an object with a kind: implicit, phantom, "
        "one-step, neumann or shine",
    ),
]
"""`"implicit"` is `ImplicitGradient()`."""


def solver_options(choice: GradientChoice, free: int, graphed: int) -> tuple[Method, Stop, Gradient, int]:
    """What `homeostat.solve` is asked for when this many steps were drawn, and how many steps are recorded.

    Example:
        >>> solver_options("unrolled", 10, 4)
        (Picard(damping=1.0), Stop(rtol=0, atol=0.0, max_steps=14), Unrolled(last=4, checkpoint=False), 4)
    """
    if choice == "unrolled":
        return Picard(), Stop(rtol=0, max_steps=free + graphed), Unrolled(last=graphed), graphed
    if choice == "implicit":
        choice = ImplicitGradient()
    assert not isinstance(choice, str)
    stop = Stop(rtol=choice.rtol, max_steps=free + graphed)
    return _SOLVERS[choice.solver], stop, choice.options(), choice.recorded
