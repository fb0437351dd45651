"""What some consecutive steps leave behind for the stopping test: states, and the norms of each step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
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
    """Step by step, the measured leaves of z."""
    after: list[list[Tensor]] = field(default_factory=list)
    """Step by step, all leaves of f(z)."""
    extrapolated: Tensor | None = None
    """`(steps, rows)` bool: z was a proposal of an accelerated method, which takes it back if f(z) is not finite."""
    _changes: list[Tensor] | None = None
    _sizes: list[Tensor] | None = None

    @property
    def steps(self) -> int:
        return len(self.after)

    def add(self, before: Sequence[Tensor], after: list[Tensor]) -> None:
        """One more step: all leaves of z and of f(z)."""
        self.before.append([before[i].detach() for i in self.measured])
        self.after.append(after)

    def norms(self) -> tuple[list[Tensor], list[Tensor]]:
        """RMS of f(z) - z and of f(z), `(steps, rows)` for each measured leaf; unscaled, see `exact_norms`."""
        if self._changes is None or self._sizes is None:
            pairs = [self._leaf_norms(i) for i in range(len(self.measured))]
            self._changes, self._sizes = [c for c, _ in pairs], [s for _, s in pairs]
        return self._changes, self._sizes

    def set_norms(self, changes: list[Tensor], sizes: list[Tensor]) -> None:
        """Norms that the method had to take anyway."""
        self._changes, self._sizes = changes, sizes

    def _leaf_norms(self, i: int) -> tuple[Tensor, Tensor]:
        before = [x[i] for x in self.before]
        after = [x[self.measured[i]].detach() for x in self.after]
        if self.steps == 1:
            return row_norms(after[0] - before[0])[None], row_norms(after[0])[None]
        if all(new is old for new, old in zip(after, before[1:], strict=False)):  # a plain sequence of states
            states = torch.stack([before[0], *after])
            new, change = states[1:], states[1:] - states[:-1]
        else:
            new = torch.stack(after)
            change = new - torch.stack(before)
        rows = new.shape[:2]
        return row_norms(change.flatten(0, 1)).view(rows), row_norms(new.flatten(0, 1)).view(rows)

    def exact_norms(self) -> tuple[list[Tensor], list[Tensor]]:
        """The same, right for every finite value: also where a sum of squares overflows or vanishes."""
        changes, sizes = [], []
        for i, position in enumerate(self.measured):
            after = [x[position].detach() for x in self.after]
            changes.append(torch.stack([row_rms(new - old[i]) for new, old in zip(after, self.before, strict=True)]))
            sizes.append(torch.stack([row_rms(new) for new in after]))
        return changes, sizes

    def changes_since(self, kept: Sequence[Tensor]) -> list[Tensor]:
        """RMS of f(z) less a former state, `(steps, rows)` for each measured leaf."""
        return [
            torch.stack([row_rms(x[i].detach() - old) for x in self.after])
            for i, old in zip(self.measured, kept, strict=True)
        ]
