"""The stopping test of `solve`: tolerance, steps, cycles, the rounding floor and divergence, row by row."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.iterate import Release
from homeostat.engine.norms import noise_floor, out_of_bounds, residuals, row_rms
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop

LONGEST_PERIOD = 16
"""Cycles up to this period are recognised."""

# A window of LONGEST_PERIOD steps is compared with one state that was kept at its beginning. Windows open after 32, 64,
# 128 and 256 steps and every 256 from there on, so that the test costs at most one more norm every second step.
_FIRST_WINDOW, _WIDEST_GAP = 32, 256
# Over the gap between two windows (16 steps at least) a cycle's residual keeps this share of itself. A map that
# converges while alternating, z <- -0.99 z, keeps 0.85.
_NOT_SHRINKING = 0.999
# A residual of this many units in the last place can be rounding alone. Where a map contracts slowly and alternates,
# rounding is kept alive as a small cycle, 1 / (1 - rate) times larger than one rounding.
_STALL_UNITS, _CYCLE_UNITS = 16, 1000
# Steps without an improvement of 5 % after which a residual at the rounding floor counts as stalled.
_PATIENCE = 32


class CycleTest:
    """Recognises states that repeat with a period from 2 to 16, from one kept state and a few numbers a row."""

    def __init__(self) -> None:
        self._opens = _FIRST_WINDOW
        self._start: int | None = None
        self._kept: list[Tensor] = []
        self._largest: Tensor | None = None
        self._former: Tensor | None = None
        self._repeats: Tensor | None = None

    def observe(self, step: int, after: Sequence[Tensor], residual: Tensor, within: "Tolerance") -> Tensor | None:
        """`(active,)` bool, rows that cycle, at the end of a window; None at every other step."""
        if step < self._opens:
            if _FIRST_WINDOW - LONGEST_PERIOD <= step < _FIRST_WINDOW:  # what the first window is compared with
                self._former = residual if self._former is None else torch.maximum(self._former, residual)
            if self._start is None:
                return None
        if self._start is None:
            self._start, self._kept = step, [leaf.clone() for leaf in after]
            self._largest, self._repeats = residual, torch.zeros_like(residual, dtype=torch.bool)
            self._opens += min(self._opens, _WIDEST_GAP)
            return None
        assert self._largest is not None
        assert self._repeats is not None
        assert self._former is not None
        self._largest = torch.maximum(self._largest, residual)
        lag = step - self._start
        if lag >= 2:
            self._repeats |= within(
                [row_rms(new - old) for new, old in zip(after, self._kept, strict=True)],
                [row_rms(new) for new in after],
            )
        if lag < LONGEST_PERIOD:
            return None
        cycling = self._repeats & (self._largest >= _NOT_SHRINKING * self._former)
        self._former, self._start, self._kept = self._largest, None, []
        return cycling

    def keep(self, index: Tensor) -> None:
        """Drop the rows that left."""
        self._kept = [leaf[index] for leaf in self._kept]
        self._largest, self._former, self._repeats = (
            None if x is None else x[index] for x in (self._largest, self._former, self._repeats)
        )


class Tolerance:
    """RMS of the change <= atol + rtol * RMS, in every leaf, for the rows still in the batch."""

    def __init__(self, stop: Stop, rows: int, device: torch.device) -> None:
        self.atol = stop.atol
        self.rtol: float | Tensor = stop.rtol
        if isinstance(stop.rtol, Tensor):
            self.rtol = stop.rtol.to(device)

    def __call__(self, changes: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
        met = None
        for change, size in zip(changes, sizes, strict=True):
            inside = change <= self.atol + self.rtol * size
            met = inside if met is None else met & inside
        assert met is not None
        return met

    def keep(self, index: Tensor) -> None:
        if isinstance(self.rtol, Tensor):
            self.rtol = self.rtol[index]


class StopTest:
    """The monitor behind `solve`: fills `steps`, `residual` and `status`, row by row."""

    def __init__(self, stop: Stop, state: Sequence[Tensor], measured: Sequence[int]) -> None:
        rows, device = state[0].shape[0], state[0].device
        self._measured = measured
        self._tests = stop.tests
        # Rows without a tolerance, where others have one; None where all rows are tested.
        self._bare: Tensor | None = None
        if isinstance(stop.rtol, Tensor) and stop.tests and stop.atol == 0:
            self._bare = stop.rtol.to(device) == 0
        self._tolerance = Tolerance(stop, rows, device)
        self._cycles = CycleTest()
        self._floor = noise_floor([state[i] for i in measured], _STALL_UNITS)
        self._cycle_floor = noise_floor([state[i] for i in measured], _CYCLE_UNITS)
        limits = stop.max_steps
        self.max_steps = int(limits.max()) if isinstance(limits, Tensor) and rows else 0
        if not isinstance(limits, Tensor):
            self.max_steps = limits
            limits = torch.full((rows,), limits, dtype=torch.int64)
        self._limits = limits.to(device=device, dtype=torch.int64)
        # Known on the host, so that no step waits for the device only to learn that no row is at its limit.
        self._ends = set(limits.tolist())

        self.steps = torch.zeros(rows, dtype=torch.int64, device=device)
        self.status = torch.full((rows,), Status.MAX_STEPS, dtype=torch.int8, device=device)
        self.residual = torch.full((rows,), float("nan"), dtype=torch.float32, device=device)
        if any(state[i].dtype == torch.float64 for i in measured):
            self.residual = self.residual.double()
        self._best = torch.full_like(self.residual, float("inf"))
        self._best_at = torch.zeros_like(self.steps)

    def observe(
        self, step: int, rows: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], context: Sequence[Any]
    ) -> Release | None:
        """See `Monitor.observe`."""
        ending = step in self._ends
        if not self._tests and not ending:
            return None
        old, new = [before[i] for i in self._measured], [after[i] for i in self._measured]
        changes, sizes, relative = residuals(old, new)
        relative = relative.to(self.residual.dtype)
        diverged = out_of_bounds(new, sizes)
        at_limit = self._limits <= step
        # The bare loop: nothing is decided before the end, and what is there then is returned as it is.
        if not self._tests:
            status = torch.where(diverged, Status.DIVERGED, Status.MAX_STEPS)
            return self._finish(at_limit, None, step, rows, relative, status)

        status = torch.full_like(rows, Status.MAX_STEPS, dtype=torch.int8)
        finished = at_limit
        stalled = self._stalled(step, relative)
        repeats = self._cycles.observe(step, new, relative, self._tolerance)
        if repeats is None:
            repeats = torch.zeros_like(stalled)
        rounding = relative <= self._cycle_floor
        for condition, kind in (
            (stalled | (repeats & rounding), Status.STALLED),
            (repeats & ~rounding, Status.CYCLING),
            (self._tolerance(changes, sizes), Status.CONVERGED),
            (diverged, Status.DIVERGED),
        ):
            if self._bare is not None:
                condition = condition & ~self._bare
            finished = finished | condition
            status = torch.where(condition, kind, status)
        revert = diverged
        if self._bare is not None:
            status = torch.where(self._bare & diverged, Status.DIVERGED, status)
            revert = diverged & ~self._bare
        if not bool(finished.any()):
            return None
        return self._finish(finished, revert, step, rows, relative, status)

    def _stalled(self, step: int, relative: Tensor) -> Tensor:
        better = relative < 0.95 * self._best
        self._best = torch.where(better, relative, self._best)
        self._best_at = torch.where(better, step, self._best_at)
        return (relative <= self._floor) & (step - self._best_at >= _PATIENCE)

    def _finish(
        self, finished: Tensor, revert: Tensor | None, step: int, rows: Tensor, relative: Tensor, status: Tensor
    ) -> Release:
        done = rows[finished]
        self.steps[done] = step
        self.residual[done] = relative[finished]
        self.status[done] = status[finished].to(torch.int8)
        return Release(finished, revert)

    def keep(self, index: Tensor) -> None:
        """See `Monitor.keep`."""
        self._limits, self._best, self._best_at = self._limits[index], self._best[index], self._best_at[index]
        self._bare = None if self._bare is None else self._bare[index]
        self._tolerance.keep(index)
        self._cycles.keep(index)
