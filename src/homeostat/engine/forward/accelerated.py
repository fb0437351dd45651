"""Accelerated iteration with its safeguard: plain steps, and proposals for the rows that are in a trial."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.packing import Packing
from homeostat.engine.forward.record import Mask, Record, to_host
from homeostat.engine.forward.safeguard import PERIOD, Safeguard
from homeostat.engine.forward.stepper import Stepper
from homeostat.engine.nest import select
from homeostat.engine.norms import residuals
from homeostat.engine.problem import Problem


class History(Protocol):
    """What an accelerated method remembers of former steps, row by row. All matrices are `(rows, unknowns)`."""

    def propose(self, step: int, residual: Tensor, former: Tensor, value: Tensor, former_value: Tensor) -> Tensor:
        """Learn from two consecutive evaluations and say where to evaluate next.

        Args:
            step: number of evaluations so far.
            residual, former: f(z) - z at this step and at the one before, which may be written over.
            value, former_value: the plain next states, z + damping (f(z) - z), at the same steps.
        """
        ...

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Empty the history of some rows."""
        ...

    def keep(self, positions: NDArray[np.int64], index: Tensor) -> None:
        """Rows have left; `positions` and `index` both say where those are that stay."""
        ...


class AcceleratedStepper(Stepper):
    """Plain steps, and proposed ones for the rows whose safeguard allows it."""

    def __init__(self, problem: Problem, damping: float, make_history: Callable[[Tensor], History]) -> None:
        super().__init__(problem)
        self._damping, self._make_history = damping, make_history
        self.packing = Packing(problem.state, self.measured)
        self._safeguard = Safeguard(problem.rows)
        self._gate: Tensor | None = None  # the safeguard's trials, (rows, 1)
        self.history: History | None = None
        """Made when the first trial begins."""
        self._anchor: list[Tensor] | None = None
        self._anchor_residual: Tensor | None = None
        self._residual: Tensor | None = None  # of the step before, and the value that belongs to it
        self._value: Tensor | None = None
        self._norms: list[Tensor] = []  # of the residuals since the last decision
        self._products: list[Tensor] = []  # of a residual with the one before

    def receive(self, record: Record, after: list[Tensor]) -> None:
        """See `Stepper.receive`."""
        guard, packing, state = self._safeguard, self.packing, self.state
        self.taken += 1
        old, new = packing.pack(state), packing.pack(after)
        residual = new - old
        value = new if self._damping == 1 else torch.lerp(old, new, self._damping)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(residual, dim=1)
            record.add(state, after, [norm] if packing.plain else None, guard.away if guard.away.any() else None)
            self._norms.append(norm)
            if guard.trials < len(residual) and self.taken % PERIOD != 1:
                assert self._residual is not None
                self._products.append((residual * self._residual).sum(1))
        restored = self._review(residual, value, after) if self.taken % PERIOD == 0 else None
        proposal = value
        if guard.trials:
            assert self.history is not None
            assert self._residual is not None
            assert self._value is not None
            former, former_value = self._residual, self._value
            proposal = self.history.propose(self.taken, residual, former, value, former_value)
            if guard.trials < len(residual):
                assert self._gate is not None
                proposal = torch.where(self._gate, proposal, value)
        self._residual, self._value, self.last = residual, value, after
        self.state = after if proposal is new else packing.unpack(proposal, after)
        if restored is not None:
            assert self._anchor is not None
            self.state = _where(restored, self._anchor, self.state)

    def _review(self, residual: Tensor, value: Tensor, after: list[Tensor]) -> Tensor | None:
        """Let the safeguard decide at the end of a period; returns the rows that go back to their anchor."""
        guard, count = self._safeguard, len(self._norms)
        numbers = to_host(torch.stack([*self._norms, *self._products]))
        self._norms, self._products = [], []
        verdict = guard.review(numbers[:count], numbers[count:])
        if verdict is None:
            return None
        device = residual.device
        self._gate = torch.from_numpy(guard.trial).to(device)[:, None]
        if (verdict.begin | verdict.advance).any():
            plain = self.packing.unpack(value, after)
            moved = torch.from_numpy(verdict.begin | verdict.advance).to(device)
            with torch.no_grad():
                relative = residuals(*([leaves[i] for i in self.measured] for leaves in (self.state, after)))[2]
            if self._anchor is None:
                self._anchor, self._anchor_residual = plain, relative
            else:
                assert self._anchor_residual is not None
                self._anchor = _where(moved, plain, self._anchor)
                self._anchor_residual = torch.where(moved, relative, self._anchor_residual)
        if verdict.begin.any():
            if self.history is None:
                self.history = self._make_history(residual)
            self.history.forget(np.flatnonzero(verdict.begin))
        return torch.from_numpy(verdict.restore).to(device) if verdict.restore.any() else None

    @property
    def trial(self) -> Mask:
        """`(rows,)` bool: rows whose next state is a proposal."""
        return self._safeguard.trial

    def anchors(self, index: Tensor) -> tuple[list[Tensor], Tensor]:
        """Where some rows would go back to: the leaves, and their relative residuals."""
        assert self._anchor is not None
        assert self._anchor_residual is not None
        return select(self._anchor, self.problem.layout, index), self._anchor_residual[index]

    def keep(self, positions: NDArray[np.int64], index: Tensor) -> None:
        """See `Stepper.keep`."""
        super().keep(positions, index)
        self._anchor = None if self._anchor is None else select(self._anchor, self.problem.layout, index)
        self._residual, self._value, self._anchor_residual = (
            None if x is None else x[index] for x in (self._residual, self._value, self._anchor_residual)
        )
        self._norms, self._products = [x[index] for x in self._norms], [x[index] for x in self._products]
        self._safeguard.keep(positions)
        self._gate = None if self._gate is None else self._gate[index]
        if self.history is not None:
            self.history.keep(positions, index)


def _where(rows: Tensor, chosen: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Leaves whose `rows` are from `chosen`."""
    return [torch.where(rows.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(chosen, others, strict=True)]
