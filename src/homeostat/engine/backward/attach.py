"""What all gradients of a solved state share: which rows are recorded, and how the recording is tied to the state.

The state that a solve returns is always the solved one, bit by bit, whichever gradient is chosen: the recorded
evaluations lend it their graph and not their value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.backward.functional import is_transformed, refuse_forward_mode
from homeostat.engine.forward.run import Run
from homeostat.engine.nest import merge_rows
from homeostat.engine.norms import finite_rows
from homeostat.engine.problem import Problem

Transform = Callable[[Sequence[Tensor]], list[Tensor]]
"""From the gradients of the state's measured leaves to what is sent into the recorded evaluation."""


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


def bad_rows(outputs: Sequence[Tensor]) -> Tensor | None:
    """`(rows,)` bool, rows that are not finite; None where all are.

    A recorded row that overflows would put a NaN into shared parameters, whatever gradient it is given.

    Raises:
        ContractError: forward-mode differentiation is asked of these rows.
    """
    refuse_forward_mode(outputs)
    bad = ~torch.stack([finite_rows(x) for x in outputs]).all(0)
    return bad if bool(bad.any()) else None


def attach(
    found: Run,
    part: Part,
    outputs: Sequence[Tensor],
    evaluations: int,
    transform: tuple[str, Transform] | None = None,
) -> Run:
    """The run with its measured leaves tied to recorded outputs.

    Args:
        found: a run without a graph.
        part: the rows that were recorded.
        outputs: recorded values, one per measured leaf, `(part, ...)`.
        evaluations: row evaluations that the recording took.
        transform: applied to the gradient on its way into the recording, with the name of the mode whose second
            derivative is refused; None sends the gradient as it is, and keeps further derivatives.
    """
    leaves = [x.detach() for x in found.leaves]  # a step that returns its input would hand on the start's graph
    measured = part.problem.layout.measured()
    tied = _Tie.apply(transform, len(measured), *(part.problem.state[i] for i in measured), *outputs)
    whole = len(part.rows) == part.total
    for i, value in zip(measured, tied, strict=True):
        leaves[i] = value if whole else merge_rows([leaves[i]], part.rows, [value])[0]
    return replace(found, leaves=leaves, row_evaluations=found.row_evaluations + evaluations)


def untied(found: Run, evaluations: int = 0) -> Run:
    """The run without any gradient."""
    leaves = [x.detach() for x in found.leaves]
    return replace(found, leaves=leaves, row_evaluations=found.row_evaluations + evaluations)


class _Tie(torch.autograd.Function):
    """The values of the first half of the tensors, with the graph of the second half."""

    @staticmethod
    def forward(transform: tuple[str, Transform] | None, count: int, *leaves: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(x.clone() for x in leaves[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        transform, count, *leaves = inputs
        ctx.transform, ctx.outputs = transform, leaves[count:] if transform else None

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        nothing = (None, None, *(None for _ in cotangents))
        if ctx.transform is None:
            return (*nothing, *cotangents)
        name, transform = ctx.transform
        with torch.no_grad():
            found = _OneByOne.apply(transform, *cotangents) if is_transformed() else transform(cotangents)
        if torch.is_grad_enabled():  # create_graph=True
            found = _NoSecondDerivative.apply(name, len(found), *found, *ctx.outputs)
        return (*nothing, *found)


class _OneByOne(torch.autograd.Function):
    """A transform of gradients that come as a whole Jacobian's rows (`jacrev`, `is_grads_batched`): one after another.

    Each is a solve with its own steps, which `vmap` could not take together.
    """

    @staticmethod
    def forward(transform: Transform, *cotangents: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(transform(cotangents))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: it is called without gradients."""

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], transform: Transform, *cotangents: Tensor) -> tuple[Any, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = []
        for k in range(info.batch_size):
            one = [g if d is None else g.select(d, k) for g, d in zip(cotangents, dims[1:], strict=True)]
            found.append(_OneByOne.apply(transform, *one))
        return tuple(torch.stack(leaf) for leaf in zip(*found, strict=True)), (0,) * len(cotangents)


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
        raise RuntimeError(f"{ctx.name} has no second derivative: use gradient=Unrolled() for it")
