"""Anderson acceleration with its safeguard, on the rows that are in the batch."""

import torch
from torch import Tensor

from homeostat.engine.forward.history import TruncatedGramSchmidt
from homeostat.engine.forward.packing import Packing
from homeostat.engine.forward.record import Record
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
        self._safeguard = Safeguard(problem.rows, problem.state[0].device, self._packing.dtype)
        self._history: TruncatedGramSchmidt | None = None  # made when the first trial begins
        self._anchor: list[Tensor] | None = None
        self._residual: Tensor | None = None  # of the step before, and the value that belongs to it
        self._value: Tensor | None = None
        self._norms: list[Tensor] = []  # of the residuals since the last decision
        self._cosines: list[Tensor] = []

    def advance(self, count: int, record_all: bool) -> Record:
        """Take `count` steps; without `record_all` only the last is recorded."""
        record = Record(self._taken, self._last, self._measured)
        trials = []
        for left in range(count, 0, -1):
            state = self._state
            trials.append(self._safeguard.trial)
            after = self._step(state)
            if not record_all:
                record = Record(self._taken - 1, self._last, self._measured)
                trials = trials[-1:]
            record.add(state, after)
            self._last = after
        if any(x is not trials[0] for x in trials) or self._safeguard.trials:
            record.extrapolated = torch.stack(trials)
        return record

    def _step(self, state: list[Tensor]) -> list[Tensor]:
        guard, packing = self._safeguard, self._packing
        after = self._apply(state)
        self._taken += 1
        old, new = packing.pack(state), packing.pack(after)
        residual = new - old
        value = new if self._method.damping == 1 else torch.lerp(old, new, self._method.damping)
        with torch.no_grad():
            restored = self._review(residual, value, after)
        proposal = value
        if guard.trials:
            proposal = self._extrapolate(residual, value)
        self._residual, self._value = residual, value
        if proposal is new and restored is None:
            self._state = after
            return after
        self._state = packing.unpack(proposal, after)
        if restored is not None:
            self._state = _where(restored, self._anchor, self._state)
        return after

    def _extrapolate(self, residual: Tensor, value: Tensor) -> Tensor:
        assert self._history is not None
        assert self._residual is not None
        assert self._value is not None
        slot = self._taken % self._method.memory
        coefficients = self._history.add(slot, residual, self._residual, value, self._value)
        if self._safeguard.trials < len(residual):
            coefficients = coefficients * self._safeguard.gate
        return self._history.extrapolate(value, coefficients)

    def _review(self, residual: Tensor, value: Tensor, after: list[Tensor]) -> Tensor | None:
        """Let the safeguard decide at the end of a period; returns the rows that go back to their anchor."""
        guard = self._safeguard
        self._norms.append(torch.linalg.vector_norm(residual, dim=1))
        former = self._residual
        if guard.trials < len(residual) and former is not None and self._taken % PERIOD != 1:
            self._cosines.append((residual * former).sum(1))
        if self._taken % PERIOD:
            return None
        norms, products = self._norms, self._cosines
        self._norms, self._cosines = [], []
        cosines = [p / (norms[i + 1] * norms[i]) for i, p in enumerate(products)]
        verdict = guard.review(norms, cosines)
        if verdict is None:
            return None
        moved = verdict.begin | verdict.advance
        plain = self._packing.unpack(value, after)
        self._anchor = plain if self._anchor is None else _where(moved, plain, self._anchor)
        if self._history is None:
            self._history = TruncatedGramSchmidt(residual, self._method.memory, functional=self._graphed)
        elif bool(verdict.begin.any()):
            self._history.forget(verdict.begin)
        return verdict.restore if bool(verdict.restore.any()) else None

    def keep(self, index: Tensor) -> None:
        """Rows have left; `index` are the positions of those that stay."""
        layout = self._problem.layout
        self._state, self._last = select(self._state, layout, index), select(self._last, layout, index)
        self._anchor = None if self._anchor is None else select(self._anchor, layout, index)
        self._residual, self._value = (None if x is None else x[index] for x in (self._residual, self._value))
        self._norms, self._cosines = [x[index] for x in self._norms], [x[index] for x in self._cosines]
        self._safeguard.keep(index)
        if self._history is not None:
            self._history.keep(index)
        self._context = select(self._context, self._problem.context_layout, index)
        self._apply = self._problem.bind(self._context)


def _where(rows: Tensor, chosen: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Leaves whose `rows` are from `chosen`."""
    return [
        torch.where(rows.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(chosen, others, strict=True)
    ]
