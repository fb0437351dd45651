"""When to extrapolate: an accelerated method should never lose badly to plain iteration.

Every row is in one of three modes. PLAIN rows take plain steps. When two residuals in a row point along the one before
(their cosine is large: the error is made of slow modes, which is what extrapolation removes) and do not grow, a row
begins a TRIAL: the plain iterate is set aside as its anchor, and proposals are taken. Every few steps a trial has to
have lowered the residual, by a fixed rate at least or by what the plain steps before it did. Where it blew up, the row
goes back to its anchor and the plain sequence is resumed; where it was only slow, the row takes some plain steps from
where it is (PROBATION), and goes back to its anchor unless these shrink the residual as well. After a failure a row
waits, twice as long as it lost, and longer each time. The anchor moves up once the residual is a thousandth of the
anchor's. A map with nothing to gain, like a shift, has residuals that do not point along one another, and is left alone.

Decisions are made at fixed steps, row by row: they do not depend on who else is in the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PERIOD = 3
"""Decisions are made every so many steps."""

_PLAIN, _TRIAL, _PROBATION = 0, 1, 2
_ALIGNED = 0.7  # cosine of successive residuals from which a trial begins
_RATE = 0.9  # a trial may shrink the residual by this a step, however fast the plain steps before were
_BLOWN_UP = 1.2  # growth of the residual in a period that ends a trial
_DECISIVE = 1e-3  # fall of the residual after which the anchor moves up


class Verdict(NamedTuple):
    """What changes for some rows, `(rows,)` bool each."""

    begin: Tensor
    """A trial begins: the present f(z) becomes the anchor, the history starts anew."""
    advance: Tensor
    """The present f(z) becomes the anchor."""
    restore: Tensor
    """Go back to the anchor."""


class Safeguard:
    """The modes of all rows that are in the batch, as vectors."""

    def __init__(self, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        zeros = torch.zeros(rows, dtype=dtype, device=device)
        self._mode = torch.full((rows,), _PLAIN, dtype=torch.int64, device=device)
        self._level, self._anchor_level = zeros, zeros  # residual norms: at the last decision, at the anchor
        self._quotient = zeros  # of the residual in the last plain step before a trial, 1 at most
        self._pause = torch.zeros_like(self._mode)  # steps before another trial
        self._spent, self._failures = self._pause, self._pause  # steps since the anchor; trials that failed in a row
        self._refresh()

    def _refresh(self) -> None:
        self.trial = self._mode == _TRIAL
        self.trials = int(self.trial.sum())
        """Number of rows in a trial."""
        self.gate = self.trial.to(self._level.dtype)[:, None]
        """`(rows, 1)`: 1 for rows in a trial, else 0."""

    def review(self, norms: list[Tensor], cosines: list[Tensor]) -> Verdict | None:
        """Decide at the end of a period; None where nothing changes for any row.

        Args:
            norms: of f(z) - z at the last three steps, `(rows,)` each; not finite where a proposal went astray.
            cosines: between the residuals of the last step and the one before, and of that and the one before it; empty
                where no row is plain.
        """
        now = norms[-1]
        fell_enough = now <= self._level * self._quotient.clamp(min=_RATE) ** PERIOD
        if self.trials == len(now) and bool((fell_enough & (now > _DECISIVE * self._anchor_level)).all()):
            self._level, self._spent = now, self._spent + PERIOD
            return None

        trial, probation = self.trial, self._mode == _PROBATION
        plain = ~(trial | probation)
        spent = torch.where(plain, self._spent, self._spent + PERIOD)
        blown_up = ~(now <= _BLOWN_UP * self._level)
        going = trial & fell_enough
        decisive = going & (now <= _DECISIVE * self._anchor_level)
        # Probation is passed by plain steps that shrink the residual as those before the trial did.
        passed = probation & (now <= 1.1 * self._level * self._quotient**PERIOD) & (now <= self._anchor_level)
        failed = (trial & blown_up) | (probation & ~passed)
        slow = trial & ~fell_enough & ~failed
        begin = torch.zeros_like(trial)
        if cosines:
            aligned = torch.minimum(cosines[0].abs(), cosines[1].abs()) >= _ALIGNED
            begin = plain & (self._pause <= 0) & aligned & (now <= norms[-2])

        lost = spent * 2 ** (self._failures.clamp(max=20) + 1)
        pause = torch.where(plain, self._pause - PERIOD, self._pause)
        self._pause = torch.where(failed, lost, torch.where(passed, PERIOD, pause))
        self._failures = torch.where(failed, self._failures + 1, torch.where(decisive, 0, self._failures))
        self._spent = torch.where(begin | decisive, 0, spent)
        self._level = torch.where(begin | going | slow, now, self._level)
        self._anchor_level = torch.where(begin | decisive, now, self._anchor_level)
        self._quotient = torch.where(begin, (now / norms[-2]).clamp(max=1.0), self._quotient)
        self._mode = torch.where(begin, _TRIAL, self._mode)
        self._mode = torch.where(slow, _PROBATION, torch.where(failed | passed, _PLAIN, self._mode))
        self._refresh()
        if bool((begin | decisive | failed).any()):
            return Verdict(begin, decisive, failed)
        return None

    def keep(self, index: Tensor) -> None:
        """Drop the rows that left."""
        self._mode, self._pause, self._spent, self._failures = (
            x[index] for x in (self._mode, self._pause, self._spent, self._failures)
        )
        self._level, self._anchor_level, self._quotient = (
            x[index] for x in (self._level, self._anchor_level, self._quotient)
        )
        self._refresh()
