"""Derivatives of the implicit gradient: the linear solve as a function that can itself be differentiated.

With `z = f(z, w)` and `u = J^T u + g`, the gradient of the sources `w` is `u^T df/dw` at `z`. It depends on `z`, on
`w` and on `u`; `u` depends on `g` and, through `J`, on `z` and `w` again. For any solve `x = J x + b`, or one with
`J^T`, and any gradient `h` of its solution, the solution `y` of the transposed system for `h` is the gradient of `b`,
and the gradient of everything in `J` is that of the bilinear form `y^T J x` (or `x^T J y`), taken from the recording.
`y` is a solve of the same kind, so that derivatives of any order follow.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.backward.one_by_one import each_alone
from homeostat.engine.backward.recording import Recording, twice_refused

Vectors = Sequence[Tensor]
LinearSolve = Callable[[Vectors, bool], tuple[list[Tensor], Tensor | None]]
"""From `b`, and whether the matrix is `J^T`, to the solution and `(rows,)` bool, the rows of which it is one."""


def pull_with_graph(
    recording: Recording, solve: LinearSolve, state: Vectors, cotangents: Vectors
) -> list[Tensor | None]:
    """The gradients of the recording's sources, as functions of `cotangents`, the state and the sources.

    Args:
        recording: one evaluation, with the inputs' leaves at the solution.
        solve: see `LinearSolve`.
        state: the solution, with the graph that ties it to the sources.
        cotangents: of the state.
    """
    u, _ = _linear(recording, solve, True, state, cotangents)
    given = [x.detach().requires_grad_() for x in u]
    with torch.enable_grad(), recording.bounded():
        found = _gradients(recording.outputs, recording.sources, given)
    return _rewired(recording, found, given, u, state)


def _gradients(outputs: Vectors, inputs: Vectors, given: Vectors, *, graph: bool = True) -> list[Tensor | None]:
    """The gradients of some outputs, where there are any, with a graph of their own."""
    pairs = [(x, g) for x, g in zip(outputs, given, strict=True) if x.requires_grad]
    if not pairs or not inputs:
        return [None] * len(inputs)
    used, weights = zip(*pairs, strict=True)
    return list(torch.autograd.grad(used, inputs, weights, retain_graph=True, create_graph=graph, allow_unused=True))


def _linear(
    recording: Recording, solve: LinearSolve, transposed: bool, state: Vectors, source: Vectors
) -> tuple[Vectors, Tensor | None]:
    """The solution of `x = J^T x + b` (or with `J`) with its derivatives, and the rows that it is one of."""
    with torch.no_grad():
        found, solved = solve([b.detach() for b in source], transposed)
    tensors = (*found, *source, *state, *recording.sources)
    return _Linear.apply(recording, solve, transposed, solved, len(found), *tensors), solved


class _Linear(torch.autograd.Function):
    """A solution as a function of what it was solved for, of the state and of the sources."""

    @staticmethod
    def forward(
        ctx: Any,
        recording: Recording,
        solve: LinearSolve,
        transposed: bool,
        solved: Tensor | None,
        count: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.recording, ctx.solve, ctx.transposed, ctx.solved, ctx.count = recording, solve, transposed, solved, count
        found = tuple(x.clone() for x in tensors[:count])
        ctx.save_for_backward(*found, *tensors[2 * count : 3 * count])
        return found

    @staticmethod
    @each_alone
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        recording, graph = ctx.recording, torch.is_grad_enabled()
        recording.check()
        x, state = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        if graph:
            y, solved = _linear(recording, ctx.solve, not ctx.transposed, state, cotangents)
        else:
            y, solved = ctx.solve(cotangents, not ctx.transposed)
        # Rows that are no solution were given a vector that depends on nothing in `J`.
        vectors = (_only(ctx.solved, x), _only(solved, y))
        left, right = vectors if ctx.transposed else vectors[::-1]
        with torch.enable_grad(), recording.bounded():
            a, b = ([v.detach().requires_grad_() for v in side] for side in (left, right))
            pulled = [
                torch.zeros_like(z) if g is None else g
                for z, g in zip(recording.inputs, _gradients(recording.outputs, recording.inputs, a), strict=True)
            ]
            found = _gradients(pulled, [*a, *recording.inputs, *recording.sources], b, graph=graph)
            if any(x.requires_grad for x in pulled) and all(g is None for g in found[: ctx.count]):
                raise twice_refused()  # it is linear in `a`
            found = found[ctx.count :]
        if graph:
            found = _rewired(recording, found, [*a, *b], [*left, *right], state)
        return (*[None] * (5 + ctx.count), *y, *found)


def _only(rows: Tensor | None, vectors: Vectors) -> Vectors:
    """The vectors, 0 in other rows."""
    if rows is None:
        return vectors
    return [torch.where(rows.view(-1, *[1] * (v.ndim - 1)), v, 0) for v in vectors]


def _rewired(
    recording: Recording, found: Sequence[Tensor | None], given: Vectors, vectors: Vectors, state: Vectors
) -> list[Tensor | None]:
    """What was computed from leaves, as a function of the tensors that these leaves stand for."""
    leaves = [*given, *recording.inputs, *recording.sources]
    actual = [*vectors, *state, *recording.sources]
    places = [i for i, x in enumerate(found) if x is not None and x.requires_grad]
    result = [x if x is None else x.detach() for x in found]
    if places:
        outputs = [x for i in places if (x := found[i]) is not None]
        tied = _Rewire.apply(recording, outputs, leaves, len(state), *actual)
        for i, x in zip(places, tied, strict=True):
            result[i] = x
    return result


class _Rewire(torch.autograd.Function):
    """Outputs that were computed from leaves, with a graph that leads to other tensors of the same values."""

    @staticmethod
    def forward(
        ctx: Any, recording: Recording, outputs: list[Tensor], leaves: list[Tensor], count: int, *actual: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.recording, ctx.outputs, ctx.leaves, ctx.count = recording, outputs, leaves, count
        ctx.save_for_backward(*actual)
        return tuple(x.detach().clone() for x in outputs)

    @staticmethod
    @each_alone
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        graph, recording = torch.is_grad_enabled(), ctx.recording
        recording.check()
        given = [g.detach().requires_grad_() for g in cotangents]
        with torch.enable_grad(), recording.bounded():
            found = _gradients(ctx.outputs, ctx.leaves, given, graph=graph)
        actual = ctx.saved_tensors
        others = len(actual) - len(recording.sources) - ctx.count
        if all(g is None for g in found[:others]):  # it is linear in each of them
            raise twice_refused()
        if graph:
            state = actual[others : others + ctx.count]
            vectors = [*cotangents, *actual[:others]]
            leaves = [*given, *ctx.leaves[:others]]
            found = _rewired(recording, found, leaves, vectors, state)
        return (None, None, None, None, *found)
