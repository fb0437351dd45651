"""States to start from, by name: `own`, `zeros`, `noise 0.5` (its standard deviation), `swapped`, `all pairs`.

Only the floating leaves of a state are ever replaced. What is carried along (tokens, flags, counters, what is marked
`Carry`) is always as the model's own start has it, so that a counter begins where it should.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.engine.nest import Layout, flatten
from homeostat.errors import InputError
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Noise, Start, Zeros, stream_seed
from homeostat.probes.repeatable import check_finite

DEFAULT_STARTS = ("own", "zeros", "noise 0.5", "noise 1", "noise 2", "swapped")

_KNOWN = 'such as "own", "zeros", "noise 0.5", "swapped", "all pairs"'


def check_names(starts: Iterable[str] | None) -> tuple[str, ...]:
    """The names of starts, each in its usual form, in the order given.

    Raises:
        InputError: a name that says nothing, the same start twice, or no start.

    Example:
        >>> check_names(["zeros", "noise 1.0"])
        ('zeros', 'noise 1')
        >>> check_names(["nois 1"])
        Traceback (most recent call last):
        homeostat.errors.InputError: there is no start 'nois 1'; there are names such as "own", "zeros", "noise 0.5", \
"swapped", "all pairs"
    """
    if starts is None:
        return DEFAULT_STARTS
    if isinstance(starts, str):
        starts = [starts]
    names = []
    for name in starts:
        if name in ("own", "zeros", "swapped", "all pairs"):
            names.append(name)
        elif (scale := noise_scale(name)) is not None:
            names.append(f"noise {scale:g}")
        else:
            raise InputError(f"there is no start {name!r}; there are names {_KNOWN}")
    if not names:
        raise InputError(f"there is no start to run from; give names {_KNOWN}")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"the start {name!r} is named twice")
    return tuple(names)


def noise_scale(name: Any) -> float | None:
    """The standard deviation that a name gives, or None where it names no noise."""
    kind, _, scale = name.partition(" ") if isinstance(name, str) else ("", "", "")
    try:
        value = float(scale) if kind == "noise" else 0.0
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


class States:
    """Makes starts for one batch."""

    def __init__(self, model: IteratedModel, context: Any, own: Sequence[Tensor], layout: Layout, seed: int) -> None:
        self._model, self._context, self._seed = model, context, seed
        self._own, self.layout = list(own), layout
        self.ignored = False
        """Whether `initial_state` gave its own start whatever it was asked for, so that it was passed by."""

    def zeros(self, indices: Sequence[int]) -> Any:
        """All zeros, as the model makes them."""
        return self._drawn(Zeros(), indices)

    def noise(self, scale: float, indices: Sequence[int]) -> Any:
        """Gaussian noise, as the model makes it; every example has its own, whoever shares its batch."""
        return self._drawn(Noise(scale=scale), indices)

    def others(self, leaves: Sequence[Tensor], order: Tensor) -> Any:
        """The floating leaves of other rows: row i gets those of row `order[i]`."""
        return self.replaced([leaves[i][order] for i in self.layout.measured()])

    def replaced(self, measured: Sequence[Tensor]) -> Any:
        """The model's own start with these floating leaves."""
        leaves = list(self._own)
        for i, leaf in zip(self.layout.measured(), measured, strict=True):
            leaves[i] = leaf
        return self.layout.build(leaves, marks=True)

    def is_own(self, state: Any) -> bool:
        """Whether the floating leaves of a start are those of the model's own start."""
        leaves, _ = flatten(state, "state")
        return all(torch.equal(leaves[i], self._own[i]) for i in self.layout.measured())

    def _drawn(self, start: Start, indices: Sequence[int]) -> Any:
        start = start.seeded(self._seed, indices)
        state = self._model.initial_state(self._context, start)
        if self.is_own(state):
            asked = start.like(self.layout.build(self._own, marks=True))
            self.ignored |= not self.is_own(asked)
            state = asked
        leaves, layout = flatten(state, "state")
        check_finite(leaves, layout.measured(), self._model.name, start.kind, indices)
        return self.replaced([leaves[i] for i in layout.measured()])


def partners(rows: int, seed: int, first: int, device: torch.device) -> Tensor:
    """`(rows,)` int64, a random permutation that leaves nothing in its place: one cycle through all rows.

    Example:
        >>> order = partners(8, 0, 0, torch.device("cpu"))
        >>> sorted(order.tolist()) == list(range(8)), bool((order == torch.arange(8)).any())
        (True, False)
    """
    shuffled = np.random.default_rng(stream_seed(seed, first)).permutation(rows)
    order = np.empty(rows, dtype=np.int64)
    order[shuffled] = np.roll(shuffled, 1)
    return torch.from_numpy(order).to(device)
