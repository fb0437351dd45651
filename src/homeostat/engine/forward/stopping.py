"""The stopping test of `solve`: tolerance, steps, cycles, the rounding floor and divergence, row by row.

It looks at blocks of steps, after the fact, and finds for every row the first step at which it was finished; how steps
are cut into blocks changes nothing but the cost. It works on the host, in NumPy: the norms of a whole block come over
at once, and a handful of numbers a row is dealt with faster there than anywhere else.
"""

import math
from bisect import bisect_right
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.forward.cycles import LONGEST_PERIOD, CycleTest
from homeostat.engine.forward.drift import DriftTest
from homeostat.engine.forward.patience import PatienceTest
from homeostat.engine.forward.record import Mask, Record, Table
from homeostat.engine.norms import bound, largest_trusted, noise_floor, smallest_trusted
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop

CHECKPOINT = LONGEST_PERIOD
"""Cycles and stalls are decided at multiples of this many steps."""

# A residual of this many units in the last place can be rounding alone. Where a map contracts slowly and alternates,
# rounding is kept alive as a small cycle, 1 / (1 - rate) times larger than one rounding.
_STALL_UNITS, _CYCLE_UNITS = 16, 1000
# And the residual of a state that grows steadily differs by a few from step to step.
_DRIFT_UNITS = 4
# Checkpoints in a row without an improvement of 5 % after which a residual at the rounding floor counts as stalled.
_PATIENCE = 2


class Decision(NamedTuple):
    """Which rows are finished, `(rows,)` each."""

    finished: Mask
    at: NDArray[np.int64]
    """At which step of the record, from 0, the state that is returned was made; -1 is the f(z) before the record."""
    last: NDArray[np.int64]
    """At which step each was finished: one later where it diverged and keeps the f(z) before."""

    def ended(self, steps: int) -> NDArray[np.int64]:
        """Of `steps` steps, how many count for each row."""
        return np.where(self.finished, self.last + 1, steps)


