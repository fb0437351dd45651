"""When to extrapolate: an accelerated method should never lose badly to plain iteration.

A row takes plain steps until something speaks for a TRIAL; then the plain iterate is set aside as its anchor, and
proposals are taken for as long as they pay. Extrapolation pays on almost every map. What it makes worse are maps that
end of themselves after some steps, like a shift: their residual hardly falls until all of it is gone, and whatever
leaves the plain sequence begins that sequence anew. Such a residual falls faster and faster, or does not fall at all,
or points elsewhere at every step. So a trial begins where the residual is at its lowest so far, and

* the fall slows down (as it does on every normal map, symmetric ones among them), and residuals point along one another
  or have been falling at a steady rate from the first; or
* it is steady and quick; or
* the map cannot end of itself any more, after as many steps as it has unknowns, and has lost a decimal place; or
* the memory holds as many differences as there are unknowns, which solves even a shift in its own time.

A trial ends where the residual has grown, or in the long run did not fall; the row goes back to its anchor, and the
plain sequence is resumed. Then it waits, twice as long as it lost, and longer each time. The anchor moves up with every
decimal place that the residual has fallen, so that what can be lost is what the latest place took. A slow stretch in
between ends no trial: how fast plain steps were before it says little about how fast they would be now, since their
quick modes are gone by then. Where the residual is nothing but rounding, steps are plain: nothing is left to learn.

Decisions are made at fixed steps, row by row: they do not depend on who else is in the batch. They are made on the
host, in NumPy: a few dozen operations on a handful of numbers a row cost less there than anywhere else.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PERIOD = 3
"""Decisions are made every so many steps."""
FIRST = 2
"""The step of the first decision: the earliest at which there is a difference to extrapolate from."""

_ALIGNED = 0.7  # cosine of successive residuals from which they point along one another
# Quotients of successive residuals that do not shrink, but for rounding. The residual of a smooth shift of n entries,
# the last example that must not pass, falls short by 1 / (2 n^2).
_SLOWING = 1 - 1e-5
_STEADY = 0.9  # a step, on average from the first; a shift's residual falls as sqrt(1 - steps / n), slower than that
_QUICK = 0.7  # at each of the latest steps
_BLOWN_UP = 1.2  # growth of the residual in a period that ends a trial; what is smaller comes and goes
# A trial has to lower the residual by so much a step, from its beginning on. Where the slowest mode decays at a rate of
# 0.9999, the best extrapolation gains 0.98 a step.
_LEAST = 0.99
# A map without a fixed point, like z + 1, has a residual that stays, and what it is extrapolated to is infinitely far.
_FAR, _NO_NEARER = 2, 0.99  # growth of the value in a period in which the residual hardly falls
_CLEAR = 4  # change of the residual in units of rounding from which it says something
_DECISIVE = 0.1  # fall of the residual after which the anchor moves up

Mask = NDArray[np.bool_]
Numbers = NDArray[np.floating]


class Verdict(NamedTuple):
    """What changes for some rows, `(rows,)` bool each."""

    begin: Mask
    """A trial begins: the present value becomes the anchor, the history starts anew."""
    advance: Mask
    """The present value becomes the anchor."""
    restore: Mask
    """Go back to the anchor."""


class Safeguard:
    """The modes of all rows that are in the batch, as vectors."""

    _VECTORS = (
        "trial",
        "_age",
        "_first",
        "_lowest",
        "_level",
        "_size",
        "_start",
        "_anchor_level",
        "_tried",
        "_spent",
        "_pause",
        "_failures",
    )

    def __init__(self, rows: int, unknowns: int, solvable: int, noise: float) -> None:
        """All rows take plain steps.

        Args:
            rows: number of them.
            unknowns: of each row.
            solvable: unknowns that the method's memory is enough for, on a linear map.
            noise: share of the value below which a residual is nothing but rounding.
        """
        self._unknowns, self._solvable, self._noise = unknowns, solvable, noise
        self.trial: Mask = np.zeros(rows, bool)
        """Rows whose next state is a proposal, and which may go back to their anchor."""
        self._age = np.zeros(rows, np.int64)  # steps taken
        self._first = np.zeros(rows)  # residual norm of the first step
        self._lowest = np.full(rows, np.inf)  # residual norm so far
        self._level = np.zeros(rows)  # residual norm at the last decision
        self._size = np.zeros(rows)  # norm of the value at the last decision
        self._start = np.zeros(rows)  # residual norm where the trial began
        self._anchor_level = np.zeros(rows)
        self._tried = np.zeros(rows)  # steps since the trial began
        self._spent = np.zeros(rows)  # steps since the anchor
        self._pause = np.zeros(rows)  # steps before another trial
        self._failures = np.zeros(rows)  # trials that failed in a row
        self._refresh()

    def _refresh(self) -> None:
        self.trials = int(self.trial.sum())
        """Number of rows in a trial."""

    def review(self, norms: Numbers, products: Numbers, sizes: Numbers) -> Verdict | None:
        """Decide at the end of a period; None where nothing changes for any row.

        Args:
            norms: `(3, rows)`, of the residual f(z) - z at the last three steps; not finite where a proposal failed,
                NaN in front where a row had not begun.
            products: `(2, rows)`, of each of the last two residuals with the one before; empty where all rows are in a
                trial.
            sizes: `(rows,)`, norms of the latest value.
        """
        with np.errstate(all="ignore"):
            return self._review(norms, products, sizes)

    def _review(self, norms: Numbers, products: Numbers, sizes: Numbers) -> Verdict | None:
        before, former, now = norms
        self._age += PERIOD
        new = self._age == PERIOD
        if new.any():
            self._first = np.where(new, former, self._first)
            self._age[new] = FIRST
        # The lowest of the steps at which a trial could have begun.
        lowest = now <= self._lowest
        self._lowest = np.fmin(self._lowest, now)
        if self.trials:
            self._tried += PERIOD
            self._spent += PERIOD
        noise = self._noise * sizes
        begin = np.zeros_like(self.trial)
        if self.trials < len(now):
            begin = lowest & (now <= former) & (now > _CLEAR * noise) & (self._pause <= 0) & ~self.trial
            if begin.any():
                changing = (now < former - _CLEAR * noise) | (products[-1] < 0)
                begin &= changing & self._promising(before, former, now, products)
            self._pause -= PERIOD
        if not self.trials and not begin.any():
            return None
        over = self.trial & (now <= noise)
        shrinking = (now <= _BLOWN_UP * self._level) & (now <= self._start * _LEAST**self._tried)
        running_away = (sizes > _FAR * self._size) & ~(now <= _NO_NEARER * self._level)
        going = self.trial & shrinking & ~running_away & ~over
        failed = self.trial & ~going & ~over
        decisive = going & (now <= _DECISIVE * self._anchor_level)
        moved = begin | decisive
        self._level, self._size = now, sizes
        self._failures = np.where(decisive, 0, np.minimum(self._failures + failed, 30))
        self._pause = np.where(failed, self._spent * 2.0**self._failures, self._pause)
        self._start, self._tried = np.where(begin, now, self._start), np.where(begin, 0, self._tried)
        self._anchor_level, self._spent = np.where(moved, now, self._anchor_level), np.where(moved, 0, self._spent)
        changed = begin | failed | over
        if not (changed | decisive).any():
            return None
        self.trial = self.trial ^ changed
        self._refresh()
        return Verdict(begin, decisive, failed)

    def _promising(self, before: Numbers, former: Numbers, now: Numbers, products: Numbers) -> Mask:
        """Rows on which extrapolation is worth a trial, if their latest steps were plain."""
        aligned = np.zeros_like(self.trial)
        if len(products) == PERIOD - 1:
            aligned = (np.abs(products[0]) >= _ALIGNED * before * former) & (
                np.abs(products[1]) >= _ALIGNED * former * now
            )
        slowing = now * before >= _SLOWING * former**2
        steady = now <= self._first * _STEADY ** (self._age - 1)
        quick = (now <= _QUICK * former) & ~(now > _QUICK**2 * before)
        # Chaos has its lowest residuals as well, but none that are far below the first.
        endless = (self._age > self._unknowns) & (now <= _DECISIVE * self._first)
        solvable = self._unknowns <= self._solvable
        return (slowing & (aligned | steady)) | (steady & quick) | endless | solvable

    def keep(self, index: NDArray[np.int64]) -> None:
        """Drop the rows that left."""
        for name in self._VECTORS:
            setattr(self, name, getattr(self, name)[index])
        self._refresh()

    def join(self, rows: int) -> None:
        """Rows come in behind the others, that have taken no step."""
        fresh = Safeguard(rows, self._unknowns, self._solvable, self._noise)
        for name in self._VECTORS:
            setattr(self, name, np.concatenate([getattr(self, name), getattr(fresh, name)]))
        self._refresh()
