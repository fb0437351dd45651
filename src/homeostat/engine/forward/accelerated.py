"""Accelerated iteration with its safeguard: plain steps, and proposals for the rows that are in a trial."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.dots import dots
from homeostat.engine.forward.packing import Packing
from homeostat.engine.forward.record import Mask, Record, to_host
from homeostat.engine.forward.safeguard import FIRST, PERIOD, Safeguard
from homeostat.engine.forward.stepper import Stepper
from homeostat.engine.nest import append, select, zero_rows
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

    def join(self, count: int) -> None:
        """So many rows have come in, behind the others, with nothing to remember."""
        ...


class AcceleratedStepper(Stepper):
    """Plain steps, and proposed ones for the rows whose safeguard allows it.

    The next state is worked out when somebody asks for it: by then rows that are finished have left, and their states.
    """

    def __init__(
        self,
        problem: Problem,
        damping: float,
        make_history: Callable[[Tensor], History],
        *,
        solvable: int,
        noise: float,
    ) -> None:
        """Room for a problem.

        Args:
            problem: what is solved.
            damping: share of the way that a plain step goes.
            make_history: an empty history with rows and unknowns as a matrix has them.
            solvable: unknowns that the history is enough for, on a linear map.
            noise: share of the value below which a residual is nothing but rounding.
        """
        self._state: list[Tensor] | None = None
        super().__init__(problem)
        self._damping, self._make_history = damping, make_history
        self.packing = Packing(problem.state, self.measured)
        self._safeguard = Safeguard(problem.rows, self.packing.unknowns, solvable, noise)
        self._gate: Tensor | None = None  # the safeguard's trials, (rows, 1)
        self.history: History | None = None
        """Made when the first trial begins."""
        self._anchor: list[Tensor] | None = None
        self._anchor_residual: Tensor | None = None
        self._restored: Tensor | None = None  # rows that go back to their anchor now, (rows,)
        # f(z) - z and the plain next state, of the latest step and of the one before.
        self._residual: Tensor | None = None
        self._value: Tensor | None = None
        self._former: Tensor | None = None
        self._former_value: Tensor | None = None
        # Norms of the residuals since the last decision; what was before the first step is not known.
        self._norms: list[Tensor] = [self._unknown(problem.rows)] * (PERIOD - FIRST)
        self._products: list[Tensor] = []  # of a residual with the one before

    @property
    def state(self) -> list[Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See `Stepper.state`."""
        if self._state is None:
            self._state = self._next_state()
        return self._state

    @state.setter
    def state(self, leaves: list[Tensor]) -> None:
        self._state = leaves

    def receive(self, record: Record, after: list[Tensor]) -> None:
        """See `Stepper.receive`."""
        guard, state = self._safeguard, self.state
        self.taken += 1
        old, new = self.packing.pack(state), self.packing.pack(after)
        residual = new - old
        value = new if self._damping == 1 else torch.lerp(old, new, self._damping)
        self._former, self._former_value = self._residual, self._value
        self._residual, self._value, self.last, self._state = residual, value, after, None
        with torch.no_grad():
            norm = torch.linalg.vector_norm(residual, dim=1)
            record.add(state, after, [norm] if self.packing.plain else None, guard.trial if guard.trials else None)
            self._norms.append(norm)
            if guard.trials < len(residual) and len(self._norms) > 1 and self._former is not None:
                self._products.append(dots(self._former[:, None], residual)[:, 0])
        self._restored = self._review(residual, value, state, after) if len(self._norms) == PERIOD else None

    def _next_state(self) -> list[Tensor]:
        guard, residual, value, after = self._safeguard, self._residual, self._value, self.last
        assert residual is not None
        assert value is not None
        proposal = value
        if guard.trials:
            assert self.history is not None
            assert self._former is not None
            assert self._former_value is not None
            proposal = self.history.propose(self.taken, residual, self._former, value, self._former_value)
            if guard.trials < len(residual):
                assert self._gate is not None
                proposal = torch.where(self._gate, proposal, value)
        self._former = self._former_value = None
        plain = proposal is value and self._damping == 1
        state = after if plain else self.packing.unpack(proposal, after)
        restored, self._restored = self._restored, None
        if restored is None:
            return state
        assert self._anchor is not None
        return _where(restored, self._anchor, state)

    def _review(self, residual: Tensor, value: Tensor, before: list[Tensor], after: list[Tensor]) -> Tensor | None:
        """Let the safeguard decide at the end of a period; returns the rows that go back to their anchor."""
        guard = self._safeguard
        with torch.no_grad():
            size = torch.linalg.vector_norm(value, dim=1)
        numbers = to_host(torch.stack([size, *self._norms, *self._products]))
        self._norms, self._products = [], []
        verdict = guard.review(numbers[1 : PERIOD + 1], numbers[PERIOD + 1 :], numbers[0])
        if verdict is None:
            return None
        device = residual.device
        self._gate = torch.from_numpy(guard.trial).to(device)[:, None]
        if (verdict.begin | verdict.advance).any():
            plain = self.packing.unpack(value, after)
            moved = torch.from_numpy(verdict.begin | verdict.advance).to(device)
            with torch.no_grad():
                relative = residuals(*([leaves[i] for i in self.measured] for leaves in (before, after)))[2]
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

    def _unknown(self, rows: int) -> Tensor:
        return torch.full((rows,), torch.nan, dtype=self.packing.dtype, device=self.last[0].device)

    @property
    def trial(self) -> Mask:
        """`(rows,)` bool: rows whose next state is a proposal."""
        return self._safeguard.trial

    def is_lost(self, record: Record, row: int, at: int) -> bool:
        """Whether what a row would leave with at a step of the record (-1: before it) is not finite.

        It was made by a trial then, and the row leaves with its anchor. The anchor is finite: it follows from finite
        values.
        """
        leaves = record.origin if at < 0 else record.after[at]
        return not all(bool(torch.isfinite(leaves[i][row]).all()) for i in self.measured)

    def anchors(self, index: Tensor) -> tuple[list[Tensor], Tensor]:
        """Where some rows would go back to: the leaves, and their relative residuals."""
        assert self._anchor is not None
        assert self._anchor_residual is not None
        return select(self._anchor, self.problem.layout, index), self._anchor_residual[index]

    def keep(self, positions: NDArray[np.int64], index: Tensor) -> None:
        """See `Stepper.keep`."""
        self._keep_problem(index)
        layout = self.problem.layout
        self.last = select(self.last, layout, index)
        self._state = None if self._state is None else select(self._state, layout, index)
        self._anchor = None if self._anchor is None else select(self._anchor, layout, index)
        self._anchor_residual = None if self._anchor_residual is None else self._anchor_residual[index]
        self._residual, self._value, self._former, self._former_value, self._restored, self._gate = (
            None if x is None else x[index]
            for x in (self._residual, self._value, self._former, self._former_value, self._restored, self._gate)
        )
        self._norms, self._products = [x[index] for x in self._norms], [x[index] for x in self._products]
        self._safeguard.keep(positions)
        if self.history is not None:
            self.history.keep(positions, index)

    def until_open(self) -> int:
        """See `Stepper.until_open`: newcomers begin with a period, so that the safeguard decides at the same steps."""
        return (PERIOD - self.taken % PERIOD) % PERIOD

    def join(self, newcomers: Problem) -> None:
        """See `Stepper.join`. Whatever stands in the new rows is not used before they have taken a period's steps."""
        super().join(newcomers)
        count = newcomers.rows
        if self._anchor is not None:
            self._anchor = append([self._anchor, newcomers.state], self.problem.layout)
        self._anchor_residual = None if self._anchor_residual is None else zero_rows(self._anchor_residual, count)
        self._residual, self._value = (
            None if x is None else zero_rows(x, count) for x in (self._residual, self._value)
        )
        self._norms = [torch.cat([x, self._unknown(count)]) for x in self._norms]
        self._safeguard.join(count)
        self._gate = None if self._gate is None else zero_rows(self._gate, count)
        if self.history is not None:
            self.history.join(count)


def _where(rows: Tensor, chosen: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Leaves whose `rows` are from `chosen`."""
    return [torch.where(rows.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(chosen, others, strict=True)]
