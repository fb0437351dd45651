"""When an example stops. Like every option it refuses nonsense when it is made, and it can be made bare."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from homeostat.checks import is_number, is_whole, plain_number, plain_numbers

P = ParamSpec("P")
R = TypeVar("R")


def check_range(name: str, value: float, low: float, what: str, high: float = float("inf")) -> float:
    """Refuse what is not a finite number from `low` to `high`; returns it as a plain Python number.

    Raises:
        ValueError: saying `what` would be right.
    """
    if not is_number(value) or not low <= value <= high or value == float("inf"):
        raise ValueError(f"{name} must be {what}, not {value!r}")
    return plain_number(value)


# Options that people look for beside those of a solve, and where they are.
_HOMES = {
    **dict.fromkeys(("rtol", "tol", "tolerance", "eps"), "stop=hs.Stop(rtol=...)"),
    "atol": "stop=hs.Stop(atol=...)",
    **dict.fromkeys(("max_steps", "steps", "max_iter", "max_iters", "maxiter"), "stop=hs.Stop(max_steps=...)"),
    "memory": "method=hs.Anderson(memory=...)",
    "damping": "method=hs.Anderson(damping=...)",
    "solver": "method=hs.Anderson()",
    "on_failure": "gradient=hs.Implicit(on_failure=...)",
    "preconditioner": "gradient=hs.Implicit(preconditioner=...)",
}


def explain_stray_options(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which says of an option that belongs to one of its option objects where that is.

    Example:
        >>> solve = explain_stray_options(lambda *, stop=None: stop)
        >>> solve(max_steps=5)
        Traceback (most recent call last):
        TypeError: <lambda>() got an unexpected keyword argument 'max_steps': write stop=hs.Stop(max_steps=...)
    """

    @wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name in _HOMES and name not in own:
                what = f"{function.__qualname__}() got an unexpected keyword argument {name!r}"
                raise TypeError(f"{what}: write {_HOMES[name]}")
        return function(*args, **kwargs)

    own = inspect.signature(function).parameters
    return named


def check_option(name: str, value: object, kinds: Any, example: str) -> None:
    """Refuse what is not an instance of an option class.

    Raises:
        TypeError: saying what an instance looks like.
    """
    if not isinstance(value, kinds):
        hint = ": the parentheses are missing" if isinstance(value, type) else ""
        raise TypeError(f"{name} must be an instance such as {example}, not {value!r}{hint}")


def check_count(name: str, value: int, low: int = 1) -> int:
    """Refuse what is not a whole number, `low` or more; returns it as a plain Python number.

    Raises:
        ValueError: naming the option.
    """
    if not is_whole(value) or value < low:
        raise ValueError(f"{name} must be a whole number, {low} or more, not {value!r}")
    return plain_number(value)


def _check_tensor(name: str, value: Tensor, integer: bool) -> None:
    if value.ndim != 1:
        raise ValueError(
            f"{name} must be a number or one number an example, not a tensor of shape {tuple(value.shape)}"
        )
    if value.is_complex() or value.dtype == torch.bool or (integer and value.is_floating_point()):
        raise ValueError(f"{name} must hold {'whole ' if integer else ''}numbers, not {value.dtype}")
    if not bool((value >= 0).all()) or not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite and 0 or more in every row")


@dataclass(frozen=True)
class Stop:
    """When an example stops: RMS(f(z) - z) <= atol + rtol * RMS(f(z)) in each of its floating leaves, or `max_steps`.

    Args:
        rtol: relative tolerance; a number, or a tensor `(batch,)` with one entry an example.
        atol: absolute tolerance, in units of the state. 0 makes the stop free of scale; a fixed point at 0 needs one.
        max_steps: most applications of `step`; a whole number, or an int64 tensor `(batch,)`.

    With `rtol=0, atol=0` exactly `max_steps` steps are taken and finiteness is checked once, at the end; in an `rtol`
    tensor this holds for the rows that have 0.

    Raises:
        ValueError: a value that is negative, not finite, or not a whole number where one is needed.

    Example:
        >>> Stop(rtol=1e-6, max_steps=50)
        Stop(rtol=1e-06, atol=0.0, max_steps=50)
        >>> Stop(max_steps=-1)
        Traceback (most recent call last):
        ValueError: max_steps must be a whole number, 0 or more, not -1
    """

    rtol: float | Tensor = 1e-4
    atol: float = 0.0
    max_steps: int | Tensor = 200

    def __post_init__(self) -> None:
        plain_numbers(self)
        if isinstance(self.rtol, Tensor):
            _check_tensor("rtol", self.rtol, integer=False)
        else:
            check_range("rtol", self.rtol, 0, "a number, 0 or more")
        check_range("atol", self.atol, 0, "a number, 0 or more")
        if isinstance(self.max_steps, Tensor):
            _check_tensor("max_steps", self.max_steps, integer=True)
        else:
            check_count("max_steps", self.max_steps, 0)

    @property
    def tests(self) -> bool:
        """False when no tolerance is set, so that every example takes exactly its `max_steps`."""
        return self.atol > 0 or bool(torch.as_tensor(self.rtol > 0).any())
