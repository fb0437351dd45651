"""What an example ends in: a fixed point, a cycle, a drift, a divergence, or nothing yet.

Decided over the last steps of a run, from one kept state and a few numbers a row. With d the residual of a step:

* divergence: not finite, or out of bounds; or over the window it grew more than tenfold, and still grows.
* drift: the path of the window is longer than rounding makes it and straight (its ends are at least 0.9 of its length
  apart), and at the rate at which its steps shrink it would still move by more than a tenth of its own size.
* fixed point: d <= rtol at the last step.
* cycle of period p: the state repeats after p steps within rtol, and that is at most a tenth of d.
* unsettled: anything else.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from homeostat.engine.forward.cycles import LONGEST_PERIOD
from homeostat.engine.norms import row_rms
from homeostat.probes.results import LimitClass

_STRAIGHT = 0.9
_STILL_TO_GO = 0.1
_REPEAT = 0.1
_OUTGROWN = 10


class LimitTest:
    """Watches the last `min(16, steps // 2)` steps of a run that takes `steps`."""

    def __init__(self, rows: int, steps: int, device: torch.device) -> None:
        self._window = min(LONGEST_PERIOD, steps // 2)
        self._opens = steps - self._window
        self._kept: list[Tensor] = []
        self._rounding = 0.0

        def empty(value: float) -> Tensor:
            return torch.full((rows,), value, dtype=torch.float64, device=device)

        # All relative to the size of the state, over its leaf that moves most.
        self._first, self._last, self._length, self._apart = empty(0), empty(0), empty(0), empty(0)
        self._repeat = empty(float("inf"))
        # Size of its largest leaf when the window opened and now, and by what factor the last step changed that.
        self._opened, self._size, self._growth = empty(0), empty(0), empty(1)
        self._period = torch.zeros(rows, dtype=torch.int64, device=device)

    def observe(
        self,
        step: int,
        rows: Tensor,
        after: Sequence[Tensor],
        changes: Sequence[Tensor],
        sizes: Sequence[Tensor],
        relative: Tensor,
    ) -> None:
        """Take in one step; everything before the window is ignored."""
        if self._window < 2 or step < self._opens:
            return
        size = torch.stack([s.double() for s in sizes]).amax(0)
        if step == self._opens:
            self._opened[rows], self._size[rows] = size, size
            self._kept = [leaf.clone() for leaf in after]
            self._rounding = self._window * max(torch.finfo(leaf.dtype).eps for leaf in after)
            return
        lag = step - self._opens
        relative = relative.double()
        self._growth[rows], self._size[rows] = size / self._size[rows], size
        if lag == 1:
            self._first[rows] = relative
        self._last[rows] = relative
        self._length[rows] += relative
        apart = None
        for new, old, now in zip(after, self._kept, sizes, strict=True):
            change = row_rms(new - old)
            ratio = torch.where(change == 0, torch.zeros_like(change), change / now).double()
            apart = ratio if apart is None else torch.maximum(apart, ratio)
        assert apart is not None, "a state has at least one measured leaf"
        self._apart[rows] = apart
        if lag >= 2:  # the shortest period wins, so a later one must be clearly better
            better = apart < 0.5 * self._repeat[rows]
            self._repeat[rows] = torch.where(better, apart, self._repeat[rows])
            self._period[rows] = torch.where(better, lag, self._period[rows])

    @property
    def repeat(self) -> Tensor:
        """`(rows,)` float64: how far, relative to its size, each row is from where it was `period` steps before, for
        the period from 2 to 16 that suits it best; infinite for rows that left before the window.
        """
        return self._repeat

    def keep(self, index: Tensor) -> None:
        """Drop the rows that left."""
        self._kept = [leaf[index] for leaf in self._kept]

    def classes(self, failed: Tensor, residual: Tensor, rtol: float) -> list[tuple[LimitClass, int | None]]:
        """Class and period of every row. Rows that left before the window rest at a fixed point, or failed."""
        shrink = (self._last / self._first.clamp(min=1e-300)).clamp(max=1 - 1e-9) ** (1 / max(1, self._window - 1))
        to_go = self._last * shrink / (1 - shrink)
        drifts = (self._apart >= _STRAIGHT * self._length) & (to_go > _STILL_TO_GO) & (self._length > self._rounding)
        cycles = (self._repeat <= rtol) & (self._repeat <= _REPEAT * residual)
        outgrown = self._size / self._opened  # 0/0 is NaN, and grows no more than nothing
        outgrows = (outgrown > _OUTGROWN) & (self._growth > outgrown ** (0.5 / max(1, self._window)))
        found: list[tuple[LimitClass, int | None]] = []
        columns = (failed | outgrows, drifts, residual <= rtol, cycles, self._period)
        for bad, drift, fixed, cycle, period in zip(*(x.tolist() for x in columns), strict=True):
            if bad:
                found.append(("divergence", None))
            elif drift:
                found.append(("drift", None))
            elif fixed:
                found.append(("fixed point", None))
            elif cycle:
                found.append(("cycle", int(period)))
            else:
                found.append(("unsettled", None))
        return found
