"""What a solve returns."""

from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any, TypeVar

import torch
from torch import Tensor


class Status(IntEnum):
    """How an example ended.

    Example:
        >>> Status(0), Status.DIVERGED.name
        (<Status.CONVERGED: 0>, 'DIVERGED')
    """

    def __str__(self) -> str:
        return self.name

    CONVERGED = 0
    """The residual is within tolerance."""
    CYCLING = 1
    """The state repeats with a period from 2 to 16 within tolerance, while the residual has stopped shrinking."""
    STALLED = 2
    """The residual is at the rounding noise of the dtype and no longer improves, above the tolerance asked for."""
    MAX_STEPS = 3
    """The steps were used up."""
    DIVERGED = 4
    """Not finite, or beyond a root mean square of 1e28 (float64: 1e100, float16: 1e4)."""
    STOPPED = 5
    """The conditions of a stopping policy were met; `solve` itself never ends so."""


class Obstacle(IntEnum):
    """What about its linear system ended a row's adjoint solve.

    Example:
        >>> Obstacle(1).name
        'NOT_SYMMETRIC'
    """

    def __str__(self) -> str:
        return self.name

    NONE = 0
    NOT_SYMMETRIC = 1
    """`I - J` is not symmetric, which `CG` needs; `GMRES` and `NormalCG` do not."""
    INDEFINITE = 2
    """`I - J` has a direction of negative curvature, which `CG` cannot take; `GMRES` and `NormalCG` can."""
    SINGULAR = 3
    """`I - J` maps a direction to nothing but rounding: the fixed point is not isolated, and no method helps."""


class AdjointSolver(IntEnum):
    """What found a row's adjoint.

    Example:
        >>> AdjointSolver(3).name
        'GMRES'
    """

    def __str__(self) -> str:
        return self.name

    NONE = 0
    """The row took no part."""
    PICARD = 1
    ANDERSON = 2
    GMRES = 3
    NORMAL_CG = 4
    CG = 5


_OBSTACLES = {
    Obstacle.NOT_SYMMETRIC: "not symmetric, as CG needs it: use GMRES() or NormalCG()",
    Obstacle.INDEFINITE: "indefinite, and CG needs a positive definite one: GMRES() or NormalCG(), if this "
    "solution is meant to be a saddle",
    Obstacle.SINGULAR: "singular to rounding: the fixed point is not isolated",
}


def describe_obstacles(obstacle: Tensor) -> list[str]:
    """A line for each obstacle that rows met, with their count.

    Example:
        >>> describe_obstacles(torch.tensor([0, 3]))
        ['1 row: the system I - J is singular to rounding: the fixed point is not isolated']
    """
    counts = {kind: int((obstacle == kind).sum()) for kind in _OBSTACLES}
    return [
        f"{count} {'row' if count == 1 else 'rows'}: the system I - J is {_OBSTACLES[kind]}"
        for kind, count in counts.items()
        if count
    ]


_LABELS = {
    AdjointSolver.PICARD: "Picard",
    AdjointSolver.ANDERSON: "Anderson",
    AdjointSolver.GMRES: "GMRES",
    AdjointSolver.NORMAL_CG: "NormalCG",
    AdjointSolver.CG: "CG",
}


def describe_solvers(method: Tensor, status: Tensor) -> list[str]:
    """Lines that say how many rows were solved by what, and whose the best of the others is.

    Example:
        >>> describe_solvers(torch.tensor([2, 2, 3, 0, 2]), torch.tensor([0, 0, 0, 4, 2]))
        ['2 rows finished by Anderson, 1 by GMRES', '1 row best by Anderson']
    """
    lines = []
    solved = status == Status.CONVERGED
    for what, rows in (("finished", solved), ("best", ~solved)):
        counts = {label: int((rows & (method == kind)).sum()) for kind, label in _LABELS.items()}
        parts = [f"{count} by {label}" for label, count in counts.items() if count]
        if parts:
            count, rest = parts[0].split(" ", 1)
            lines.append(", ".join([f"{count} {'row' if count == '1' else 'rows'} {what} {rest}", *parts[1:]]))
    return lines


