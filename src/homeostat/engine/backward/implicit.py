"""Gradients of a fixed point: the implicit function theorem, solved on the same engine as the forward problem."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.forward.run import Run, run
from homeostat.engine.gradients import Implicit
from homeostat.engine.methods import Picard
from homeostat.engine.nest import flatten
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Adjoint, Status
from homeostat.engine.stop import Stop
from homeostat.errors import ConvergenceError, ConvergenceWarning


def report_failure(what: str, status: Tensor, gradient: Implicit, *, stacklevel: int = 2) -> None:
    """Warn or raise, with counts, when rows did not converge.

    Raises:
        ConvergenceError: with `on_failure="raise"`.
    """
    counts = {kind.name: int((status == kind).sum()) for kind in Status if kind is not Status.CONVERGED}
    failed = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if not failed:
        return
    message = f"the {what} solve left {sum(counts.values())} of {len(status)} rows unconverged ({failed})"
    if gradient.on_failure == "raise":
        raise ConvergenceError(f"{message}; their gradient would not be that of a fixed point")
    consequence = "they get no gradient" if gradient.on_failure == "mask" else "their gradient is approximate"
    warnings.warn(f"{message}; {consequence}, and diverged rows get none", ConvergenceWarning, stacklevel=stacklevel)


class _Tape:
    """Products `J^T u` of one recorded evaluation of `f`, with `J` the Jacobian at the fixed point."""

    def __init__(self, problem: Problem, autocast: AbstractContextManager[Any] | None = None) -> None:
        """Record `f` at `problem.state`, under `autocast` if given; measured leaves only are differentiated."""
        self.measured = problem.layout.measured()
        with torch.enable_grad(), autocast or nullcontext():
            state = list(problem.state)
            for i in self.measured:
                state[i] = state[i].detach().requires_grad_()
            after = problem.apply(state, problem.context)
        self.inputs = [state[i] for i in self.measured]
        self.outputs = [after[i] for i in self.measured]

    def reaches_others(self) -> bool:
        """Whether gradients flow to anything but the state itself: parameters, or what the context was made from."""
        waiting: list[Any] = [x.grad_fn for x in self.outputs if x.grad_fn is not None]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            leaf = getattr(node, "variable", None)  # only nodes that accumulate into a leaf have one
            if leaf is not None and not any(leaf is x for x in self.inputs):
                return True
            following = {function for function, _ in node.next_functions if function is not None} - seen
            seen |= following
            waiting.extend(following)
        return False

    def pull(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """`J^T u` for one cotangent per measured leaf."""
        pairs = [(x, u) for x, u in zip(self.outputs, cotangents, strict=True) if x.requires_grad]
        if not pairs:
            return [torch.zeros_like(x) for x in self.inputs]
        outputs, chosen = zip(*pairs, strict=True)
        # Adding up what flows back is all that happens to these tensors, so a missing path is a plain zero.
        found = torch.autograd.grad(outputs, self.inputs, chosen, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(self.inputs, found, strict=True)]


def _present_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """The autocast of this moment: `backward` runs outside of it, and on some devices in another thread."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))


def solve_adjoint(
    problem: Problem,
    tape: _Tape,
    cotangents: Sequence[Tensor],
    stop: Stop,
    autocast: AbstractContextManager[Any],
) -> tuple[list[Tensor], Adjoint]:
    """Solve `u = J^T u + g` by plain iteration, per example, with rows leaving as they finish.

    Args:
        problem: the forward map with its state at the fixed point.
        tape: `f` recorded there, for all rows.
        cotangents: `g`, one per measured leaf.
        stop: when an example's adjoint stops.
        autocast: what `f` is recorded under, when it is recorded again.

    Returns:
        `u`, one per measured leaf, and how the solve went.
    """
    recorded = tape
    extra = 0
    keyed = problem.state[tape.measured[0]]

    def adjoint_step(cotangent: tuple[Tensor, ...], at: tuple[list[Tensor], list[Any], list[Tensor]]) -> tuple:
        nonlocal recorded, extra, keyed
        state, context, source = at
        key = state[tape.measured[0]]
        if key is not keyed:  # rows have left: record f again on those that are still here
            recorded = _Tape(replace(problem, state=state, context=context, rows=len(key)), autocast)
            keyed = key
            extra += len(key)
        return tuple(p + g for p, g in zip(recorded.pull(cotangent), source, strict=True))

    start, layout = flatten(tuple(cotangents), "state")
    # The context of the adjoint problem: fixed point, forward context and g, row by row. Shared leaves stay shared.
    parts = [*problem.state, *problem.context, *cotangents]
    kinds = (*("measured" for _ in problem.state), *problem.context_layout.kinds, *("measured" for _ in cotangents))
    split, end = len(problem.state), len(problem.state) + len(problem.context)

    def step(cotangent: tuple[Tensor, ...], flat: list[Any]) -> tuple:
        return adjoint_step(cotangent, (flat[:split], flat[split:end], flat[end:]))

    _, like = flatten([torch.empty(0, 0) for _ in parts], "context")
    map_ = Problem(step, start, layout, parts, replace(like, kinds=kinds), problem.rows)
    found = run(map_, stop, Picard())
    return found.leaves, Adjoint(found.steps, found.residual, found.status, found.row_evaluations + extra)


