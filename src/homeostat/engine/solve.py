"""`solve`: iterate a map to its fixed point, per example, with gradients."""

from typing import Any

import torch
from torch import Tensor

from homeostat.engine.backward.functional import is_transformed, refuse_vmap
from homeostat.engine.backward.implicit import implicit, neumann, shine
from homeostat.engine.backward.phantom import phantom
from homeostat.engine.backward.unrolled import unrolled
from homeostat.engine.forward.run import run
from homeostat.engine.gradients import Gradient, Implicit, Neumann, OneStep, Phantom, Shine, Unrolled
from homeostat.engine.methods import Method, Picard
from homeostat.engine.problem import Problem, StepFunction
from homeostat.engine.solution import Adjoint, Solution
from homeostat.engine.stop import Stop
from homeostat.errors import ContractError


def solve(
    step: StepFunction,
    state: Any,
    context: Any = None,
    *,
    method: Method = Picard(),  # noqa: B008 - options are frozen values
    stop: Stop = Stop(),  # noqa: B008
    gradient: Gradient = Implicit(),  # noqa: B008
    compile: bool = False,
) -> Solution:
    """Apply `state <- step(state, context)` until each example has converged, and differentiate the result.

    Every decision is per example: an example's answer does not depend on who shares its batch, and rows that are
    finished leave the batch together with their context.

    Args:
        step: the map. Gets and returns bare tensors, in the same structure, shapes, dtypes and devices as `state`.
        state: where to start; a tensor or a nest of tensors (tuple, list, dict), batch first. Integer and boolean
            leaves, and those marked `Carry`, are carried along but not measured.
        context: what `step` needs beside the state, batch first; parts that are not per example are marked `Shared`.
        method: how to iterate.
        stop: when an example stops.
        gradient: `Implicit()`, `Phantom()`, `OneStep()`, `Neumann()`, `Shine()` or `Unrolled()`. Used where gradients
            are enabled; gradients reach the parameters that `step` closes over, the context, and with `Unrolled` the
            start. The state that is returned is the same with each of them.
        compile: take steps as compiled graphs, of several steps where the state is small: the same answers to rounding,
            statuses and steps, in less time where there are many. The first solve with a step compiles, for seconds. A
            step that PyTorch cannot compile as one graph runs eagerly, with a CompileWarning; `Unrolled`, solves under
            the transforms of `torch.func`, and all backward passes are eager in any case.

    Returns:
        A `Solution`. Its state is the last f(z) of each example, and `residual` was measured on the way to it.

    Raises:
        ContractError: a `step` that changes structure, shape, dtype or device; leaves whose rows do not match; a
            solve under `torch.vmap`, or in forward-mode differentiation with another gradient than `Unrolled`.
        ConvergenceError: rows did not converge and `gradient.on_failure` is `"raise"`.

    Example:
        >>> import torch
        >>> gain = torch.tensor([[0.5], [0.9]])
        >>> solution = solve(lambda z, c: c["gain"] * z + 1, torch.zeros(2, 3), {"gain": gain}, stop=Stop(rtol=1e-6))
        >>> solution.state[:, 0].round(decimals=3)
        tensor([ 2., 10.])
        >>> bool(solution.steps[0] < solution.steps[1])
        True
    """
    for name, value, kinds in (("method", method, Method), ("stop", stop, Stop), ("gradient", gradient, Gradient)):
        if not isinstance(value, kinds):
            raise TypeError(f"{name} must be one of homeostat's option objects, made, not {value!r}")
    if not isinstance(compile, bool):
        raise TypeError(f"compile must be True or False, not {compile!r}")
    refuse_vmap()
    problem = Problem.of(step, state, context)
    for name, value in (("rtol", stop.rtol), ("max_steps", stop.max_steps)):
        if isinstance(value, Tensor) and len(value) != problem.rows:
            raise ContractError(f"stop.{name} has {len(value)} entries, the state has {problem.rows} rows")

    compile = compile and not is_transformed()
    adjoint: list[Adjoint] = []
    if not torch.is_grad_enabled():
        found = run(problem, stop, method, compile=compile)
    elif isinstance(gradient, Unrolled):
        found = unrolled(problem, stop, method, gradient)
    else:
        with torch.no_grad():
            found = run(problem, stop, method, compile=compile)
        match gradient:
            case Implicit():
                found = implicit(problem, found, gradient, stop, adjoint)
            case Neumann():
                found = neumann(problem, found, gradient, adjoint)
            case Shine():
                found = shine(problem, found, gradient)
            case Phantom():
                found = phantom(problem, found, gradient.steps, gradient.damping)
            case OneStep():
                found = phantom(problem, found, steps=1, damping=1.0)
    nest = problem.layout.build(found.leaves, marks=True)
    return Solution(nest, found.steps, found.residual, found.status, found.row_evaluations, adjoint)