def describe_rows(steps: Tensor, residual: Tensor, status: Tensor) -> str:
    """A short table: for each status, how many rows, their steps and their residuals."""
    steps, residual, status = (x.reshape(-1) for x in (steps, residual, status))  # one problem has no rows
    lines = [f"{'status':<10} {'rows':>6} {'steps (median, most)':>22} {'residual (median, most)':>26}"]
    for kind in Status:
        rows = status == kind
        count = int(rows.sum())
        if count:
            s, r = steps[rows].float(), residual[rows].float()
            taken = f"{s.median():.0f}, {s.max():.0f}"
            size = f"{r.nanmedian():.1e}, {r.max():.1e}"
            lines.append(f"{kind.name:<10} {count:>6} {taken:>22} {size:>26}")
    return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class Adjoint:
    """How the solve of `backward()` went, by example.

    Attributes:
        steps: `(batch,)` int64, steps of all methods that were tried on the row; 0 for rows that took no part.
        residual: `(batch,)`, RMS(J^T u + g - u) / RMS(J^T u + g), the largest over the measured leaves; NaN where none
            was measured.
        status: `(batch,)` int8 of `Status`: how the last method that was tried on the row ended, but for one that
            diverged after another that had not; rows that took no part have that of their forward solve.
        row_evaluations: Jacobian products, and evaluations of `step` that were recorded for them, times the rows in
            each.
        obstacle: `(batch,)` int8 of `Obstacle`: why rows got no further, where it is known.
        method: `(batch,)` int8 of `AdjointSolver`: what found the `u` that is used, the one with the lowest residual
            where no method reached its tolerance.
        notes: what else is to be said: a method that could not be tried, and why.

    Example:
        >>> import torch, homeostat as hs
        >>> context = torch.ones(2, 3, requires_grad=True)
        >>> solution = hs.solve(lambda z, c: 0.5 * z + c, torch.zeros(2, 3), context)
        >>> solution.state.sum().backward()
        >>> solution.adjoint.status, context.grad[0].round(decimals=3)
        (tensor([0, 0], dtype=torch.int8), tensor([2., 2., 2.]))
    """

    steps: Tensor
    residual: Tensor
    status: Tensor
    row_evaluations: int
    obstacle: Tensor
    method: Tensor
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        table = describe_rows(self.steps, self.residual, self.status)
        lines = [
            "Adjoint",
            table,
            *describe_solvers(self.method, self.status),
            *describe_obstacles(self.obstacle),
            *self.notes,
        ]
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class Solution:
    """The end of an iteration, by example.

    With `batched=False` there is one problem, and what is `(batch,)` here is 0-d.

    Attributes:
        state: same structure as the start that was given; the last f(z) of each example (with `returns="best"`,
            the one with the lowest residual). A row that diverged keeps its last finite iterate (where `rtol=0,
            atol=0`, finiteness is seen only at the end, and it is left as it is).
        steps: `(batch,)` int64, applications of `step` up to the one at which the example stopped.
        residual: `(batch,)`, relative residual RMS(f(z) - z) / RMS(f(z)), the largest over the floating leaves,
            measured on the way to that f(z); NaN where no step was taken.
        status: `(batch,)` int8 of `Status`.
        row_evaluations: evaluations of `step` times the rows in each: the true cost, with what the gradient added. The
            check that rows do not hear of one another is not counted: half an evaluation a solve, and a few at the
            first use of a step with a gradient.
        trace: `(batch, steps)` relative residual of every step, NaN after an example stopped; None if not asked for.
    """

    state: Any
    steps: Tensor
    residual: Tensor
    status: Tensor
    row_evaluations: int
    trace: Tensor | None = None
    _adjoint: list[Adjoint] = field(default_factory=list)

    @property
    def adjoint(self) -> Adjoint | None:
        """How the last `backward()` through `Implicit` or `Neumann` went; None before. It holds no graph."""
        found = self._adjoint[-1] if self._adjoint else None
        return of_one(found) if found is not None and self.steps.ndim == 0 else found

    @property
    def converged(self) -> Tensor:
        """`(batch,)` bool."""
        return self.status == Status.CONVERGED

    def __repr__(self) -> str:
        with torch.no_grad():
            table = describe_rows(self.steps, self.residual, self.status)
        count = f"{len(self.steps)} examples" if self.steps.ndim else "1 problem"
        return f"Solution: {count}, {self.row_evaluations} row evaluations\n{table}"


Report = TypeVar("Report", Solution, Adjoint)


def of_one(report: Report) -> Report:
    """What is said of a batch with a single row as what is said of one problem: without the dimension of the batch."""
    own = {f.name: getattr(report, f.name) for f in fields(report) if f.name != "state"}
    single = {name: x[0] for name, x in own.items() if isinstance(x, Tensor) and x.ndim}
    if "trace" in single:
        single["trace"] = single["trace"][: int(single["steps"])]  # nobody else goes on
    return replace(report, **single)
