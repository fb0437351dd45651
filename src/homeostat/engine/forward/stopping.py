"""The stopping test of `solve`: tolerance, steps, cycles, the rounding floor and divergence, row by row.

It looks at blocks of steps, after the fact, and finds for every row the first step at which it was finished; how steps
are cut into blocks changes nothing but the cost.
"""

import math
from bisect import bisect_right
from typing import NamedTuple

import torch
from torch import Tensor

from homeostat.engine.forward.cycles import LONGEST_PERIOD, CycleTest
from homeostat.engine.forward.record import Record
from homeostat.engine.norms import bound, noise_floor, smallest_trusted
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop

CHECKPOINT = LONGEST_PERIOD
"""Cycles and stalls are decided at multiples of this many steps."""

# A residual of this many units in the last place can be rounding alone. Where a map contracts slowly and alternates,
# rounding is kept alive as a small cycle, 1 / (1 - rate) times larger than one rounding.
_STALL_UNITS, _CYCLE_UNITS = 16, 1000
# Checkpoints in a row without an improvement of 5 % after which a residual at the rounding floor counts as stalled.
_PATIENCE = 2


class Decision(NamedTuple):
    """Which rows are finished, `(rows,)` each."""

    finished: Tensor
    at: Tensor
    """int64: at which step of the record, from 0."""
    reverted: Tensor
    """bool, some of the finished: they diverged and keep the f(z) before that step."""


