"""Gradients of a fixed point from products with its Jacobian: `Implicit`, `Neumann` and `Shine`."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.backward.adjoint import JacobianRows
from homeostat.engine.backward.attach import (
    Link,
    Part,
    Vectors,
    attach,
    bad_rows,
    has_tangents,
    untied,
    without_rows,
)
from homeostat.engine.backward.differentiable import pull_with_graph
from homeostat.engine.backward.failure import failures, not_finite, report_adjoint, report_failure
from homeostat.engine.backward.linear_solve import solve_adjoint
from homeostat.engine.backward.recording import Recording
from homeostat.engine.backward.tape import Tape, present_autocast, record
from homeostat.engine.backward.vector_function import VectorFunction
from homeostat.engine.forward.broyden import InverseEstimate
from homeostat.engine.forward.independence import check_products
from homeostat.engine.forward.looks import forget, is_new
from homeostat.engine.forward.run import Run
from homeostat.engine.gradients import Implicit, Neumann, OnFailure, Shine
from homeostat.engine.methods import Picard
from homeostat.engine.norms import noise_floor, row_rms
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Adjoint, Status
from homeostat.engine.stop import Stop
from homeostat.errors import ContractError

_DEFAULT_RTOL, _DEFAULT_STEPS = 1e-5, 500
# Products in a dtype are exact to half a unit in the last place each; a residual of this many units is reachable.
_UNITS = 4


def default_stop(forward: Stop, state: Sequence[Tensor]) -> Stop:
    """The stop of an adjoint solve that was given none.

    As tight as the forward solve, 1e-5 at least, but not below what the dtype of the state, or the autocast that is on
    now, can reach: the gradient is as exact as the looser of the two solves.

    Example:
        >>> default_stop(Stop(rtol=1e-3), [torch.zeros(1)]).rtol, default_stop(Stop(rtol=1e-9), [torch.zeros(1)]).rtol
        (1e-05, 4.76837158203125e-07)
        >>> default_stop(Stop(), [torch.zeros(1, dtype=torch.bfloat16)]).rtol
        0.03125
    """
    asked = torch.as_tensor(forward.rtol, dtype=torch.float64)
    asked = asked[asked > 0]
    rtol = min(_DEFAULT_RTOL, float(asked.min())) if asked.numel() else _DEFAULT_RTOL
    return Stop(rtol=max(rtol, noise_floor(state, _UNITS)), max_steps=_DEFAULT_STEPS)


def implicit(problem: Problem, found: Run, gradient: Implicit, stop: Stop, log: list[Adjoint]) -> Run:
    """A run with the gradient of the fixed point; `backward` appends to `log` how its solve went.

    Args:
        problem: what was solved.
        found: how, without a graph.
        gradient: method, stop and what happens to rows that did not converge.
        stop: the forward solve's.
        log: filled by `backward`.
    """
    measured = [problem.state[i] for i in problem.layout.measured()]
    settings = replace(gradient, stop=gradient.stop or default_stop(stop, measured))
    return _tied(lambda adjoint: _Solved(adjoint, settings), problem, found, stop, gradient.on_failure, log)


def neumann(problem: Problem, found: Run, gradient: Neumann, stop: Stop, log: list[Adjoint]) -> Run:
    """A run with a truncated series for a gradient: plain iteration of the adjoint map, `terms - 1` times."""
    return _tied(lambda adjoint: _Series(adjoint, gradient.terms - 1), problem, found, stop, "warn", log)


def shine(problem: Problem, found: Run, gradient: Shine, stop: Stop) -> Run:
    """A run whose gradient uses the inverse that the forward method estimated.

    Raises:
        ContractError: the forward method has no such estimate.
    """
    inverse = found.inverse
    if inverse is None:
        raise ContractError("Shine needs method=Broyden(): other methods leave no inverse behind")
    return _tied(
        lambda adjoint: _Estimated(adjoint, inverse, gradient.fallback_ratio), problem, found, stop, "warn", []
    )


def _tied(
    make: Callable[["_Adjoint"], Link],
    problem: Problem,
    found: Run,
    stop: Stop,
    on_failure: OnFailure,
    log: list[Adjoint],
) -> Run:
    """Record one evaluation at the solution, say which rows did not converge, and tie the two together.

    Rows that diverged (with `on_failure="mask"`: that did not end as asked) are not recorded, so that they cannot put a
    NaN into shared parameters.
    """
    failed = failures(found.status, stop)
    keep = ~failed if on_failure == "mask" else found.status != Status.DIVERGED
    part = Part.of(problem, found, keep)
    evaluations = part.problem.rows
    tape = record(part.problem) if evaluations else None
    if tape is not None:
        bad = bad_rows(tape.outputs)
        if bad is not None:
            part = part.without(bad)
            tape = record(part.problem) if part.problem.rows else None
            evaluations += part.problem.rows
    if tape is None:
        report_failure("forward", found.status, stop, on_failure)
        return without_rows(problem, found, evaluations)
    recording = tape.recording()
    if recording is not None and not recording.reaches_others and not has_tangents(tape.outputs):
        return untied(found, evaluations)
    if recording is not None and is_new(part.problem.step, "products"):
        try:
            check_products(tape.pull, tape.inputs)
        except ContractError:
            forget(part.problem.step)
            raise
    report_failure("forward", found.status, stop, on_failure)
    link = make(_Adjoint(part, tape, recording, found.status, failed, log))
    return attach(found, part, tape.outputs, evaluations, recording, link)


class _Solved:
    """The whole linear system, within tolerance: `Implicit`."""

    name = "Implicit"

    def __init__(self, adjoint: "_Adjoint", gradient: Implicit) -> None:
        self._adjoint, self._gradient = adjoint, gradient

    def pull(self, cotangents: Vectors) -> list[Tensor]:
        """See `Link.pull`."""
        return self._adjoint.solve(cotangents, self._gradient)[0]

    def push(self, tangents: Vectors) -> list[Tensor]:
        """See `Link.push`."""
        return self._adjoint.solve(tangents, self._gradient, transposed=False)[0]

    def pull_with_graph(self, state: Vectors, cotangents: Vectors) -> list[Tensor | None]:
        """See `Link.pull_with_graph`."""

        def solve(source: Vectors, transposed: bool) -> tuple[list[Tensor], Tensor | None]:
            return self._adjoint.solve(source, self._gradient, transposed=transposed)

        recording = self._adjoint.recording
        assert recording is not None, "not under a transform of torch.func"
        return pull_with_graph(recording, solve, state, cotangents)


class _Series:
    """The first terms of the series: `Neumann`."""

    name, pull_with_graph = "Neumann", None

    def __init__(self, adjoint: "_Adjoint", steps: int) -> None:
        self._adjoint, self._steps = adjoint, steps

    def pull(self, cotangents: Vectors) -> list[Tensor]:
        """See `Link.pull`."""
        return self._adjoint.iterate(cotangents, self._steps)

    def push(self, tangents: Vectors) -> list[Tensor]:
        """See `Link.push`."""
        return self._adjoint.iterate(tangents, self._steps, transposed=False)


class _Estimated:
    """The inverse that Broyden's method left: `Shine`."""

    name, pull_with_graph = "Shine", None

    def __init__(self, adjoint: "_Adjoint", inverse: InverseEstimate, ratio: float) -> None:
        self._adjoint, self._inverse, self._ratio = adjoint, inverse, ratio

    def pull(self, cotangents: Vectors) -> list[Tensor]:
        """See `Link.pull`."""
        return self._adjoint.estimate(cotangents, self._inverse.transpose, self._ratio)

    def push(self, tangents: Vectors) -> list[Tensor]:
        """See `Link.push`; the estimate itself is that of the inverse, and not of its transpose."""
        return self._adjoint.estimate(tangents, self._inverse.apply, self._ratio)


