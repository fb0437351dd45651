"""How many steps to take before the stopping test looks again.

The test finds the first step at which a row was finished, whenever it looks. Looking late costs evaluations that nobody
needs and memory for the states in between; looking often costs time. So: few steps where a row is about to finish or a
state is large, many where every row is far from its tolerance.
"""

import math

from torch import Tensor

from homeostat.engine.forward.stopping import CHECKPOINT

# States in between are kept where a block of them is no larger than this.
_BLOCK_BYTES = 1 << 19
# A state this small costs less to evaluate than to look at: the test looks at every fourth step at most, and a finished
# row may be evaluated up to three times more.
_SMALL_BYTES, _FEWEST = 1 << 16, 4
# Share of the steps that are left, by the present rate, before the test looks again.
_CAUTION = 0.5


class Pace:
    """Chooses block lengths from the residuals so far."""

    def __init__(self, state: list[Tensor], sync_every: int | None, block: int = 1) -> None:
        """`block`: steps that the method best takes at once."""
        size = max(sum(leaf.numel() * leaf.element_size() for leaf in state), 1)
        self._most = max(1, min(CHECKPOINT, _BLOCK_BYTES // size))
        self._fewest = max(block, _FEWEST if size <= _SMALL_BYTES else 1)
        self._fixed, self._block = sync_every, block
        self._next = 1 if block > 1 else self._fewest
        self._former: float | None = None

    def next(self, room: int) -> int:
        """Steps of the next block, `room` at most."""
        return min(room, self._fixed or self._next)

    def observe(self, closest: list[float]) -> None:
        """Learn from a block: the lowest residual of any row at each of its steps, in units of the tolerance."""
        if not closest:
            return
        first, last = self._former or closest[0], closest[-1]
        steps = len(closest) if self._former is not None else len(closest) - 1
        self._former = last
        left = math.inf
        if steps and 0 < last < first:
            left = math.log(max(last, 1.0)) / (math.log(first / last) / steps)
        elif not last > 0:
            left = 1
        count = max(self._fewest, int(min(2 * self._next, self._most, _CAUTION * left)))
        self._next = count - count % self._block
