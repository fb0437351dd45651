"""The map that a caller gives: `step(state, context)`, or `step(state)` where nothing belongs to an example."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from homeostat.errors import ContractError

StepFunction = Callable[[Any, Any], Any] | Callable[[Any], Any]
"""What `solve` takes; inside of the engine a step always has both arguments."""

_VAR_POSITIONAL = inspect.Parameter.VAR_POSITIONAL


class StateOnly:
    """A step of one argument, called with two.

    Attributes:
        step: what the caller gave.
    """

    def __init__(self, step: Callable[[Any], Any]) -> None:
        self.step = step

    def __call__(self, state: Any, context: Any) -> Any:
        return self.step(state)

    @property
    def __wrapped__(self) -> Callable[[Any], Any]:
        return self.step


def with_context(step: Any, context: Any) -> Callable[[Any, Any], Any]:
    """The step as a function of state and context.

    What its signature says decides, once: a step that cannot take two arguments gets the state alone, and so does one
    whose second has a default, where there is no context. A signature that cannot be read (of a built-in function, of
    a scripted module) is taken to be `(state, context)`.

    Raises:
        TypeError: it cannot be called.
        ContractError: it takes the state alone and there is a context, or it takes other arguments than these.

    Example:
        >>> with_context(lambda z: 2 * z, None)(3, None), with_context(lambda z, c: z + c, 1)(3, 1)
        (6, 4)
    """
    if _plainly_two(step):
        return step
    if not callable(step):
        raise TypeError(f"step must be a function or a module, not {type(step).__name__}")
    signature = _signature(step)
    if signature is None:
        return step
    alone, both = _fits(signature, 1), _fits(signature, 2)
    if both and not (alone and context is None and not _is_open(signature)):
        return step
    if not alone:
        raise ContractError(f"step is called with (state, context), or with (state) alone, but takes {signature}")
    if context is not None:
        raise ContractError(
            f"step takes the state alone, {signature}, and a context was given: give step a second argument for it"
        )
    return StateOnly(step)


def _plainly_two(step: Any) -> bool:
    """Whether it is a function, method or module of two arguments and no others, at less cost than a signature."""
    function, given = step, 0
    if isinstance(step, nn.Module) and "forward" not in step.__dict__:
        function, given = type(step).forward, 1
    elif isinstance(step, MethodType):
        function, given = step.__func__, 1
    if not isinstance(function, FunctionType) or function.__defaults__:
        return False
    return function.__code__.co_argcount == 2 + given and not function.__code__.co_kwonlyargcount


def _signature(step: Any) -> inspect.Signature | None:
    """None where it cannot be read, or says nothing."""
    target = step.forward if isinstance(step, nn.Module) else step
    try:
        own = inspect.signature(target, follow_wrapped=False)
        found = inspect.signature(target) if _is_open(own) else own  # a decorator's `*args` are those of its function
    except (TypeError, ValueError):
        return None
    return None if _is_open(found) else found


def _is_open(signature: inspect.Signature) -> bool:
    return any(parameter.kind == _VAR_POSITIONAL for parameter in signature.parameters.values())


def _fits(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def step_owner(step: Any) -> tuple[Any, Any]:
    """What stands for a step in tables of steps: the module, other callable or code that it is, and the part of it."""
    step = _bare(step)[0]
    if isinstance(step, MethodType):
        return step.__self__, step.__func__
    return (step.__code__ if isinstance(step, FunctionType) else step), None


def held(step: Any) -> list[Any]:
    """Tensors, modules and functions that a step is made of beside its code: by a closure, a default or `partial`.

    Example:
        >>> import torch
        >>> weight = torch.ones(2)
        >>> held(partial(lambda z, w: w * z, w=weight))[0] is weight
        True
    """
    step, given = _bare(step)
    function = step.__func__ if isinstance(step, MethodType) else step
    if isinstance(function, FunctionType):
        given += function.__defaults__ or ()
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # not set yet
                given.append(cell.cell_contents)
    return [x for x in given if isinstance(x, Tensor | nn.Module | FunctionType)]


def _bare(step: Any) -> tuple[Any, list[Any]]:
    """A step without what was put around it, and the arguments that `partial` gives it."""
    given = []
    while isinstance(step, partial) or hasattr(step, "__wrapped__"):
        if isinstance(step, partial):
            given += [*step.args, *step.keywords.values()]
            step = step.func
        else:
            step = step.__wrapped__
    return step, given