class _FixedPoint(torch.autograd.Function):
    """The fixed point's value forward; the adjoint solve backward, handed on to one recorded evaluation of `f`."""

    @staticmethod
    def forward(ctx: Any, adjoint: "_AdjointSolve", *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.adjoint = adjoint
        half = len(leaves) // 2
        return tuple(x.clone() for x in leaves[:half])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.no_grad():
            found = ctx.adjoint(cotangents)
        if torch.is_grad_enabled():  # create_graph=True
            found = _NoSecondDerivative.apply(len(found), *found, *ctx.adjoint.tape.outputs)
        return (None, *(None for _ in cotangents), *found)


class _NoSecondDerivative(torch.autograd.Function):
    """The adjoint as it is; a second derivative through it raises, because the adjoint solve itself is not recorded.

    `once_differentiable` would not do: it raises only where a graph leads through it, and a second derivative with
    respect to parameters would go round it and be wrong. Hence the recorded outputs, which lead to the parameters.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError("Implicit has no second derivative: use gradient=Unrolled() for it")


class _AdjointSolve:
    """What `backward` does, kept apart from autograd's class so that the solution can be told about it."""

    def __init__(self, problem: Problem, tape: _Tape, gradient: Implicit, solution_adjoint: list[Adjoint]) -> None:
        self.problem, self.tape, self.gradient, self.found = problem, tape, gradient, solution_adjoint
        self.autocast = _present_autocast(problem.state[0].device)

    def __call__(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        result, adjoint = solve_adjoint(
            self.problem, self.tape, cotangents, self.gradient.stop or Stop(rtol=1e-5, max_steps=500), self.autocast
        )
        self.found.append(adjoint)
        report_failure("adjoint", adjoint.status, self.gradient)
        drop = adjoint.status == Status.DIVERGED
        if self.gradient.on_failure == "mask":
            drop = adjoint.status != Status.CONVERGED
        if bool(drop.any()):
            result = [torch.where(drop.view(-1, *([1] * (u.ndim - 1))), 0, u) for u in result]
        return result


def implicit(problem: Problem, found: Run, gradient: Implicit, adjoint: list[Adjoint]) -> Run:
    """A run with the implicit gradient attached to its leaves; `backward` appends to `adjoint` how it went.

    Rows that diverged (with `on_failure="mask"`: that did not converge) take no part in the recorded evaluation, so
    that they cannot put a NaN into shared parameters.
    """
    # A step that returns its input, or no step, would hand on the start's graph.
    leaves = [x.detach() for x in found.leaves]
    keep = found.status != Status.DIVERGED
    if gradient.on_failure == "mask":
        keep = found.status == Status.CONVERGED
    whole = bool(keep.all())
    index = keep.nonzero().squeeze(1)
    if len(index) == 0:
        report_failure("forward", found.status, gradient, stacklevel=4)
        return replace(found, leaves=leaves)
    at = replace(problem, state=leaves)
    at = at if whole else at.subset(index)
    tape = _Tape(at)
    evaluations = found.row_evaluations + at.rows
    if not tape.reaches_others():
        return replace(found, leaves=leaves, row_evaluations=evaluations)
    report_failure("forward", found.status, gradient, stacklevel=4)
    detached = replace(at, context=[x.detach() if isinstance(x, Tensor) else x for x in at.context])
    backward = _AdjointSolve(detached, tape, gradient, adjoint)
    attached = _FixedPoint.apply(backward, *(at.state[i] for i in tape.measured), *tape.outputs)
    result = list(leaves)
    for i, value in zip(tape.measured, attached, strict=True):
        result[i] = value if whole else leaves[i].index_copy(0, index, value)
    return replace(found, leaves=result, row_evaluations=evaluations)
