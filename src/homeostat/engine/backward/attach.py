"""What all gradients of a solved state share: which rows are recorded, and how the recording is tied to the state.

The state that a solve returns is always the solved one, bit by bit, whichever gradient is chosen: the recorded
evaluations lend it their graph and not their value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from homeostat.engine.backward.functional import is_transformed, no_tangents
from homeostat.engine.backward.one_by_one import OneByOne, each_alone
from homeostat.engine.backward.recording import Recording
from homeostat.engine.backward.tape import Tape
from homeostat.engine.forward.run import Run
from homeostat.engine.nest import merge_rows
from homeostat.engine.norms import finite_rows
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError

Vectors = Sequence[Tensor]


class Link(Protocol):
    """How gradients, and tangents, get from the solved state into the recorded evaluation, and out of it."""

    @property
    def name(self) -> str:
        """Of the mode, for errors."""
        ...

    def pull(self, cotangents: Vectors) -> list[Tensor]:
        """From the gradients of the state's measured leaves to what is sent into the recorded evaluation."""
        ...

    def push(self, tangents: Vectors) -> list[Tensor]:
        """From the tangents of the recorded outputs to those of the state."""
        ...

    @property
    def pull_with_graph(self) -> Callable[[Vectors, Vectors], list[Tensor | None]] | None:
        """From the tied state and its gradients to those of the recording's sources, with a graph of their own.

        None where what is computed is no derivative of anything, so that it has none.
        """
        ...


@dataclass(frozen=True)
class Part:
    """The rows of a batch that a gradient is taken of, at their solution.

    Attributes:
        problem: the map on these rows, its state solved and without a graph; the context has its own.
        rows: `(part,)` int64, which rows of the batch they are.
        total: rows of the batch.
    """

    problem: Problem
    rows: Tensor
    total: int

    @classmethod
    def of(cls, problem: Problem, found: Run, keep: Tensor) -> "Part":
        """The rows in the mask `keep`, `(batch,)`."""
        at = replace(problem, state=[x.detach() for x in found.leaves])
        rows = keep.nonzero().squeeze(1)
        return cls(at if len(rows) == problem.rows else at.subset(rows), rows, problem.rows)

    def without(self, drop: Tensor) -> "Part":
        """The part without the rows in the mask `drop`, `(part,)`."""
        stay = (~drop).nonzero().squeeze(1)
        return replace(self, problem=self.problem.subset(stay), rows=self.rows[stay])

    def scatter(self, values: Tensor, background: Tensor) -> Tensor:
        """One value a row of the whole batch: those of the part, and `background` elsewhere."""
        return background.to(values.dtype).index_copy(0, self.rows, values)


def bad_rows(outputs: Vectors) -> Tensor | None:
    """`(rows,)` bool, rows that are not finite; None where all are.

    A recorded row that overflows would put a NaN into shared parameters, whatever gradient it is given.
    """
    with no_tangents():
        bad = ~torch.stack([finite_rows(x) for x in outputs]).all(0)
    return bad if bool(bad.any()) else None


def has_tangents(tensors: Vectors) -> bool:
    """Whether forward-mode differentiation is asked of these."""
    return any(unpack_dual(x).tangent is not None for x in tensors)


def attach(
    found: Run,
    part: Part,
    outputs: Vectors,
    evaluations: int,
    recording: Recording | None,
    link: Link | None = None,
) -> Run:
    """The run with its measured leaves tied to recorded outputs.

    Args:
        found: a run without a graph.
        part: the rows that were recorded.
        outputs: recorded values, one per measured leaf, `(part, ...)`.
        evaluations: row evaluations that the recording took.
        recording: what is known of it; None under a transform of `torch.func`.
        link: applied to what passes between state and recording; None sends it as it is, and keeps further derivatives.
    """
    leaves = [x.detach() for x in found.leaves]  # a step that returns its input would hand on the start's graph
    measured = part.problem.layout.measured()
    sources = [] if recording is None or link is None else recording.sources
    values = (part.problem.state[i] for i in measured)
    tied = _Tie.apply(link, recording, len(measured), *values, *outputs, *sources)
    whole = len(part.rows) == part.total
    for i, value in zip(measured, tied, strict=True):
        leaves[i] = value if whole else merge_rows([leaves[i]], part.rows, [value])[0]
    return replace(found, leaves=leaves, row_evaluations=found.row_evaluations + evaluations)


def untied(found: Run, evaluations: int = 0) -> Run:
    """The run without any gradient."""
    leaves = [x.detach() for x in found.leaves]
    return replace(found, leaves=leaves, row_evaluations=found.row_evaluations + evaluations)


