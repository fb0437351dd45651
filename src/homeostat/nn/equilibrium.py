"""`Equilibrium`: a layer whose output is the fixed point of a cell."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.engine import Implicit, Picard, Solution, Stop, solve
from homeostat.engine.gradients import Gradient, default_method
from homeostat.engine.methods import Method
from homeostat.engine.step_function import StepFunction
from homeostat.engine.stop import check_option, explain_stray_options
from homeostat.engine.uncompiled import uncompiled
from homeostat.errors import ContractError
from homeostat.nn.normalisation import evaluate_once

# What PyTorch, and the contract of a step, say of shapes that do not fit.
_OF_SHAPES = re.compile(r"\b(shapes?|sizes?|dimensions?|channels|became)\b")


class Equilibrium(nn.Module):
    """A layer that applies `state <- cell(state, context)` until each example has converged.

    The layer keeps nothing between calls: it can be copied, pickled, wrapped for data parallelism, shared by threads
    and called as often as wanted before one `backward()`. `train()` and `eval()` reach the cell and nothing else.
    Parametrised weights of a cell that is a module (weight norm, spectral norm) are evaluated once a solve, so that
    every step, and the backward pass, sees the same map; see `evaluate_once`.

    Args:
        cell: `(state, context) -> state`, a module or a function; only a module's parameters are the layer's. A cell
            of the state alone gets no context, which then has to be None.
        method: how to iterate; None: `Anderson()`, and `Picard()` with the gradient `Unrolled`.
        stop: when an example stops, in plain numbers. To think longer in evaluation, set the attribute `stop`.
        gradient: what `backward()` does.
        start: `context -> state`, a module or a function, called where `forward` gets no state; it sees the context as
            it was given, marks included. None: zeros in the shape of the context, which then has to be a floating
            tensor. `Implicit` gives no gradient to the parameters of a start.
        batched: False: each call solves one problem, whatever the shape of its state (all nodes of a graph, a grid),
            and the context is whatever the cell takes; see `solve`.

    Raises:
        TypeError: a cell or start that cannot be called, or an option that is not one.
        ValueError: a stop that holds one number an example, which no batch of another size could use.

    Example:
        >>> import homeostat as hs
        >>> class Cell(nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.linear = nn.Linear(width, width)
        ...
        ...     def forward(self, z, x):
        ...         return torch.tanh(0.5 * self.linear(z) + x)
        >>> layer = hs.nn.Equilibrium(Cell(8), stop=hs.Stop(rtol=1e-5))
        >>> state = layer(torch.ones(4, 8))
        >>> state.square().sum().backward()
        >>> solution = layer.solve(torch.ones(4, 8), state.detach())  # a warm start, and the whole solution
        >>> bool(solution.converged.all())
        True
    """

    @explain_stray_options
    def __init__(
        self,
        cell: StepFunction,
        *,
        method: Method | None = None,
        stop: Stop = Stop(),  # noqa: B008 - options are frozen values
        gradient: Gradient = Implicit(),  # noqa: B008
        start: Callable[[Any], Any] | None = None,
        batched: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(batched, bool):
            raise TypeError(f"batched must be True or False, not {batched!r}")
        for name, value in (("cell", cell), ("start", start)):
            if not callable(value) and (name == "cell" or value is not None):
                raise TypeError(f"{name} must be a module or a function, not {value!r}")
        if method is not None:
            check_option("method", method, Method, "hs.Anderson()")
        check_option("stop", stop, Stop, "hs.Stop(rtol=1e-4)")
        check_option("gradient", gradient, Gradient, "hs.Implicit()")
        if isinstance(stop.rtol, Tensor) or isinstance(stop.max_steps, Tensor):
            raise ValueError("a layer's stop takes plain numbers; homeostat.solve takes one number an example")
        self.cell = cell
        self.method = method
        self.stop = stop
        self.gradient = gradient
        self.start = start
        self.batched = batched

    def forward(self, context: Any = None, state: Any = None) -> Any:
        """The state at the equilibrium, in the structure of the start.

        Args:
            context: what the cell needs beside the state, batch first; a tensor or a nest with marks, as in `solve`.
                With `batched=False` whatever the cell takes.
            state: where to start; None: what the layer's `start` says.
        """
        return self.solve(context, state).state

    @uncompiled
    def solve(self, context: Any = None, state: Any = None) -> Solution:
        """The same as a `Solution`: steps, residual and status of each example beside the state.

        Under `DistributedDataParallel` call this from within the wrapped module's own `forward`, like any submodule.

        Raises:
            ContractError: no state, no `start`, and a context that is not a floating tensor, or not one in the shape
                of a state.
        """
        guessed = state is None and self.start is None
        if state is None:
            state = self._start(context)
        cell = evaluate_once(self.cell) if isinstance(self.cell, nn.Module) else self.cell
        try:
            return solve(
                cell, state, context, method=self.method, stop=self.stop, gradient=self.gradient, batched=self.batched
            )
        except (RuntimeError, ValueError, ContractError) as error:
            if not guessed or not self._cannot_begin(cell, state, context):
                raise
            raise ContractError(
                f"the cell does not take zeros in the shape of the context, {tuple(state.shape)}: where the state has "
                f"another shape, give the layer start=, or forward a state ({str(error).strip().splitlines()[0]})"
            ) from error

    def _cannot_begin(self, cell: Any, state: Tensor, context: Any) -> bool:
        """Whether the cell fails at this start, because of its shape."""
        try:
            with torch.no_grad():
                solve(cell, state, context, method=Picard(), stop=Stop(rtol=0, max_steps=1), batched=self.batched)
        except (RuntimeError, ValueError, ContractError) as error:
            return _OF_SHAPES.search(str(error)) is not None
        return False

    def _start(self, context: Any) -> Any:
        if self.start is not None:
            return self.start(context)
        if isinstance(context, Tensor) and context.is_floating_point():
            return torch.zeros_like(context)
        kind = f"a tensor of {context.dtype}" if isinstance(context, Tensor) else f"a {type(context).__name__}"
        raise ContractError(
            f"the context is {kind}, which does not say where to start: give the layer start=, or forward a state"
        )

    def extra_repr(self) -> str:
        method = self.method or default_method(self.gradient)
        named = [("method", method), ("stop", self.stop), ("gradient", self.gradient)]
        named += [("batched", False)] * (not self.batched)
        # A module is shown as a child already.
        named += [
            (name, getattr(value, "__name__", value))
            for name, value in (("cell", self.cell), ("start", self.start))
            if value is not None and not isinstance(value, nn.Module)
        ]
        return ", ".join(f"{name}={value}" for name, value in named)
