"""When to extrapolate: an accelerated method should never lose badly to plain iteration.

Every row is in one of three modes. PLAIN rows take plain steps. When two residuals in a row point along the one before
(their cosine is large: the error is made of slow modes, which is what extrapolation removes) and the residual is at its
lowest so far, a row begins a TRIAL: the plain iterate is set aside as its anchor, and proposals are taken. Every few
steps a trial has to have lowered the residual, by a fixed rate at least or by what the plain steps before it did. Where
it blew up, the row goes back to its anchor and the plain sequence is resumed; where it was only slow, the row takes
some plain steps from where it is (PROBATION), and goes back to its anchor unless these shrink the residual as well.
After a failure a row waits, twice as long as it lost, and longer each time. The anchor moves up once the residual is a
thousandth of the anchor's. A map with nothing to gain, like a shift, has residuals that do not point along one another,
and is left alone.

Decisions are made at fixed steps, row by row: they do not depend on who else is in the batch. They are made on the
host, in NumPy: a few dozen operations on a handful of numbers a row cost less there than anywhere else.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PERIOD = 3
"""Decisions are made every so many steps."""

_PLAIN, _TRIAL, _PROBATION = 0, 1, 2
_ALIGNED = 0.7  # cosine of successive residuals from which a trial begins
_RATE = 0.9  # a trial may shrink the residual by this a step, however fast the plain steps before were
_BLOWN_UP = 1.2  # growth of the residual in a period that ends a trial
_DECISIVE = 1e-3  # fall of the residual after which the anchor moves up

Mask = NDArray[np.bool_]


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

    def __init__(self, rows: int) -> None:
        self._mode = np.full(rows, _PLAIN, np.int8)
        self._level = np.zeros(rows)  # residual norm at the last decision
        self._anchor_level = np.zeros(rows)
        self._quotient = np.zeros(rows)  # of the residual in the last plain step before a trial, 1 at most
        self._lowest = np.full(rows, np.inf)  # residual norm of plain steps so far
        self._pause = np.zeros(rows)  # steps before another trial
        self._spent = np.zeros(rows)  # steps since the anchor
        self._failures = np.zeros(rows)  # trials that failed in a row
        self._refresh()

    def _refresh(self) -> None:
        self.trial: Mask = self._mode == _TRIAL
        self.trials = int(self.trial.sum())
        """Number of rows in a trial."""
        self.away: Mask = self._mode != _PLAIN
        """Rows that may go back to their anchor."""
        self.settled = not self.away.any()

    def review(self, norms: NDArray[np.floating], products: NDArray[np.floating]) -> Verdict | None:
        """Decide at the end of a period; None where nothing changes for any row.

        Args:
            norms: `(3, rows)`, of the residual f(z) - z at the last three steps; not finite where a proposal failed.
            products: `(2, rows)`, of each of the last two residuals with the one before; empty where no row is plain.
        """
        with np.errstate(all="ignore"):
            return self._review(norms, products)

    def _review(self, norms: NDArray[np.floating], products: NDArray[np.floating]) -> Verdict | None:
        now = norms[-1]
        begin = np.zeros(len(now), bool)
        if len(products):
            aligned = (np.abs(products) >= _ALIGNED * norms[1:] * norms[:-1]).all(0)
            shrinking = (norms[1:] <= norms[:-1]).all(0) & (now <= self._lowest)
            begin = aligned & shrinking & (self._pause <= 0) & (self._mode == _PLAIN)
            self._lowest = np.where(self._mode == _PLAIN, np.fmin(self._lowest, norms.min(0)), self._lowest)
        if self.settled and not begin.any():
            self._pause -= PERIOD
            return None
        fell_enough = now <= self._level * np.maximum(self._quotient, _RATE) ** PERIOD
        decisive = now <= _DECISIVE * self._anchor_level
        if self.trials == len(now) and (fell_enough & ~decisive).all():
            self._level = now
            self._spent += PERIOD
            return None

        trial, probation = self.trial, self._mode == _PROBATION
        plain = ~(trial | probation)
        going = trial & fell_enough
        decisive &= going
        # Probation is passed by plain steps that shrink the residual as those before the trial did.
        shrank = (now <= 1.1 * self._level * self._quotient**PERIOD) & (now <= self._anchor_level)
        passed = probation & shrank
        failed = (trial & ~(now <= _BLOWN_UP * self._level)) | (probation & ~shrank)
        slow = trial & ~fell_enough & ~failed

        spent = self._spent + np.where(plain, 0, PERIOD)
        pause = self._pause - np.where(plain, PERIOD, 0)
        self._pause = np.where(failed, spent * 2.0 ** (self._failures + 1), np.where(passed, PERIOD, pause))
        self._failures = np.where(decisive, 0, np.minimum(self._failures + failed, 30))
        self._spent = np.where(begin | decisive, 0, spent)
        self._level = np.where(begin | going | slow, now, self._level)
        self._anchor_level = np.where(begin | decisive, now, self._anchor_level)
        self._quotient = np.where(begin, np.minimum(now / norms[-2], 1), self._quotient)
        self._mode[begin], self._mode[slow], self._mode[failed | passed] = _TRIAL, _PROBATION, _PLAIN
        self._refresh()
        return Verdict(begin, decisive, failed)

    def keep(self, index: NDArray[np.int64]) -> None:
        """Drop the rows that left."""
        self._mode, self._level, self._anchor_level = self._mode[index], self._level[index], self._anchor_level[index]
        self._quotient, self._pause, self._lowest = self._quotient[index], self._pause[index], self._lowest[index]
        self._spent, self._failures = self._spent[index], self._failures[index]
        self._refresh()

    def join(self, rows: int) -> None:
        """Rows come in behind the others, at the beginning of a period."""
        fresh = Safeguard(rows)
        for name in ("_mode", "_level", "_anchor_level", "_quotient", "_lowest", "_pause", "_spent", "_failures"):
            setattr(self, name, np.concatenate([getattr(self, name), getattr(fresh, name)]))
        self._refresh()
