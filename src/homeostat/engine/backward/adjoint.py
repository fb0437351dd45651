"""The linear system behind every implicit gradient, `u = J^T u + g`, solved per example: one entrance, five methods."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.backward.krylov import solve_by_cycles
from homeostat.engine.backward.tape import AnyTape, record
from homeostat.engine.forward.independence import check_silence
from homeostat.engine.forward.run import run
from homeostat.engine.methods import AdjointMethod, Anderson, Picard
from homeostat.engine.norms import noise_floor, row_rms
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Adjoint
from homeostat.engine.stop import Stop


# Products of a row that should be the same differ by so many units in the last place, in its root mean square.
_SAME_UNITS = 256


class JacobianRows:
    """Jacobian products of chosen rows. Rows that are finished cost nothing more, where that is worth it.

    A tape holds the rows it was recorded on. Recording it again without the finished rows costs an evaluation of `f`,
    so that it is done when a quarter of its rows have left; until then they travel along with a cotangent of 0.

    What is recorded again is recorded from whatever `f` reaches by then: other weights, another mode, another value of a
    loop's variable. Its values and its first product are compared with those of the tape that was recorded at the
    solution; where they are others, or it cannot be recorded, that tape serves all rows to the end.

    Args:
        problem: the map at its fixed point.
        tape: `f` recorded there, for all rows.
        autocast: what `f` is recorded under, when it is recorded again.
    """

    def __init__(self, problem: Problem, tape: AnyTape, autocast: AbstractContextManager[Any]) -> None:
        self._problem, self._whole, self._autocast = problem, tape, autocast
        self._all = torch.arange(problem.rows, device=problem.state[0].device)
        self._tape, self._held = tape, self._all
        self._asked: Tensor | None = None
        self._place: Tensor | None = None
        self._renewable = self._alone = True
        self._proven = False  # a product of what was recorded again was compared
        self.evaluations = 0

    def pull(self, rows: Tensor, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """`J^T u`.

        Args:
            rows: `(active,)` int64, which rows of the batch these are. Asking with the same tensor again is free.
            cotangents: `u` for these rows, one per measured leaf, in any floating dtype.

        Returns:
            One per measured leaf, in the dtype of its cotangent.

        Raises:
            ContractError: rows hear of one another.
        """
        return self._product(rows, cotangents, transposed=True)

    def push(self, rows: Tensor, tangents: Sequence[Tensor]) -> list[Tensor]:
        """`J v`; see `pull`."""
        return self._product(rows, tangents, transposed=False)

    def unit(self, cotangents: Sequence[Tensor]) -> float:
        """One unit in the last place of what products are computed in."""
        with self._autocast:
            return noise_floor(cotangents, 1)

    def _product(self, rows: Tensor, vectors: Sequence[Tensor], *, transposed: bool) -> list[Tensor]:
        if rows is not self._asked:
            self._follow(rows)
            if self._renewable and 4 * len(rows) <= 3 * len(self._held):
                return self._renewed(rows, vectors, transposed=transposed)
        return self._take(vectors, transposed=transposed)

    def _follow(self, rows: Tensor) -> None:
        place = self._find(rows)
        if bool((place < 0).any()):  # rows that had left are asked for again
            self._tape, self._held = self._whole, self._all
            place = rows
        self._place = None if len(rows) == len(self._held) else place
        self._asked = rows

    def _find(self, rows: Tensor) -> Tensor:
        lookup = torch.full_like(self._all, -1)
        lookup[self._held] = torch.arange(len(self._held), device=rows.device)
        return lookup[rows]

    def _renewed(self, rows: Tensor, vectors: Sequence[Tensor], *, transposed: bool) -> list[Tensor]:
        """A product by a new recording of these rows alone, where it is one of the same map."""
        wanted = None if self._proven else self._take(vectors, transposed=transposed)
        tape = self._record_again(rows)
        if tape is not None:
            self._tape, self._held, self._place = tape, rows, None
            found = self._take(vectors, transposed=transposed)
            if wanted is None or self._are_alike(found, wanted, vectors):
                self._proven = True
                return found
        self._renewable = False
        self._tape, self._held, self._place = self._whole, self._all, rows
        return self._take(vectors, transposed=transposed) if wanted is None else wanted

    def _record_again(self, rows: Tensor) -> AnyTape | None:
        """The tape of some rows; None where these are not the values that were recorded before."""
        problem = self._problem.subset(rows)
        self.evaluations += len(rows)
        try:
            tape = record(problem, self._autocast)
        except Exception:  # whatever it is that cannot be done any more, it could when all rows were recorded
            return None
        former = [x.detach().index_select(0, rows) for x in self._whole.outputs]
        same = self._are_alike([x.detach() for x in tape.outputs], former, tape.inputs)
        return tape if same else None

    def _are_alike(self, found: Sequence[Tensor], wanted: Sequence[Tensor], scale: Sequence[Tensor]) -> bool:
        """Whether two products or values are the same to rounding, row by row, as far as they are finite."""
        with self._autocast, torch.no_grad():
            far = []
            for a, b, c in zip(found, wanted, scale, strict=True):
                room = noise_floor([b, c], _SAME_UNITS) * torch.maximum(row_rms(b), row_rms(c).to(b.dtype))
                far.append((row_rms(a - b) > room) & torch.isfinite(room))
            return not bool(torch.stack(far).any())

    def _take(self, vectors: Sequence[Tensor], *, transposed: bool) -> list[Tensor]:
        """The product by the tape that is held."""
        inputs, place = self._tape.inputs, self._place
        given = [u.to(x.dtype) for u, x in zip(vectors, inputs, strict=True)]
        if place is not None:
            given = [torch.zeros_like(x).index_copy_(0, place, u) for u, x in zip(given, inputs, strict=True)]
        found = self._tape.pull(given) if transposed else self._tape.push(given)
        self.evaluations += len(self._held)
        if place is not None:
            if self._alone:
                self._alone = False
                check_silence(found, given, self._held[place])
            found = [x.index_select(0, place) for x in found]
        return [x.to(u.dtype) for x, u in zip(found, vectors, strict=True)]

def solve_adjoint(
    jacobian: JacobianRows, rows: Tensor, cotangents: Sequence[Tensor], method: AdjointMethod, stop: Stop
) -> tuple[list[Tensor], Adjoint]:
    """Solve `u = J^T u + g` per example, with rows leaving as they finish.

    The residual is RMS(J^T u + g - u) over RMS(J^T u + g), the largest over the leaves, whatever the method; all of
    them begin at `u = g` and work in float32 at least.

    Args:
        jacobian: products with `J^T` and `J`, row by row.
        rows: `(rows,)` int64, which rows of that batch are to be solved.
        cotangents: `g`, one `(rows, ...)` per measured leaf.
        method: how it is solved.
        stop: when an example's solve stops.

    Returns:
        `u`, one per measured leaf in the dtype of its `g`, and how the solve went. Rows that diverged have a `u`
        which is finite where `g` is, and means nothing.

    Example:
        >>> from homeostat.engine.methods import GMRES
        >>> from homeostat.engine.backward.tape import present_autocast
        >>> problem = Problem.of(lambda z, _: 0.75 * z + 1, torch.full((2, 3), 4.0), None)
        >>> jacobian = JacobianRows(problem, record(problem), present_autocast(torch.device("cpu")))
        >>> u, adjoint = solve_adjoint(jacobian, torch.arange(2), [torch.ones(2, 3)], GMRES(), Stop(1e-5))
        >>> u[0][0].round(decimals=3), adjoint.steps
        (tensor([4., 4., 4.]), tensor([3, 3]))
    """
    source = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in cotangents]
    if isinstance(method, Picard | Anderson):

        def step(u: tuple[Tensor, ...], at: list[Tensor]) -> tuple[Tensor, ...]:
            present, *g = at
            return tuple(p + s for p, s in zip(jacobian.pull(present, u), g, strict=True))

        # The system is linear: solved at a size of about 1, whatever the size of the gradient, and scaled back.
        scales = _powers_of_two(source)
        scaled = [_times(g, scales) for g in source]
        found = run(Problem.of(step, tuple(scaled), [rows, *scaled]), stop, method)
        leaves, steps, residual, status = found.leaves, found.steps, found.residual, found.status
        leaves = [_times(u, 1 / scales) for u in leaves]
        obstacle = torch.zeros_like(status)
    else:
        unit = jacobian.unit(cotangents)
        leaves, steps, residual, status, obstacle = solve_by_cycles(jacobian, rows, source, method, stop, unit)
    adjoint = Adjoint(steps, residual, status, jacobian.evaluations, obstacle)
    return [u.to(g.dtype) for u, g in zip(leaves, cotangents, strict=True)], adjoint


def _powers_of_two(leaves: Sequence[Tensor]) -> Tensor:
    """`(rows,)`, what brings the largest leaf of each row to a root mean square of about 1 without rounding."""
    size = torch.stack([row_rms(x).to(torch.float64) for x in leaves]).amax(0)
    exponent = torch.where((size > 0) & size.isfinite(), size, 1.0).log2().round()
    return torch.exp2(-exponent.clamp(-120, 120))


def _times(leaf: Tensor, scales: Tensor) -> Tensor:
    return leaf * scales.to(leaf.dtype).view(-1, *[1] * (leaf.ndim - 1))
