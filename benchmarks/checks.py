"""What the engine's own checks cost: with them against without, in pairs, and what memory a gradient takes.

Without means: nobody looks whether rows hear of one another, whether a step changes what it was given, or whether what
was recorded for the gradient is still what it was. That cannot be asked for; here the functions that look are replaced
for a moment by ones that do not. The first use of a step, which is looked at more closely, comes before. After that a
step is looked at once in 400 evaluations: so many make up one timed run, so that each has its share of the looks.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

import homeostat as hs
from benchmarks.cells import CHAOTIC, Cell, bare_loop, conv, mlp
from benchmarks.memory import peak_bytes
from benchmarks.results import Figure, Target
from benchmarks.timing import Spread, paired
from homeostat.engine.backward import adjoint
from homeostat.engine.backward.adjoint import JacobianRows
from homeostat.engine.backward.graph import Seal
from homeostat.engine.forward import run as running
from homeostat.engine.problem import Problem
from homeostat.engine.surroundings import Surroundings

_STEPS, _FORWARD, _BACKWARD = 50, 40, 20
_BETWEEN_LOOKS = 400
_LIMIT = 3.0  # per cent


class _Switch:
    """The engine's checks, that can be switched off and on between two runs."""

    def __init__(self) -> None:
        self.on = True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While this lasts, the switch decides whether the checks do anything."""
        with ExitStack() as stack:
            for owner, name, otherwise in (
                (running, "check_rows", None),
                (adjoint, "check_silence", None),
                (Seal, "__init__", None),
                (Seal, "check", None),
                (Surroundings, "__init__", None),
                (JacobianRows, "_are_alike", True),
            ):
                stack.enter_context(patch.object(owner, name, self._either(getattr(owner, name), otherwise)))
            compared = Problem._compared
            stack.enter_context(
                patch.object(
                    Problem,
                    "_compared",
                    lambda own, call, *rest: compared(own, call, *rest) if self.on else self._taken(call, *rest),
                )
            )
            yield

    @staticmethod
    def _taken(call: Callable[..., Any], state: Any, context: Any, returned: set[int]) -> Any:
        returned.update(range(len(state)))  # or a step that hands back its state would be looked at for ever
        return call(state)

    def _either(self, check: Callable[..., Any], otherwise: Any) -> Callable[..., Any]:
        return lambda *args, **options: check(*args, **options) if self.on else otherwise


def _solve(cell: Cell) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return hs.solve(
                cell.step, cell.state, cell.context, method=hs.Picard(), stop=hs.Stop(1e-6, max_steps=_STEPS)
            )

    return run


def _train(cell: Cell) -> Callable[[], object]:
    weight = next(iter(cell.weights.values())).requires_grad_()
    gradient = hs.Implicit(method=hs.Picard(), stop=hs.Stop(0, max_steps=_BACKWARD))

    def run() -> object:
        weight.grad = None
        stop = hs.Stop(1e-6, max_steps=_FORWARD)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = hs.solve(cell.step, cell.state, cell.context, method=hs.Picard(), stop=stop, gradient=gradient)
            found.state.square().sum().backward()
        return found

    return run


def measure(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """Time with the checks over time without them, and memory of an implicit gradient beyond a bare loop."""
    for make in (mlp, conv):
        for what, run, steps in (
            (f"solve of {_STEPS} steps", _solve(make(CHAOTIC, device)), _STEPS),
            (f"training step, {_FORWARD} + {_BACKWARD}", _train(make(1.1, device)), _FORWARD),
        ):
            name = f"checks: {what}, {make.__name__} cell"
            yield _cost(name, partial(_repeat, run, _BETWEEN_LOOKS // steps), device, share)
    for make in (mlp, conv):
        yield _memory(make, device)


def _repeat(run: Callable[[], object], times: int) -> None:
    for _ in range(times):
        run()


def _cost(name: str, run: Callable[[], object], device: str, share: float) -> Figure:
    switch = _Switch()

    def timed(on: bool) -> object:
        switch.on = on
        return run()

    run()  # the first use of the step
    with switch.installed():
        checked = {"checked": partial(timed, True)}
        found = paired(partial(timed, False), checked, seconds=30 * share, most=400, device=device)["checked"]
    spread = Spread.of(tuple(100 * (ratio - 1) for ratio in found.ratios))
    return Figure("checks", name, spread.median, "%", spread.low, spread.high, len(found.ratios), target=Target(_LIMIT))


def _memory(make: Callable[..., Cell], device: str) -> Figure:
    """Peak of forward and backward beyond a bare loop without a gradient, in states, at several numbers of steps."""
    peaks = {}
    for steps in (10, 100, 1000):
        cell = make(1.1, device)
        gradient = hs.Implicit(method=hs.Picard(), stop=hs.Stop(0, max_steps=_BACKWARD))
        stop = hs.Stop(0, max_steps=steps)
        _forward_and_backward(make(1.1, device, seed=1), stop, gradient)
        run = partial(_forward_and_backward, cell, stop, gradient)  # of another weight, so that it is looked at
        bare = peak_bytes(lambda cell=cell, steps=steps: bare_loop(cell, steps), device)
        peaks[steps] = (peak_bytes(run, device) - bare) / cell.state_bytes
    note = ", ".join(f"{steps} steps: {value:.2f}" for steps, value in peaks.items())
    growth = 100 * (peaks[1000] / peaks[10] - 1)
    name = f"memory of Implicit beyond a bare loop, {make.__name__} cell, from 10 to 1,000 steps"
    return Figure("checks", name, growth, "% growth", target=Target(5), note=f"states, {note}")


def _forward_and_backward(cell: Cell, stop: hs.Stop, gradient: hs.Implicit) -> None:
    next(iter(cell.weights.values())).requires_grad_().grad = None
    hs.solve(
        cell.step, cell.state, cell.context, method=hs.Picard(), stop=stop, gradient=gradient
    ).state.sum().backward()
