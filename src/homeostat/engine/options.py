"""What a caller chooses. Every option refuses nonsense when it is made, and every one can be made bare."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def _check_range(name: str, value: float, low: float, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= low or value == float("inf"):
        raise ValueError(f"{name} must be {what}, not {value!r}")


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
        if isinstance(self.rtol, Tensor):
            _check_tensor("rtol", self.rtol, integer=False)
        else:
            _check_range("rtol", self.rtol, 0, "a number, 0 or more")
        _check_range("atol", self.atol, 0, "a number, 0 or more")
        if isinstance(self.max_steps, Tensor):
            _check_tensor("max_steps", self.max_steps, integer=True)
        elif isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 0:
            raise ValueError(f"max_steps must be a whole number, 0 or more, not {self.max_steps!r}")

    @property
    def tests(self) -> bool:
        """False when no tolerance is set, so that every example takes exactly its `max_steps`."""
        return self.atol > 0 or bool(torch.as_tensor(self.rtol > 0).any())


@dataclass(frozen=True)
class Picard:
    """Plain iteration, `z <- f(z)`. Converges where `f` contracts, in any norm.

    Example:
        >>> Picard()
        Picard()
    """


@dataclass(frozen=True)
class Implicit:
    """The gradient of the fixed point itself, by the implicit function theorem; memory does not grow with steps.

    With `z* = f(z*)`, `backward` solves `u = J^T u + g` for the incoming gradient `g` by plain iteration, per example,
    and passes `u` to one more evaluation of `f`. It is as exact as both solves are converged; it is 0 for the start.

    Args:
        stop: when the adjoint iteration stops.
        on_failure: for rows whose forward or adjoint solve did not converge. `"warn"` uses them and warns with counts;
            `"raise"` raises ConvergenceError; `"mask"` gives them no gradient. Rows that diverged never get one.

    Example:
        >>> Implicit(on_failure="mask")
        Implicit(stop=Stop(rtol=1e-05, atol=0.0, max_steps=500), on_failure='mask')
    """

    stop: Stop = Stop(rtol=1e-5, max_steps=500)
    on_failure: Literal["warn", "raise", "mask"] = "warn"

    def __post_init__(self) -> None:
        if not isinstance(self.stop, Stop):
            raise ValueError(f"stop must be a Stop, not {self.stop!r}")
        if isinstance(self.stop.max_steps, Tensor) or isinstance(self.stop.rtol, Tensor):
            raise ValueError("the adjoint's stop takes plain numbers, not tensors")
        if self.on_failure not in ("warn", "raise", "mask"):
            raise ValueError(f"on_failure must be 'warn', 'raise' or 'mask', not {self.on_failure!r}")


@dataclass(frozen=True)
class Unrolled:
    """Backpropagation through the steps that were taken; exact for what was computed, and it reaches the start.

    Args:
        last: keep the graph of the last `last` steps of each example only (truncated backpropagation; the start then
            gets a gradient only where an example took no more than that). None keeps all of them.

    Where `stop` has a tolerance and `last` is given, the steps before are taken twice: once to find where each example
    stops, once to come back to `last` steps before that.

    Example:
        >>> Unrolled(last=5)
        Unrolled(last=5)
    """

    last: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None and (isinstance(self.last, bool) or not isinstance(self.last, int) or self.last < 1):
            raise ValueError(f"last must be None or a whole number, 1 or more, not {self.last!r}")


Gradient = Implicit | Unrolled