class StopTest:
    """Fills `steps`, `residual` and `status` of every example as its row is finished."""

    def __init__(self, stop: Stop, state: list[Tensor], measured: list[int]) -> None:
        rows, device = state[0].shape[0], state[0].device
        leaves = [state[i] for i in measured]
        self.tests = stop.tests
        self._atol = stop.atol
        self._rtol: float | Tensor = stop.rtol.to(device) if isinstance(stop.rtol, Tensor) else stop.rtol
        # Rows without a tolerance, where others have one: they take all of their steps, and are looked at only then.
        self._bare: Tensor | None = None
        if isinstance(self._rtol, Tensor) and stop.atol == 0:
            self._bare = self._rtol == 0
        self._bounds = [bound(leaf.dtype) for leaf in leaves]
        self._floor = noise_floor(leaves, _STALL_UNITS)
        self._cycle_floor = noise_floor(leaves, _CYCLE_UNITS)
        # Where a state is smaller than this, changes of interest could vanish when they are squared.
        self._tiny = max(smallest_trusted(leaf.dtype) for leaf in leaves) / self._floor
        # What counts as near: the tolerance, or the rounding floor where the tolerance lies below it.
        self._limit: float | Tensor = (
            self._rtol.clamp(min=self._floor) if isinstance(self._rtol, Tensor) else max(self._rtol, self._floor)
        )
        self._cycles = CycleTest()

        limits = torch.as_tensor(stop.max_steps, dtype=torch.int64).expand(rows)
        self._ends = sorted(set(limits.tolist()))
        self.max_steps = self._ends[-1] if self._ends else 0
        self._limits = limits.to(device)

        self.steps = torch.zeros(rows, dtype=torch.int64, device=device)
        self.status = torch.full((rows,), Status.MAX_STEPS, dtype=torch.int8, device=device)
        dtype = torch.float64 if any(leaf.dtype == torch.float64 for leaf in leaves) else torch.float32
        self.residual = torch.full((rows,), float("nan"), dtype=dtype, device=device)
        # For the stall test, of residuals at the rounding floor: lowest so far, lowest since the last checkpoint, and
        # the number of checkpoints since it improved.
        self._floored = False
        self._best = torch.full_like(self.residual, float("inf"))
        self._low = torch.full_like(self.residual, float("inf"))
        self._quiet = torch.zeros_like(self.steps)

        self.closest: list[float] = []
        """Step by step of the last record, the lowest residual of any row in units of the tolerance."""
        self.relative: Tensor | None = None
        """Relative residuals of the last record, `(steps, rows)`."""

    def room(self, taken: int) -> int:
        """Steps until the test has to look again: up to the next limit, or the next checkpoint."""
        end = self._ends[bisect_right(self._ends, taken)] - taken
        return min(end, CHECKPOINT - taken % CHECKPOINT) if self.tests else end

    def judge(self, record: Record, rows: Tensor) -> Decision | None:
        """Look at some steps of the rows that are in the batch; `rows` are their places among all examples.

        Returns:
            None where no row is finished.
        """
        end = record.first + record.steps
        ending = end in self._ends
        changes = record.changes()
        calm = self.tests and self._calm(changes, record.last_sizes())
        self.relative, skipped = None, 0
        if calm and not ending and not self._cycles.due(end):
            return None

        sizes: list[Tensor] = []
        if not calm:
            changes, sizes = record.exact_norms()
        cycling = self._cycles.observe(record, changes, self._within, exact=not calm) if self.tests else None
        if cycling is not None and not bool(cycling.any()):
            cycling = None
        if calm:
            if not ending and cycling is None:
                return None
            skipped, record = record.steps - 1, record.tail()  # whatever ends here ends with the last step
            changes, sizes = record.exact_norms()
        relative = self.relative = _largest_ratio(changes, sizes).to(self.residual.dtype)
        diverged = self._diverged(record, sizes)
        over, at, status = self._statuses(rows, end, changes, sizes, relative, diverged, cycling)
        if not bool(over.any()):
            return None
        done = rows[over]
        self.steps[done] = record.first + 1 + at[over]
        self.residual[done] = relative.gather(0, at[None])[0][over]
        self.status[done] = status[over]
        reverts = (status == Status.DIVERGED) & (self.tests if self._bare is None else ~self._bare)
        return Decision(over, at + skipped, over & reverts)

    def _calm(self, changes: list[Tensor], sizes: list[Tensor]) -> bool:
        """No row came near its tolerance, the rounding floor, the bound, or a range where norms need care.

        The one look that the host takes at a block of steps. The sizes of f(z) are taken at the last step alone; before
        it they were no larger than that and all changes together. A NaN is never calm.
        """
        nearest, extremes = None, []
        for change, size in zip(changes, sizes, strict=True):
            near = change / (size * self._limit + self._atol if self._atol > 0 else size * self._limit)
            nearest = near if nearest is None else torch.maximum(nearest, near.to(nearest.dtype))
            extremes += [*torch.aminmax(size), (change.sum(0) / size).amax()]
        assert nearest is not None
        *self.closest, smallest, largest, growth = torch.cat([nearest.amin(1), _fold(extremes)]).tolist()
        return (
            not self._floored
            and min(self.closest) > 1.00001 * (1 + growth)
            and not any(map(math.isnan, self.closest))
            and largest * (1 + growth) <= min(self._bounds)
            and smallest >= self._tiny
        )

    def _statuses(
        self,
        rows: Tensor,
        end: int,
        changes: list[Tensor],
        sizes: list[Tensor],
        relative: Tensor,
        diverged: Tensor,
        cycling: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows are finished, at which step of the block (its last, where they are not), and how."""
        steps = len(relative)
        at_limit = self._limits[rows] == end
        status = torch.full_like(rows, Status.MAX_STEPS, dtype=torch.int8)
        if not self.tests:
            at = torch.full_like(rows, steps - 1)
            return at_limit, at, torch.where(diverged[-1], Status.DIVERGED, status).to(torch.int8)

        tested = True if self._bare is None else ~self._bare
        met = (self._within(changes, sizes) | diverged) & tested
        hit = met.any(0)
        at = torch.where(hit, met.to(torch.int8).argmax(0), steps - 1)
        stalled = self._stalled(relative, end)
        repeats = torch.zeros_like(hit) if cycling is None else cycling
        rounding = relative[-1] <= self._cycle_floor
        stalled, repeats = (stalled | (repeats & rounding)) & tested, repeats & ~rounding & tested
        status[stalled] = Status.STALLED
        status[repeats] = Status.CYCLING
        status[hit] = Status.CONVERGED
        over = hit | stalled | repeats | at_limit
        status[diverged.gather(0, at[None])[0] & over] = Status.DIVERGED
        return over, at, status

    def _within(self, changes: list[Tensor], sizes: list[Tensor]) -> Tensor:
        met = [change <= self._atol + self._rtol * size for change, size in zip(changes, sizes, strict=True)]
        return torch.stack(met).all(0) if len(met) > 1 else met[0]

    def _diverged(self, record: Record, sizes: list[Tensor]) -> Tensor:
        outside = torch.stack([~(s <= b) for s, b in zip(sizes, self._bounds, strict=True)]).any(0)
        proposals = record.proposals()
        return outside if proposals is None else outside & ~proposals

    def _stalled(self, relative: Tensor, end: int) -> Tensor:
        reached = relative <= self._floor
        self._floored = self._floored or bool(reached.any())
        if not self._floored:
            return reached[-1]
        at_floor = torch.where(reached, relative, float("inf"))
        self._low = torch.minimum(self._low, at_floor.amin(0))
        if end % CHECKPOINT:
            return torch.zeros_like(self._quiet, dtype=torch.bool)
        better = self._low < 0.95 * self._best
        seen = torch.isfinite(torch.minimum(self._best, self._low))
        self._quiet = torch.where(better | ~seen, 0, self._quiet + 1)
        self._best = torch.minimum(self._best, self._low)
        self._low = torch.full_like(self._low, float("inf"))
        return (relative[-1] <= self._floor) & (self._quiet >= _PATIENCE)

    def keep(self, index: Tensor) -> None:
        """Drop the rows that left; `index` are the positions of those that stay."""
        self._best, self._low, self._quiet = self._best[index], self._low[index], self._quiet[index]
        self._bare = None if self._bare is None else self._bare[index]
        if isinstance(self._rtol, Tensor):
            self._rtol = self._rtol[index]
        if isinstance(self._limit, Tensor):
            self._limit = self._limit[index]
        self._floored = self._floored and bool(torch.isfinite(torch.minimum(self._best, self._low)).any())
        self._cycles.keep(index)


def _largest_ratio(changes: list[Tensor], sizes: list[Tensor]) -> Tensor:
    """The largest over leaves of `change / size`; 0/0 is 0."""
    largest = None
    for change, size in zip(changes, sizes, strict=True):
        ratio = torch.where(change == 0, 0, change / size)
        largest = ratio if largest is None else torch.maximum(largest, ratio.to(largest.dtype))
    assert largest is not None, "a state has at least one measured leaf"
    return largest


def _fold(extremes: list[Tensor]) -> Tensor:
    """Of `[smallest, largest, growth]` a leaf: the smallest, largest and largest over leaves."""
    values = torch.stack(extremes)
    if len(extremes) == 3:
        return values
    smallest, largest, growth = values.view(-1, 3).unbind(1)
    return torch.stack([smallest.amin(), largest.amax(), growth.amax()])
