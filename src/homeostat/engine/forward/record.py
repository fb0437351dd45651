"""What some consecutive steps leave behind for the stopping test: states, and how far each step went."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.norms import row_norms, row_rms


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
    proposed: list[NDArray[np.bool_] | None] = field(default_factory=list)
    """Step by step, rows whose z was a proposal that is taken back if f(z) is not finite; None where there are none."""
    _changes: list[list[Tensor]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.after)

    def add(
        self,
        before: list[Tensor],
        after: list[Tensor],
        changes: list[Tensor] | None = None,
        proposed: NDArray[np.bool_] | None = None,
    ) -> None:
        """One more step; `changes` are the norms of the measured f(z) - z, where the method has them."""
        self.before.append(before)
        self.after.append(after)
        self.proposed.append(proposed)
        if changes is None:
            with torch.no_grad():  # taken at once, while the states are still in the cache
                changes = [row_norms(after[i] - before[i]) for i in self.measured]
        self._changes.append(changes)

    def tail(self) -> "Record":
        """The last step alone."""
        origin = self.after[-2] if self.steps > 1 else self.origin
        last = slice(-1, None)
        return Record(
            self.first + self.steps - 1,
            origin,
            self.measured,
            self.before[last],
            self.after[last],
            self.proposed[last],
            self._changes[last],
        )

    def proposals(self) -> Tensor | None:
        """`(steps, rows)` bool, on the device of the state; None where there are none."""
        if all(x is None for x in self.proposed):
            return None
        none = np.zeros(len(self.after[0][0]), bool)
        return torch.from_numpy(np.stack([none if x is None else x for x in self.proposed])).to(self.after[0][0].device)

    def changes(self) -> list[Tensor]:
        """RMS of f(z) - z, `(steps, rows)` for each measured leaf, by `row_norms`."""
        return [torch.stack(leaf) for leaf in zip(*self._changes, strict=True)]

    def last_sizes(self) -> list[Tensor]:
        """RMS of the last f(z), `(rows,)` for each measured leaf, by `row_norms`."""
        return [row_norms(self.after[-1][i]) for i in self.measured]

    def changes_since(self, kept: list[Tensor], exact: bool) -> list[Tensor]:
        """RMS of f(z) less a former state, `(steps, rows)` for each measured leaf; by `row_norms`, unless `exact`."""
        norm = row_rms if exact else row_norms
        return [torch.stack([norm(x[i] - kept[i]) for x in self.after]) for i in self.measured]

    def exact_norms(self) -> tuple[list[Tensor], list[Tensor]]:
        """RMS of f(z) - z and of f(z), `(steps, rows)` for each measured leaf, right for every finite value."""
        changes, sizes = [], []
        for i in self.measured:
            pairs = list(zip(self.before, self.after, strict=True))
            changes.append(torch.stack([row_rms(new[i] - old[i]) for old, new in pairs]))
            sizes.append(torch.stack([row_rms(new[i]) for _, new in pairs]))
        return changes, sizes