class _Adjoint:
    """From the gradient of the solved state to the cotangent `u` of the recorded evaluation, in three ways."""

    def __init__(
        self,
        part: Part,
        tape: Tape,
        recording: Recording | None,
        forward: Tensor,
        failed: Tensor,
        log: list[Adjoint],
    ) -> None:
        # Without the context's graph: what is recorded again in `backward` serves Jacobian products only.
        context = [x.detach() if isinstance(x, Tensor) else x for x in part.problem.context]
        self._problem = replace(part.problem, context=context)
        self._part, self._tape, self._forward, self._failed, self._log = part, tape, forward, failed, log
        self._autocast: AbstractContextManager[Any] = present_autocast(part.rows.device)
        self.recording = recording

    def solve(
        self, cotangents: Vectors, gradient: Implicit, *, transposed: bool = True
    ) -> tuple[list[Tensor], Tensor | None]:
        """The solution of `u = J^T u + g`, within tolerance; what `on_failure` says where that fails.

        Args:
            cotangents: `g`.
            gradient: how, and what if not.
            transposed: False solves `u = J u + g`.

        Returns:
            `u`, and `(part,)` bool, the rows of which it is the solution; None where it is that of all.
        """
        assert gradient.stop is not None
        fallback = gradient.on_failure == "fallback"
        rows = torch.arange(self._problem.rows, device=self._part.rows.device)
        if fallback:
            rows = rows[~self._failed[self._part.rows]]
        source = [g[rows] for g in cotangents] if len(rows) < self._problem.rows else list(cotangents)
        jacobian = JacobianRows(self._problem, self._tape, self._autocast)
        start, precondition = (  # for the transposed system: they say nothing of its twin
            None if function is None or not transposed else VectorFunction(name, function, self._problem)
            for name, function in (("start", gradient.start), ("preconditioner", gradient.preconditioner))
        )
        found, adjoint = solve_adjoint(
            jacobian,
            rows,
            source,
            gradient.method,
            gradient.stop,
            transposed=transposed,
            start=start,
            precondition=precondition,
        )
        self._record(adjoint, rows)
        failed = failures(adjoint.status, gradient.stop)
        if len(rows) == self._problem.rows and not bool(failed.any()):
            return found, None
        overflowed = not_finite(source)
        report_adjoint(adjoint, gradient.stop, gradient.on_failure, gradient.method, overflowed)
        if fallback:
            solved = torch.zeros(self._problem.rows, dtype=torch.bool, device=rows.device)
            solved = solved.index_copy(0, rows, ~failed)
            return _choose(~failed, found, rows, cotangents), None if bool(solved.all()) else solved
        keep = (~failed if gradient.on_failure == "mask" else adjoint.status != Status.DIVERGED) | overflowed
        return (found, None) if bool(keep.all()) else (_masked(found, keep), keep)

    def iterate(self, cotangents: Vectors, steps: int, *, transposed: bool = True) -> list[Tensor]:
        """`steps` applications of `u <- J^T u + g`, from `u = g`; with `J` where it is not to be transposed."""
        rows = torch.arange(self._problem.rows, device=self._part.rows.device)
        jacobian = JacobianRows(self._problem, self._tape, self._autocast)
        stop = Stop(rtol=0, max_steps=steps)
        found, adjoint = solve_adjoint(jacobian, rows, cotangents, Picard(), stop, transposed=transposed)
        self._record(adjoint, rows)
        diverged = adjoint.status == Status.DIVERGED
        if not bool(diverged.any()):
            return found
        overflowed = not_finite(cotangents)
        report_adjoint(adjoint, stop, "mask", Picard(), overflowed)
        return _masked(found, ~diverged | overflowed)

    def estimate(self, vectors: Vectors, apply: Callable[[list[Tensor]], list[Tensor]], ratio: float) -> list[Tensor]:
        """`(I - J)^-T g` as the forward method estimates it; `g` itself where that is much larger than `g`."""
        whole = [g.new_zeros(self._part.total, *g.shape[1:]).index_copy_(0, self._part.rows, g) for g in vectors]
        found = [u[self._part.rows].to(g.dtype) for u, g in zip(apply(whole), vectors, strict=True)]
        trusted = _length(found) <= ratio * _length(vectors)  # a NaN is not trusted
        return _choose(trusted, found, torch.arange(len(trusted), device=trusted.device), vectors)

    def _record(self, adjoint: Adjoint, rows: Tensor) -> None:
        """Write the log over all rows of the batch; rows without a solve have the status of their forward one."""
        part = replace(self._part, rows=self._part.rows[rows])
        none = torch.zeros_like(self._forward)
        self._log.append(
            Adjoint(
                steps=part.scatter(adjoint.steps, none),
                residual=part.scatter(adjoint.residual, torch.full_like(none, torch.nan, dtype=torch.float64)),
                status=part.scatter(adjoint.status, self._forward),
                row_evaluations=adjoint.row_evaluations,
                obstacle=part.scatter(adjoint.obstacle, none),
                method=part.scatter(adjoint.method, none),
                notes=adjoint.notes,
            )
        )


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *([1] * (like.ndim - 1)))


def _masked(vectors: Sequence[Tensor], keep: Tensor) -> list[Tensor]:
    return [torch.where(_column(keep, u), u, 0) for u in vectors]


def _choose(good: Tensor, found: Sequence[Tensor], rows: Tensor, other: Sequence[Tensor]) -> list[Tensor]:
    """`other`, with `found` in those of `rows` that are good."""
    return [o.index_copy(0, rows[good], u[good]) for u, o in zip(found, other, strict=True)]


def _length(vectors: Sequence[Tensor]) -> Tensor:
    """`(batch,)`, the norm of all leaves of a row together."""
    squares = [row_rms(u).double().square() * (u[0].numel() if len(u) else 1) for u in vectors]
    return torch.stack(squares).sum(0).sqrt()
