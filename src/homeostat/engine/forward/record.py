"""What some consecutive steps leave behind for the stopping test: states, and how far each step went."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.norms import row_lengths, row_rms

Mask = NDArray[np.bool_]
Table = NDArray[np.float64]


def to_host(tensor: Tensor) -> Table:
    """The tensor's values as a NumPy array, waiting for its device."""
    try:
        return tensor.detach().cpu().numpy().astype(np.float64)
    except RuntimeError:  # a wrapper of torch.func has no memory of its own
        return np.asarray(tensor.tolist(), np.float64)


@dataclass
class Record:
    """Some consecutive steps of all rows that are in the batch."""

    first: int
    """Steps taken before these."""
    origin: list[Tensor]
    """All leaves of the last f(z) before these steps, or of the start: where a row goes back to that diverges."""
    measured: Sequence[int]
    """Positions of the leaves that residuals are taken over."""
    before: list[list[Tensor]] = field(default_factory=list)
    """Step by step, the leaves of z."""
    after: list[list[Tensor]] = field(default_factory=list)
    """Step by step, the leaves of f(z)."""
    lengths: list[Tensor] = field(default_factory=list)
    """Euclidean norms of f(z) - z, `(rows,)`: one for each step and measured leaf, step by step."""
    proposed: list[Mask | None] = field(default_factory=list)
    """Step by step, rows in a trial that is taken back if f(z) is not finite; None where there are none."""
    last_lengths: list[Tensor] | None = field(default=None, kw_only=True)
    """Norms of the measured leaves of the last f(z), where the method has them."""

    @property
    def steps(self) -> int:
        return len(self.after)

    def add(
        self,
        before: list[Tensor],
        after: list[Tensor],
        lengths: list[Tensor] | None = None,
        proposed: Mask | None = None,
    ) -> None:
        """One more step; `lengths` are those of the measured f(z) - z, where the method has them."""
        self.before.append(before)
        self.after.append(after)
        self.proposed.append(proposed)
        if lengths is not None:
            self.lengths += lengths
        elif torch.is_grad_enabled():
            with torch.no_grad():
                self.lengths += [row_lengths(after[i] - before[i]) for i in self.measured]
        else:  # taken at once, while the states are still in the cache
            self.lengths += [row_lengths(after[i] - before[i]) for i in self.measured]

    def tail(self) -> "Record":
        """The last step alone."""
        origin = self.after[-2] if self.steps > 1 else self.origin
        last = slice(-1, None)
        lengths = self.lengths[-len(self.measured) :]
        first = self.first + self.steps - 1
        return Record(first, origin, self.measured, self.before[last], self.after[last], lengths, self.proposed[last])

    def changes(self) -> tuple[list[Table], list[Table]]:
        """RMS of f(z) - z `(steps, rows)`, and of the last f(z) `(rows,)`, for each measured leaf.

        Wrong where a sum of squares overflows or vanishes.
        """
        last = self.after[-1]
        # One transfer for everything that the host wants to know.
        ends = self.last_lengths or [row_lengths(last[i]) for i in self.measured]
        table = to_host(torch.stack([*self.lengths, *ends]))
        leaves = len(self.measured)
        roots = self._roots()
        changes = [table[k : len(self.lengths) : leaves] * root for k, root in enumerate(roots)]
        return changes, [row * root for row, root in zip(table[-leaves:], roots, strict=True)]

    def sizes(self) -> list[Table]:
        """RMS of f(z), `(steps, rows)` for each measured leaf; wrong as `changes` is."""
        table = to_host(torch.stack([row_lengths(x[i]) for x in self.after for i in self.measured]))
        return [table[k :: len(self.measured)] * root for k, root in enumerate(self._roots())]

    def changes_since(self, kept: list[Tensor], exact: bool) -> list[Table]:
        """RMS of f(z) less a former state, `(steps, rows)` for each measured leaf; as `changes`, unless `exact`."""
        if exact:
            return [to_host(torch.stack([row_rms(x[i] - kept[i]) for x in self.after])) for i in self.measured]
        lags = (torch.stack([x[i] for x in self.after]).sub_(kept[i]) for i in self.measured)
        lengths = [row_lengths(lag.flatten(0, 1)).view(self.steps, -1) for lag in lags]
        return [to_host(x) * root for x, root in zip(lengths, self._roots(), strict=True)]

    def exact_norms(self) -> tuple[list[Table], list[Table]]:
        """RMS of f(z) - z and of f(z), `(steps, rows)` for each measured leaf, right for every finite value."""
        changes, sizes = [], []
        for i in self.measured:
            pairs = list(zip(self.before, self.after, strict=True))
            changes.append(to_host(torch.stack([row_rms(new[i] - old[i]) for old, new in pairs])))
            sizes.append(to_host(torch.stack([row_rms(new[i]) for _, new in pairs])))
        return changes, sizes

    def proposals(self) -> Mask | None:
        """`(steps, rows)` bool; None where there are none."""
        if all(x is None for x in self.proposed):
            return None
        none = np.zeros(len(self.after[0][0]), bool)
        return np.stack([none if x is None else x for x in self.proposed])

    def _roots(self) -> list[float]:
        return [max(self.after[0][i][:1].numel(), 1) ** -0.5 for i in self.measured]
