"""The contract: the five functions by which a model that thinks by iterating joins Homeostat."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from homeostat.checks import is_number, is_whole, plain_number
from homeostat.errors import ContractError
from homeostat.models.starts import Start

FUNCTIONS = ("encode", "initial_state", "step", "decode")
"""Functions that every model has; `score` and `light_cone` are optional."""


class IteratedModel(ABC):
    """A model that applies one map again and again, `state <- step(state, context)`.

    States and contexts are tensors or nests of tensors, batch first; what is not per example is `Shared`.

    Attributes:
        name: what reports call it.
        trained_steps: its horizon, the most steps it took in training; None when unknown.
        unit_cost: cost of one step, in cell evaluations or FLOPs, so that curves of different models share an axis.
        stochastic: whether `step` draws random numbers.
    """

    name: str = "model"
    trained_steps: int | None = None
    unit_cost: float = 1.0
    stochastic: bool = False

    @abstractmethod
    def encode(self, inputs: Any) -> Any:
        """The context, computed once per example."""

    @abstractmethod
    def initial_state(self, context: Any, start: Start) -> Any:
        """Where the iteration starts. `start.like(own_start)` draws any start in the shape of the model's own."""

    @abstractmethod
    def step(self, state: Any, context: Any) -> Any:
        """One unit of test-time compute."""

    @abstractmethod
    def decode(self, state: Any, context: Any) -> Any:
        """An answer, readable after any step."""

    def score(self, state: Any, context: Any) -> Tensor | None:
        """The model's own halting signal, `(batch,)`, larger is surer; None when it has none."""
        return None

    def light_cone(self, span: int) -> int | None:
        """Steps before which information cannot have crossed `span` positions of the input; None when unknown."""
        return None


class _FromFunctions(IteratedModel):
    def __init__(self, functions: dict[str, Callable[..., Any]], attributes: dict[str, Any]) -> None:
        self._functions = functions
        for name, value in attributes.items():
            setattr(self, name, value)
        self._draws_start = _takes_start(functions["initial_state"])

    def encode(self, inputs: Any) -> Any:
        return self._functions["encode"](inputs)

    def initial_state(self, context: Any, start: Start) -> Any:
        if self._draws_start:
            return self._functions["initial_state"](context, start)
        return start.like(self._functions["initial_state"](context))

    def step(self, state: Any, context: Any) -> Any:
        return self._functions["step"](state, context)

    def decode(self, state: Any, context: Any) -> Any:
        return self._functions["decode"](state, context)

    def score(self, state: Any, context: Any) -> Tensor | None:
        score = self._functions.get("score")
        return None if score is None else score(state, context)

    def light_cone(self, span: int) -> int | None:
        light_cone = self._functions.get("light_cone")
        return None if light_cone is None else light_cone(span)


def _takes_start(function: Callable[..., Any]) -> bool:
    """Whether `initial_state` wants to be told the start: a second argument called `start`, or without a default."""
    function = getattr(function, "forward", function)  # a module's own __call__ takes anything
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built-in functions such as torch.zeros_like do not tell
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not positional:
        return any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return len(positional) > 1 and (positional[1].name == "start" or positional[1].default is inspect.Parameter.empty)


def from_functions(
    *,
    encode: Callable[[Any], Any],
    initial_state: Callable[..., Any],
    step: Callable[[Any, Any], Any],
    decode: Callable[[Any, Any], Any],
    score: Callable[[Any, Any], Tensor] | None = None,
    light_cone: Callable[[int], int] | None = None,
    name: str = "model",
    trained_steps: int | None = None,
    unit_cost: float = 1.0,
    stochastic: bool = False,
) -> IteratedModel:
    """A model made of the functions that you have already.

    Args:
        encode: `inputs -> context`.
        initial_state: `context -> state`, or `(context, start) -> state` for a model that draws its own noise.
        step: `(state, context) -> state`.
        decode: `(state, context) -> outputs`.
        score: `(state, context) -> (batch,)`, the model's own halting signal.
        light_cone: `positions -> steps` before which information cannot have crossed that many positions of the input.
        name, trained_steps, unit_cost, stochastic: see `IteratedModel`.

    Raises:
        ContractError: a function that cannot be called, or an impossible horizon or cost.

    Example:
        >>> import torch
        >>> from homeostat.models import Own
        >>> model = from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.zeros_like(x),
        ...     step=lambda z, x: 0.5 * (z + x / z.clamp(min=0.1)),  # Heron's square root
        ...     decode=lambda z, x: z,
        ... )
        >>> z = model.initial_state(torch.tensor([[4.0]]), Own())
        >>> for _ in range(8):
        ...     z = model.step(z, torch.tensor([[4.0]]))
        >>> z
        tensor([[2.]])
    """
    functions: dict[str, Any] = {
        "encode": encode,
        "initial_state": initial_state,
        "step": step,
        "decode": decode,
        "score": score,
        "light_cone": light_cone,
    }
    functions = {key: function for key, function in functions.items() if function is not None or key in FUNCTIONS}
    for key, function in functions.items():
        if not callable(function):
            raise ContractError(f"{key} must be a function, not {function!r}")
    check_attributes(trained_steps, unit_cost)
    numbers = {"trained_steps": plain_number(trained_steps), "unit_cost": plain_number(unit_cost)}
    attributes = {"name": name, **numbers, "stochastic": stochastic}
    return _FromFunctions(functions, attributes)


def as_model(candidate: Any, *, where: str = "the model") -> IteratedModel:
    """Take anything that has the functions of the contract, or say which one is missing.

    Example:
        >>> as_model(object(), where="build()")
        Traceback (most recent call last):
        homeostat.errors.ContractError: build() returned object, which has no function encode(); a model has encode, \
initial_state, step, decode
    """
    if isinstance(candidate, IteratedModel):
        return candidate
    for name in FUNCTIONS:
        if not callable(getattr(candidate, name, None)):
            kind = type(candidate).__name__
            needed = ", ".join(FUNCTIONS)
            raise ContractError(f"{where} returned {kind}, which has no function {name}(); a model has {needed}")
    return from_functions(
        **{name: getattr(candidate, name) for name in FUNCTIONS},
        score=getattr(candidate, "score", None),
        light_cone=getattr(candidate, "light_cone", None),
        name=getattr(candidate, "name", type(candidate).__name__),
        trained_steps=getattr(candidate, "trained_steps", None),
        unit_cost=getattr(candidate, "unit_cost", 1.0),
        stochastic=getattr(candidate, "stochastic", False),
    )


def check_attributes(trained_steps: Any, unit_cost: Any = 1.0) -> None:
    """Raise a ContractError for an impossible horizon or cost."""
    if trained_steps is not None and not (is_whole(trained_steps) and trained_steps > 0):
        raise ContractError(f"trained_steps must be None or a whole number above 0, not {trained_steps!r}")
    if not is_number(unit_cost) or not 0 < unit_cost < float("inf"):
        raise ContractError(f"unit_cost must be a number above 0, not {unit_cost!r}")