class StopTest:
    """Finds `steps`, `residual` and `status` of every example, as its row is finished."""

    def __init__(self, stop: Stop, state: list[Tensor], measured: list[int], give_up: bool = False) -> None:
        rows = state[0].shape[0]
        leaves = [state[i] for i in measured]
        self.tests = stop.tests
        self._atol = stop.atol
        self._rtol = np.broadcast_to(np.asarray(_numbers(stop.rtol), np.float64), (rows,))
        # Rows without a tolerance, where others have one, take all of their steps and are looked at only then.
        self._tested: Mask = (self._rtol > 0) | (stop.atol > 0)
        self._bounds = [bound(leaf.dtype) for leaf in leaves]
        self._floor = noise_floor(leaves, _STALL_UNITS)
        self._cycle_floor = noise_floor(leaves, _CYCLE_UNITS)
        # Where a state is smaller than this, changes of interest could vanish when they are squared.
        self._tiny = max(smallest_trusted(leaf.dtype) for leaf in leaves) / self._floor
        self._huge = min(largest_trusted(leaf.dtype) for leaf in leaves)
        self._limit = np.maximum(self._rtol, self._floor)  # what counts as near
        self._cycles, self._drift = CycleTest(), DriftTest(noise_floor(leaves, _DRIFT_UNITS))
        self._patience = PatienceTest(rows) if give_up and stop.tests else None
        self._limits = np.broadcast_to(np.asarray(_numbers(stop.max_steps), np.int64), (rows,))
        self._ends = sorted(set(self._limits.tolist()))
        self.max_steps = self._ends[-1] if self._ends else 0

        self.steps = np.zeros(rows, np.int64)
        self.status = np.full(rows, Status.MAX_STEPS, np.int8)
        self.residual = np.full(rows, np.nan)
        # For the stall test, of residuals at the rounding floor: lowest so far, lowest since the last checkpoint, and
        # the number of checkpoints since it improved.
        self._floored = False
        self._best, self._low = np.full(rows, np.inf), np.full(rows, np.inf)
        self._quiet = np.zeros(rows, np.int64)

        self.closest: list[float] = []
        """Step by step of the last record, the lowest residual of any row in units of what it has to reach."""

    def room(self, taken: int) -> int:
        """Steps until the test has to look again: up to the next limit, or the next checkpoint."""
        end = self._ends[bisect_right(self._ends, taken)] - taken
        return min(end, CHECKPOINT - taken % CHECKPOINT) if self.tests else end

    def judge(self, record: Record, rows: NDArray[np.int64]) -> Decision | None:
        """Look at some steps of the rows that are in the batch; `rows` are their places among all examples.

        Returns:
            None where no row is finished.
        """
        with np.errstate(all="ignore"):
            return self._judge(record, rows)

    def _judge(self, record: Record, rows: NDArray[np.int64]) -> Decision | None:
        end = record.first + record.steps
        ending = end in self._ends
        if not self.tests and not ending:
            return None
        changes, last_sizes = record.changes()
        calm, ordinary = self._look(changes, last_sizes)
        slow = None
        if self._patience is not None:
            slow = self._patience.observe(changes, last_sizes, end % CHECKPOINT == 0)
        if self.tests and end % CHECKPOINT == 0:
            self._drift.mark(end, changes, last_sizes)
        if calm and not ending and slow is None and not self._cycles.due(end):
            return None
        if not ordinary and self.tests:
            changes, _ = record.exact_norms()
        cycling = self._cycles.observe(record, changes, self._tolerance, exact=not ordinary) if self.tests else None
        if calm and not ending and slow is None and cycling is None:
            return None
        skipped = 0
        if calm or not self.tests:  # whatever ends here ends with the last step
            skipped, record = record.steps - 1, record.tail()
            changes = [change[-1:] for change in changes]
        sizes = record.sizes() if ordinary else []
        if not ordinary:
            changes, sizes = record.exact_norms()
        return self._decide(record, rows, end, skipped, changes, sizes, cycling, slow)

    def _look(self, changes: list[Table], sizes: list[Table]) -> tuple[bool, bool]:
        """Whether no row came near anything, and whether all norms are in the range where one pass gets them right.

        The sizes of f(z) are known at the last step alone; before it they were no larger than that and all changes
        together. A NaN is never calm.
        """
        growth, near = 0.0, []
        for change, size in zip(changes, sizes, strict=True):
            near.append(change / (size * self._limit + self._atol))
            growth = max(growth, (change.sum(0) / size).max())
        nearest = near[0] if len(near) == 1 else np.max(near, 0)
        self.closest = nearest.min(1).tolist()
        smallest, largest = min(s.min() for s in sizes), max(s.max() for s in sizes) * (1 + growth)
        ordinary = bool(smallest >= self._tiny and largest <= self._huge)  # False for a NaN
        calm = (
            self.tests
            and ordinary
            and not self._floored
            and min(self.closest) > 1.00001 * (1 + growth)
            and not any(map(math.isnan, self.closest))
            and largest <= min(self._bounds)
        )
        return calm, ordinary

    def _within(self, changes: list[Table], sizes: list[Table]) -> Mask:
        return np.all([c <= limit for c, limit in zip(changes, self._tolerance(sizes), strict=True)], 0)

    def _tolerance(self, sizes: list[Table]) -> list[Table]:
        return [self._atol + self._rtol * size for size in sizes]

    def _decide(
        self,
        record: Record,
        rows: NDArray[np.int64],
        end: int,
        skipped: int,
        changes: list[Table],
        sizes: list[Table],
        cycling: Mask | None,
        slow: Mask | None,
    ) -> Decision | None:
        steps, everyone = record.steps, np.arange(len(rows))
        ratios = [np.where(c == 0, 0.0, c / s) for c, s in zip(changes, sizes, strict=True)]
        relative = np.max(ratios, 0)
        diverged = np.any([~(s <= b) for s, b in zip(sizes, self._bounds, strict=True)], 0)
        proposals = record.proposals()
        if proposals is not None:
            diverged &= ~proposals
        at = np.full(len(rows), steps - 1)
        status = np.full(len(rows), Status.MAX_STEPS, np.int8)
        over = self._limits == end
        if self.tests:
            met = (self._within(changes, sizes) | diverged) & self._tested
            drift = self._drift.observe(record, changes, sizes) if met.any() or cycling is not None else None
            if drift is not None:
                met &= ~drift | diverged
            hit = met.any(0)
            at = np.where(hit, met.argmax(0), at)
            stalled = self._stalled(relative, end)
            repeats = np.zeros_like(hit) if cycling is None else cycling
            if drift is not None:
                repeats = repeats & ~drift[-1]
            rounding = relative[-1] <= self._cycle_floor
            stalled, repeats = (stalled | (repeats & rounding)) & self._tested, repeats & ~rounding & self._tested
            status[stalled], status[repeats], status[hit] = Status.STALLED, Status.CYCLING, Status.CONVERGED
            over = over | hit | stalled | repeats
            if slow is not None:
                over |= slow & self._tested
        gone = over & diverged[at, everyone]
        status[gone] = Status.DIVERGED
        if not over.any():
            return None
        done = rows[over]
        self.steps[done] = record.first + 1 + at[over]
        self.residual[done] = relative[at, everyone][over]
        self.status[done] = status[over]
        # A row that takes all of its steps untested is returned as it is.
        return Decision(over, at + skipped - (gone & self._tested & self.tests), at + skipped)

    def _stalled(self, relative: Table, end: int) -> Mask:
        reached = relative <= self._floor
        self._floored = self._floored or bool(reached.any())
        if not self._floored:
            return reached[-1]
        self._low = np.minimum(self._low, np.where(reached, relative, np.inf).min(0))
        if end % CHECKPOINT:
            return np.zeros_like(reached[-1])
        seen = np.isfinite(np.minimum(self._best, self._low))
        self._quiet = np.where((self._low < 0.95 * self._best) | ~seen, 0, self._quiet + 1)
        self._best = np.minimum(self._best, self._low)
        self._low = np.full_like(self._low, np.inf)
        return reached[-1] & (self._quiet >= _PATIENCE)

    def keep(self, positions: NDArray[np.int64], index: Tensor) -> None:
        """Drop the rows that left; `positions` and `index` both say where those are that stay."""
        self._best, self._low, self._quiet = self._best[positions], self._low[positions], self._quiet[positions]
        self._rtol, self._tested = self._rtol[positions], self._tested[positions]
        self._limit = self._limit[positions]
        self._limits = self._limits[positions]
        self._floored = bool(np.isfinite(np.minimum(self._best, self._low)).any())
        self._cycles.keep(positions, index)
        self._drift.keep(positions)
        if self._patience is not None:
            self._patience.keep(positions)


def _numbers(value: float | Tensor) -> object:
    return value.tolist() if isinstance(value, Tensor) else value
