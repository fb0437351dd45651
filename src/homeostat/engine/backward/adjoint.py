"""Jacobian products of chosen rows: what the linear system behind an implicit gradient is solved with."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.backward.tape import Tape, record
from homeostat.engine.forward.independence import check_silence
from homeostat.engine.norms import noise_floor, row_rms
from homeostat.engine.problem import Problem

# Products of a row that should be the same differ by so many units in the last place, in its root mean square.
_SAME_UNITS = 256


class JacobianRows:
    """Jacobian products of chosen rows. Rows that are finished cost nothing more, where that is worth it.

    A tape holds the rows it was recorded on. Recording it again without the finished rows costs an evaluation of `f`,
    so that it is done when a quarter of its rows have left; until then they travel along with a cotangent of 0.

    What is recorded again is recorded from whatever `f` reaches by then: other weights, another mode, another value of
    a loop's variable. Its values and its first product are compared with those of the tape that was recorded at the
    solution; where they are others, or it cannot be recorded, that tape serves all rows to the end.

    Args:
        problem: the map at its fixed point.
        tape: `f` recorded there, for all rows.
        autocast: what `f` is recorded under, when it is recorded again.
    """

    def __init__(self, problem: Problem, tape: Tape, autocast: AbstractContextManager[Any]) -> None:
        self._problem, self._whole, self._autocast = problem, tape, autocast
        self._all = torch.arange(problem.rows, device=problem.state[0].device)
        self._tape, self._held = tape, self._all
        self._asked: Tensor | None = None
        self._place: Tensor | None = None
        self._renewable = True
        self._proven = False  # a product of what was recorded again was compared
        self._silent = False  # a product of some rows was looked at in the others
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

    def _take(self, vectors: Sequence[Tensor], *, transposed: bool) -> list[Tensor]:
        """The product by the tape that is held."""
        inputs, place = self._tape.inputs, self._place
        given = [u.to(x.dtype) for u, x in zip(vectors, inputs, strict=True)]
        if place is not None:
            # Not zeros like the inputs, which may belong to a transform that is over.
            given = [u.new_zeros(x.shape).index_copy_(0, place, u) for u, x in zip(given, inputs, strict=True)]
        found = self._tape.pull(given) if transposed else self._tape.push(given)
        self.evaluations += len(self._held)
        if place is not None:
            if not self._silent:
                check_silence(found, given, place)
                self._silent = True
            found = [x.index_select(0, place) for x in found]
        return [x.to(u.dtype) for x, u in zip(found, vectors, strict=True)]

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

    def _record_again(self, rows: Tensor) -> Tape | None:
        """The tape of some rows; None where these are not the values that were recorded before."""
        self.evaluations += len(rows)
        try:
            tape = record(self._problem.subset(rows), self._autocast)
        except Exception:  # whatever it is that cannot be done any more, it could when all rows were recorded
            return None
        former = [x.detach().index_select(0, rows) for x in self._whole.outputs]
        return tape if self._are_alike([x.detach() for x in tape.outputs], former, tape.inputs) else None

    def _are_alike(self, found: Sequence[Tensor], wanted: Sequence[Tensor], beside: Sequence[Tensor]) -> bool:
        """Whether values are the same to rounding, row by row, as far as they are finite; `beside` are as large."""
        with self._autocast, torch.no_grad():
            for a, b, c in zip(found, wanted, beside, strict=True):
                room = noise_floor([b, c], _SAME_UNITS) * torch.maximum(row_rms(b), row_rms(c).to(b.dtype))
                if bool(((row_rms(a - b) > room) & torch.isfinite(room)).any()):
                    return False
            return True
