"""`solve`: iterate a map to its fixed point, per example, with gradients."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from homeostat.engine.backward.functional import is_transformed, no_tangents, refuse_mixed_modes
from homeostat.engine.backward.implicit import implicit, neumann, shine
from homeostat.engine.backward.phantom import phantom
from homeostat.engine.backward.unrolled import unrolled
from homeostat.engine.forward.looks import is_due, took
from homeostat.engine.forward.noise import name_noise, random_numbers
from homeostat.engine.forward.run import run
from homeostat.engine.forward.watch import Watch
from homeostat.engine.gradients import (
    Gradient,
    Implicit,
    Neumann,
    OneStep,
    Phantom,
    Shine,
    Unrolled,
    default_method,
)
from homeostat.engine.mapped import Mapping, unmapped
from homeostat.engine.methods import Broyden, Method
from homeostat.engine.problem import Problem
from homeostat.engine.single import named_as_one, one_row, without_row
from homeostat.engine.solution import Adjoint, Solution, Status, of_one
from homeostat.engine.step_function import StepFunction, with_context
from homeostat.engine.stop import Stop, check_count, check_option, explain_stray_options
from homeostat.engine.uncompiled import uncompiled
from homeostat.errors import ContractError, ConvergenceWarning, warn_caller

# A residual is a mean over many unknowns, so that it can be smaller than one unit in the last place of each; below this
# share of a unit nothing is left but equality.
_FINEST = 1 / 16


@uncompiled
@explain_stray_options
def solve(
    step: StepFunction,
    state: Any,
    context: Any = None,
    *,
    method: Method | None = None,
    stop: Stop = Stop(),  # noqa: B008 - options are frozen values
    gradient: Gradient = Implicit(),  # noqa: B008
    returns: Literal["last", "best"] = "last",
    trace: bool = False,
    sync_every: int | None = None,
    compile: bool = False,
    batched: bool = True,
) -> Solution:
    """Apply `state <- step(state, context)` until each example has converged, and differentiate the result.

    Every decision is per example: an example's answer does not depend on who shares its batch, and rows that are
    finished leave the batch together with their context. With `batched=False` the whole state, of any shape, is one
    problem: a vector, a grid, a coupled system.

    Args:
        step: the map, `step(state, context)`, or `step(state)` where there is no context. Gets and returns bare
            tensors, in the same structure, shapes, dtypes and devices as `state`. It has to be the same map each time:
            noise and masks belong into the context, a row an example, so that they leave with their rows; normalising
            by statistics of the batch is refused, and so is changing what it was given in place.
        state: where to start; a tensor or a nest of tensors (tuple, list, dict), batch first. Integer and boolean
            leaves, and those marked `Carry`, are carried along but not measured. A former `Solution.state` starts warm.
        context: what `step` needs beside the state, batch first; parts that are not per example are marked `Shared`.
        method: how to iterate: `Anderson()`, `Picard()`, which is the plain loop, or `Broyden()`. The accelerated ones
            take plain steps for rows that acceleration does not help. None: `Anderson()`, and `Picard()` with the
            gradient `Unrolled`, so that what is trained by steps is run by steps.
        stop: when an example stops. A tolerance finer than the dtype can resolve is raised to that, with a warning.
        gradient: `Implicit()`, `Phantom()`, `OneStep()`, `Neumann()`, `Shine()` or `Unrolled()`. Used where gradients
            are enabled; gradients reach the parameters that `step` closes over, the context, and with `Unrolled` the
            start.
        returns: `"last"`: the last f(z) of each example. `"best"`: the f(z) with the lowest residual on the way, for
            maps that pass their fixed point closely and leave it again; costs one more state.
        trace: keep the relative residual of every step in `Solution.trace`.
        sync_every: look at the stopping test every so many steps, for devices on which looking means waiting; states in
            between are kept, and answers are those of the first step within tolerance all the same. None: the engine
            chooses, every step where rows are about to finish and seldom where they are not.
        compile: take steps as compiled graphs, of several steps where the state is small: the same answers to rounding,
            statuses and steps, in less time where there are many. The first solve with a step compiles, for seconds. A
            step that PyTorch cannot compile as one graph runs eagerly, with a CompileWarning; `Unrolled`, solves under
            the transforms of `torch.func`, and all backward passes are eager in any case.
        batched: False: the state is one problem, with one stop. Nothing is marked `Shared`: the context is whatever
            `step` takes, and comes as it is. Tolerances and limits are numbers.

    Returns:
        A `Solution`. Its state is the last f(z) of each example (or the best), and `residual` was measured on the way
        to it. With `batched=False` its `steps`, `residual` and `status` are 0-d, and its `trace` is `(steps,)`.

    Raises:
        ContractError: a `step` that changes structure, shape, dtype or device, or what it was given in place, or that
            normalises by its batch; leaves whose rows do not match.
        ConvergenceError: rows did not converge and `gradient.on_failure` is `"raise"`.
        TypeError, ValueError: an option that is not one of the option objects, or that makes no sense.

    Example:
        >>> import torch
        >>> from homeostat import Picard
        >>> gain = torch.tensor([[0.5], [0.9]])
        >>> solution = solve(lambda z, c: c["gain"] * z + 1, torch.zeros(2, 3), {"gain": gain}, stop=Stop(rtol=1e-6))
        >>> solution.state[:, 0].round(decimals=3)
        tensor([ 2., 10.])
        >>> plain = solve(lambda z, c: c["gain"] * z + 1, torch.zeros(2, 3), {"gain": gain}, method=Picard())
        >>> bool(solution.steps[1] < plain.steps[1])
        True
        >>> matrix = torch.tensor([[0.0, 0.5], [0.25, 0.0]])
        >>> one = solve(lambda z: matrix @ z + 1, torch.zeros(2), batched=False)  # one problem of two unknowns
        >>> one.state.round(decimals=3), int(one.status)
        (tensor([1.7140, 1.4290]), 0)
    """
    check_option("gradient", gradient, Gradient, "hs.Implicit()")
    method = default_method(gradient) if method is None else method
    check_option("method", method, Method, "hs.Anderson()")
    check_option("stop", stop, Stop, "hs.Stop(rtol=1e-4)")
    if returns not in ("last", "best"):
        raise ValueError(f"returns must be 'last' or 'best', not {returns!r}")
    for name, value in (("compile", compile), ("batched", batched)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {value!r}")
    if sync_every is not None:
        sync_every = check_count("sync_every", sync_every)
    if not batched:
        step, state, context = one_row(step, state, context, stop)
    if is_transformed():
        step = with_context(step, context)
        mapping = Mapping.around(step, state, context, stop)
        if mapping is not None:
            options = {"returns": returns, "trace": trace, "sync_every": sync_every, "compile": compile}
            inner = partial(_solve_mapped, method=method, gradient=gradient, **options)
            solution = mapping.solve(inner, step, state, context, stop)
            return solution if batched else _of_one(solution)
        step = unmapped(step)
    problem = Problem.of(step, state, context)
    problem = problem if batched else named_as_one(problem)
    for name, value in (("rtol", stop.rtol), ("max_steps", stop.max_steps)):
        if isinstance(value, Tensor) and len(value) != problem.rows:
            raise ContractError(f"stop.{name} has {len(value)} entries, the state has {problem.rows} rows")
    stop = resolvable(stop, problem)
    graphed = torch.is_grad_enabled()
    look = is_due(problem)
    problem = replace(problem, compared=look)
    inverse = graphed and isinstance(gradient, Shine) and isinstance(method, Broyden)
    watch = Watch(returns == "best", trace, inverse, look, sync_every=sync_every)

    compile = compile and not is_transformed()
    adjoint: list[Adjoint] = []
    numbers = random_numbers(problem.state[0].device)
    if not graphed:
        found = run(problem, stop, method, watch, compile)
        if not is_transformed():
            name_noise(problem, stop, found, numbers)
    elif isinstance(gradient, Unrolled):
        found = unrolled(problem, stop, method, gradient, watch)
    else:
        refuse_mixed_modes()
        with torch.no_grad(), no_tangents():
            found = run(problem, stop, method, watch, compile)
        if not is_transformed():
            name_noise(problem, stop, found, numbers)
        match gradient:
            case Implicit():
                found = implicit(problem, found, gradient, stop, adjoint)
            case Neumann():
                found = neumann(problem, found, gradient, stop, adjoint)
            case Shine():
                found = shine(problem, found, gradient, stop)
            case Phantom():
                found = phantom(problem, found, stop, gradient.steps, gradient.damping)
            case OneStep():
                found = phantom(problem, found, stop, steps=1, damping=1.0)
    took(problem, found.row_evaluations // max(problem.rows, 1))
    leaves = found.leaves
    if graphed and bool((found.status == Status.DIVERGED).all()):  # or no rows: a loss has a gradient, of nothing
        free = [i for i in problem.layout.measured() if not leaves[i].requires_grad]
        leaves = [x.detach().requires_grad_() if i in free else x for i, x in enumerate(leaves)]
    nest = problem.layout.build(leaves, marks=True)
    solution = Solution(nest, found.steps, found.residual, found.status, found.row_evaluations, found.trace, adjoint)
    return solution if batched else _of_one(solution)


def _of_one(solution: Solution) -> Solution:
    """The solution of a batch with a single row as that of one problem."""
    return of_one(replace(solution, state=without_row(solution.state)))


def _solve_mapped(step: StepFunction, state: Any, context: Any, stop: Stop, **options: Any) -> Solution:
    return solve(step, state, context, stop=stop, **options)


def resolvable(stop: Stop, problem: Problem) -> Stop:
    """The stop with tolerances that the dtype of the state can resolve."""
    dtypes = {problem.state[i].dtype for i in problem.layout.measured()}
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    finest = _FINEST * torch.finfo(coarsest).eps
    rtol = torch.as_tensor(stop.rtol, dtype=torch.float64)
    too_fine = (rtol > 0) & (rtol < finest)
    if not bool(too_fine.any()):
        return stop
    asked = float(rtol[too_fine].min() if rtol.ndim else rtol)
    warn_caller(
        f"rtol={asked:.2g} is finer than {str(coarsest)[6:]} can resolve; {finest:.2g} is used, and rows may end "
        f"STALLED: about {torch.finfo(coarsest).eps / 2:.1g} can be reached",
        ConvergenceWarning,
    )
    if isinstance(stop.rtol, Tensor):
        return replace(stop, rtol=torch.where(too_fine, finest, stop.rtol))
    return replace(stop, rtol=finest)
