"""Anderson acceleration with its safeguard, on the rows that are in the batch."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.history import TruncatedGramSchmidt
from homeostat.engine.forward.packing import Packing
from homeostat.engine.forward.record import Record, to_host
from homeostat.engine.forward.safeguard import PERIOD, Safeguard
from homeostat.engine.methods import Anderson
from homeostat.engine.nest import select
from homeostat.engine.problem import Problem


class AndersonStepper:
    """Plain steps, and extrapolated ones for the rows whose safeguard allows it."""

    def __init__(self, problem: Problem, method: Anderson) -> None:
        self._problem, self._method = problem, method
        self._measured = problem.layout.measured()
        self._packing = Packing(problem.state, self._measured)
        self._apply, self._context = problem.bind(problem.context), problem.context
        self._state, self._last = problem.state, problem.state
        self._taken = 0
        self._graphed = torch.is_grad_enabled()
        self._safeguard = Safeguard(problem.rows)
        self._gate: Tensor | None = None  # the safeguard's trials, (rows, 1)
        self._history: TruncatedGramSchmidt | None = None  # made when the first trial begins
        self._anchor: list[Tensor] | None = None
        self._residual: Tensor | None = None  # of the step before, and the value that belongs to it
        self._value: Tensor | None = None
        self._norms: list[Tensor] = []  # of the residuals since the last decision
        self._products: list[Tensor] = []  # of a residual with the one before

    def advance(self, count: int, record_all: bool) -> Record:
        """Take `count` steps; without `record_all` only the last is recorded."""
        record = Record(self._taken, self._last, self._measured)
        for _ in range(count):
            if not record_all:
                record = Record(self._taken, self._last, self._measured)
            self._step(record)
        return record

    def _step(self, record: Record) -> None:
        guard, packing, state = self._safeguard, self._packing, self._state
        after = self._apply(state)
        self._taken += 1
        old, new = packing.pack(state), packing.pack(after)
        residual = new - old
        value = new if self._method.damping == 1 else torch.lerp(old, new, self._method.damping)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(residual, dim=1)
            record.add(state, after, [norm] if packing.plain else None, guard.trial if guard.trials else None)
            self._norms.append(norm)
            if guard.trials < len(residual) and self._taken % PERIOD != 1:
                assert self._residual is not None
                self._products.append((residual * self._residual).sum(1))
            restored = self._review(residual, value, after) if self._taken % PERIOD == 0 else None
        proposal = value
        if guard.trials:
            assert self._history is not None
            assert self._residual is not None
            assert self._value is not None
            slot = self._taken % self._method.memory
            gate = self._gate if guard.trials < len(residual) else None
            proposal = self._history.extrapolate(slot, residual, self._residual, value, self._value, gate)
        self._residual, self._value, self._last = residual, value, after
        self._state = after if proposal is new else packing.unpack(proposal, after)
        if restored is not None:
            assert self._anchor is not None
            self._state = _where(restored, self._anchor, self._state)

    def _review(self, residual: Tensor, value: Tensor, after: list[Tensor]) -> Tensor | None:
        """Let the safeguard decide at the end of a period; returns the rows that go back to their anchor."""
        guard, count = self._safeguard, len(self._norms)
        numbers = to_host(torch.stack([*self._norms, *self._products]))
        self._norms, self._products = [], []
        # A record may have begun within a period of trials, before rows became plain.
        products = numbers[count:] if len(numbers) == 2 * count - 1 else numbers[:0]
        verdict = guard.review(numbers[:count], products)
        if verdict is None:
            return None
        device = residual.device
        self._gate = torch.from_numpy(guard.trial).to(device)[:, None]
        begin = torch.from_numpy(verdict.begin).to(device)
        if (verdict.begin | verdict.advance).any():
            plain = self._packing.unpack(value, after)
            moved = begin | torch.from_numpy(verdict.advance).to(device)
            self._anchor = plain if self._anchor is None else _where(moved, plain, self._anchor)
        if verdict.begin.any():
            if self._history is None:
                self._history = TruncatedGramSchmidt(residual, self._method.memory, functional=self._graphed)
            else:
                self._history.forget(begin)
        return torch.from_numpy(verdict.restore).to(device) if verdict.restore.any() else None

    def keep(self, positions: NDArray[np.int64], index: Tensor) -> None:
        """Rows have left; `positions` and `index` both say where those are that stay."""
        layout = self._problem.layout
        self._state, self._last = select(self._state, layout, index), select(self._last, layout, index)
        self._anchor = None if self._anchor is None else select(self._anchor, layout, index)
        self._residual, self._value = (None if x is None else x[index] for x in (self._residual, self._value))
        self._norms, self._products = [x[index] for x in self._norms], [x[index] for x in self._products]
        self._safeguard.keep(positions)
        self._gate = None if self._gate is None else self._gate[index]
        if self._history is not None:
            self._history.keep(index)
        self._context = select(self._context, self._problem.context_layout, index)
        self._apply = self._problem.bind(self._context)


def _where(rows: Tensor, chosen: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Leaves whose `rows` are from `chosen`."""
    return [
        torch.where(rows.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(chosen, others, strict=True)
    ]
