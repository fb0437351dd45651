"""Jacobian products of chosen rows: what the linear system behind an implicit gradient is solved with."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.backward.tape import AnyTape, record
from homeostat.engine.norms import noise_floor
from homeostat.engine.problem import Problem


class JacobianRows:
    """Jacobian products of chosen rows. Rows that are finished cost nothing more, where that is worth it.

    A tape holds the rows it was recorded on. Recording it again without the finished rows costs an evaluation of `f`,
    so that it is done when a quarter of its rows have left; until then they travel along with a cotangent of 0.

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
        self.evaluations = 0

    def pull(self, rows: Tensor, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """`J^T u`.

        Args:
            rows: `(active,)` int64, which rows of the batch these are. Asking with the same tensor again is free.
            cotangents: `u` for these rows, one per measured leaf, in any floating dtype.

        Returns:
            One per measured leaf, in the dtype of its cotangent.
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
        inputs, place = self._tape.inputs, self._place
        given = [u.to(x.dtype) for u, x in zip(vectors, inputs, strict=True)]
        if place is not None:
            given = [torch.zeros_like(x).index_copy_(0, place, u) for u, x in zip(given, inputs, strict=True)]
        found = self._tape.pull(given) if transposed else self._tape.push(given)
        self.evaluations += len(self._held)
        if place is not None:
            found = [x.index_select(0, place) for x in found]
        return [x.to(u.dtype) for x, u in zip(found, vectors, strict=True)]

    def _follow(self, rows: Tensor) -> None:
        place = self._find(rows)
        if bool((place < 0).any()):  # rows that had left are asked for again
            self._tape, self._held = self._whole, self._all
            place = rows
        if 4 * len(rows) <= 3 * len(self._held):
            self._tape, self._held = record(self._problem.subset(rows), self._autocast), rows
            self.evaluations += len(rows)
        same = len(rows) == len(self._held)
        self._place = None if same else place
        self._asked = rows

    def _find(self, rows: Tensor) -> Tensor:
        lookup = torch.full_like(self._all, -1)
        lookup[self._held] = torch.arange(len(self._held), device=rows.device)
        return lookup[rows]
