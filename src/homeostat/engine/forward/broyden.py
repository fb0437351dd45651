"""Broyden's method: rank-one updates of the inverse Jacobian, kept as two lists of vectors."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.accelerated import AcceleratedStepper
from homeostat.engine.forward.packing import Packing
from homeostat.engine.forward.stepper import Stepper
from homeostat.engine.nest import zero_rows

# An update whose denominator is smaller than this share of what it is made of is left out: it would be noise.
_REGULAR = 1e-6
_FIRST_ROOM = 4


class BroydenUpdates:
    """`H = -I + sum_i u_i v_i^T`, an estimate of the inverse Jacobian of f(z) - z, row by row.

    The good update, C. G. Broyden, Math. Comp. 19 (1965), in the inverse form of Sherman and Morrison's formula: with
    dz and dF the differences of state and residual, `u = (dz - H dF) / (dz^T H dF)` and `v = H^T dz`. A row that has
    used up its memory starts again with none. Room grows as it is used.
    """

    def __init__(self, like: Tensor, memory: int, *, noise: float, functional: bool) -> None:
        """Room for rows and unknowns as `like` has them; see `TruncatedGramSchmidt` for `noise` and `functional`."""
        rows, unknowns = like.shape
        self._memory = memory
        self._noise, self._functional = noise, functional
        room = min(memory, _FIRST_ROOM)
        self.u, self.v = like.new_zeros(rows, room, unknowns), like.new_zeros(rows, room, unknowns)
        self._used = np.zeros(rows, np.int64)

    def propose(self, step: int, residual: Tensor, former: Tensor, value: Tensor, former_value: Tensor) -> Tensor:
        """`z - H F` with the latest update in `H`; see `History.propose`."""
        self._make_room()
        moved_residual = residual - former
        moved = (value - former_value) - moved_residual
        both = torch.stack([residual, moved_residual], 1)
        applied, applied_moved = (_apply(both, self.v, self.u) - both).unbind(1)
        v = _apply(moved[:, None], self.u, self.v)[:, 0] - moved
        denominator = (v * moved_residual).sum(1, keepdim=True)
        size = torch.linalg.vector_norm(moved_residual, dim=1, keepdim=True)
        least = torch.maximum(_REGULAR * size, self._noise * torch.linalg.vector_norm(value, dim=1, keepdim=True))
        regular = denominator.abs() > least * torch.linalg.vector_norm(v, dim=1, keepdim=True)
        u = torch.where(regular, (moved - applied_moved) / torch.where(regular, denominator, 1), 0)
        v = torch.where(regular, v, 0)
        self._append(u, v)
        return value - residual - applied - u * (v * residual).sum(1, keepdim=True)

    def _make_room(self) -> None:
        full = self._used == self._memory
        if full.any():
            self.forget(np.flatnonzero(full))
        room = self.u.shape[1]
        if self._used.max() == room:
            extra = self.u.new_zeros(len(self.u), min(self._memory, 2 * room) - room, self.u.shape[2])
            self.u, self.v = torch.cat([self.u, extra], 1), torch.cat([self.v, extra], 1)

    def _append(self, u: Tensor, v: Tensor) -> None:
        rows = torch.arange(len(u), device=u.device)
        slots = torch.from_numpy(self._used).to(u.device)
        if self._functional:
            self.u, self.v = self.u.index_put((rows, slots), u), self.v.index_put((rows, slots), v)
        else:
            self.u.index_put_((rows, slots), u)
            self.v.index_put_((rows, slots), v)
        self._used = self._used + 1

    def forget(self, rows: NDArray[np.int64]) -> None:
        """See `History.forget`."""
        at = torch.from_numpy(rows).to(self.u.device)
        if self._functional:
            self.u, self.v = self.u.index_fill(0, at, 0), self.v.index_fill(0, at, 0)
        else:
            self.u.index_fill_(0, at, 0)
            self.v.index_fill_(0, at, 0)
        self._used = self._used.copy()
        self._used[rows] = 0

    def keep(self, positions: NDArray[np.int64], index: Tensor) -> None:
        """See `History.keep`."""
        self.u, self.v, self._used = self.u[index], self.v[index], self._used[positions]

    def join(self, count: int) -> None:
        """See `History.join`."""
        self.u, self.v = zero_rows(self.u, count), zero_rows(self.v, count)
        self._used = np.concatenate([self._used, np.zeros(count, np.int64)])


class InverseEstimate:
    """What Broyden's method knew of the inverse of `I - J` when each row was finished."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._pieces: list[tuple[NDArray[np.int64], Tensor, Tensor]] = []

    def add(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        """Keep the estimate of rows that leave: their places among all examples, and in the batch.

        Rows whose last steps were plain have none: their history is fed only where others need one.
        """
        if not isinstance(self._stepper, AcceleratedStepper):
            return
        updates = self._stepper.history
        if isinstance(updates, BroydenUpdates):
            in_trial = self._stepper.trial[positions]
            rows, positions = rows[in_trial], positions[in_trial]
            at = torch.from_numpy(positions).to(updates.u.device)
            self._pieces.append((rows, updates.u[at].detach(), updates.v[at].detach()))

    def transpose(self, cotangents: list[Tensor]) -> list[Tensor]:
        """`(I - J)^{-T} g` row by row; one cotangent a measured leaf. A row without updates gets g back."""
        # H estimates (J - I)^{-1}, so (I - J)^{-T} g is -H^T g = g - sum_i v_i (u_i . g).
        return self._corrected(cotangents, lambda g, u, v: _apply(g, u, v))

    def apply(self, tangents: list[Tensor]) -> list[Tensor]:
        """`(I - J)^{-1} g`; see `transpose`."""
        return self._corrected(tangents, lambda g, u, v: _apply(g, v, u))

    def _corrected(self, vectors: list[Tensor], correction: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        packing = Packing(vectors, list(range(len(vectors))))
        result = packing.pack(vectors)
        for rows, u, v in self._pieces:
            at = torch.from_numpy(rows).to(result.device)
            g = result[at]
            result = result.index_copy(0, at, g - correction(g[:, None], u, v)[:, 0])
        return packing.unpack(result, vectors)

    def among(self, rows: NDArray[np.int64]) -> "InverseEstimate":
        """The same where its rows are the rows `rows` of a larger batch."""
        whole = InverseEstimate(self._stepper)
        whole._pieces = [(rows[at], u, v) for at, u, v in self._pieces]
        return whole


def _apply(vectors: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """`sum_i left_i (right_i . x)` for `(rows, k, n)` vectors."""
    return torch.bmm(torch.bmm(vectors, right.transpose(1, 2)), left)