def without_rows(problem: Problem, found: Run, evaluations: int, start: Vectors = ()) -> Run:
    """A run none of whose rows has a gradient: that of every parameter is 0.

    The step is recorded once more, wherever it got to, to know what its parameters are.

    Args:
        problem: the map.
        found: the run.
        evaluations: row evaluations that recordings took before.
        start: tensors whose gradient is 0 as well.
    """
    if is_transformed():
        return untied(found, evaluations)
    try:
        tape = Tape(replace(problem, state=[x.detach() for x in found.leaves]))
        recording = tape.recording()
    except Exception:  # nobody promised that it can be evaluated there
        return untied(found, evaluations)
    assert recording is not None, "not under a transform of torch.func"
    sources = [*recording.sources, *(x for x in start if x.requires_grad)]
    return _tied_to_nothing(found, tape.measured, sources, evaluations + problem.rows)


def _tied_to_nothing(found: Run, measured: Sequence[int], sources: Vectors, evaluations: int) -> Run:
    """The run with a gradient of 0 for every source: no row of it has another one.

    Parameters then have a gradient, as after any other step. A process whose rows have all diverged would otherwise
    leave the others, which share its parameters, waiting for ever.
    """
    leaves = [x.detach() for x in found.leaves]
    if sources:
        tied = _Nothing.apply(len(measured), *(leaves[i] for i in measured), *sources)
        for i, value in zip(measured, tied, strict=True):
            leaves[i] = value
    return replace(found, leaves=leaves, row_evaluations=found.row_evaluations + evaluations)


class _Nothing(torch.autograd.Function):
    """The first tensors as they are, tied to the others by a derivative of 0."""

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(x.clone() for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        count, *tensors = inputs
        ctx.count, ctx.like = count, [(x.shape, x.dtype, x.device) for x in tensors[count:]]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)
        return (None, *[None] * ctx.count, *zeros)


class _Tie(torch.autograd.Function):
    """The values of the first tensors, with the graph of the second; the third are the sources of that graph.

    A gradient goes into the recorded outputs and on from there. Where it is to be differentiated in its turn, it goes
    to the sources at once: the recording starts at a leaf that knows nothing of what the solution depends on.
    """

    @staticmethod
    def forward(link: Link | None, recording: Recording | None, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(x.clone() for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.link, ctx.recording, ctx.count, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.sources = len(tensors) - 2 * ctx.count
        if ctx.link is not None:
            ctx.save_for_backward(*output)
            ctx.outputs = tensors[ctx.count : 2 * ctx.count]
        ctx.like = [(x.shape, x.dtype, x.device) for x in output]

    @staticmethod
    @each_alone
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        nothing, none = (None, None, None, *[None] * ctx.count), [None] * ctx.sources
        if ctx.recording is not None:
            ctx.recording.check()
        given = _filled(ctx, cotangents)
        link: Link | None = ctx.link
        if link is None:
            return (*nothing, *given, *none)
        if has_tangents([*given, *ctx.outputs]):
            raise ContractError(
                f"forward-mode differentiation of a gradient by {link.name} is a second derivative: take it by "
                "torch.autograd.grad(..., create_graph=True)"
            )
        if torch.is_grad_enabled():  # create_graph=True
            if is_transformed() or ctx.recording is None or link.pull_with_graph is None:
                found = _NoSecondDerivative.apply(link.name, ctx.count, *_pulled(link, given), *ctx.outputs)
                return (*nothing, *found, *none)
            if ctx.recording.unknown:
                raise ContractError(
                    f"a second derivative is asked of {link.name}, but step uses {ctx.recording.unknown} tensors that "
                    "were computed from others and that it does not get as context: pass them in the context "
                    "(homeostat.Shared where they are not per example)"
                )
            return (*nothing, *[None] * ctx.count, *link.pull_with_graph(ctx.saved_tensors, given))
        return (*nothing, *_pulled(link, given), *none)

    @staticmethod
    def vmap(info: Any, dims: Any, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """PyTorch asks for one where tangents are mapped over, too; values never are."""
        raise ContractError("step uses tensors that vmap maps over: pass them in the context")

    @staticmethod
    @each_alone
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        given = _filled(ctx, tangents[3 + ctx.count : 3 + 2 * ctx.count])
        if ctx.link is None:
            return tuple(given)
        with torch.no_grad(), no_tangents():
            return tuple(OneByOne.apply(ctx.link.push, *given) if is_transformed() else ctx.link.push(given))


def _filled(ctx: Any, vectors: Sequence[Tensor | None]) -> list[Tensor]:
    """Zeros in the place of what nobody asked for."""
    return [
        torch.zeros(shape, dtype=dtype, device=device) if v is None else v
        for v, (shape, dtype, device) in zip(vectors, ctx.like, strict=True)
    ]


def _pulled(link: Link, cotangents: Vectors) -> Vectors:
    with torch.no_grad():
        return OneByOne.apply(link.pull, *cotangents) if is_transformed() else link.pull(cotangents)


class _NoSecondDerivative(torch.autograd.Function):
    """The adjoint as it is; a second derivative through it raises, because the adjoint solve itself is not recorded.

    `once_differentiable` would not do: it raises only where a graph leads through it, and a second derivative with
    respect to parameters would go round it and be wrong. Hence the recorded outputs, which lead to the parameters.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(x.clone() for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError(f"{ctx.name} has no second derivative here: use gradient=Unrolled() for it")
