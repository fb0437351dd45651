"""What became of examples at every step: enough to know what any stopping rule would have done with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from homeostat.errors import InputError
from homeostat.probes.courses.condition import Condition
from homeostat.probes.courses.signals import HowRead, Signal


@dataclass(frozen=True, eq=False, repr=False)
class Courses:
    """What became of every example at every step.

    Attributes:
        model: name of the model; model_hash: of its weights, None where they cannot be found.
        difficulties: their names; `group` says which one an example belongs to, `(examples,)` int.
        signals: `(examples, steps)` float32 by name, NaN where an example had failed.
        right: `(examples, steps)` bool; False from the step at which an example failed.
        failed_at: `(examples,)`, the first step whose state was not finite, or 0.
        products: `(examples, steps)` int64, products with the Jacobian so far, where `certificate` was recorded.
        reads: how answers were read; masked: whether the judge said which ones are asked.
        seed: of the second start.
    """

    model: str
    model_hash: str | None
    difficulties: tuple[str, ...]
    group: np.ndarray
    signals: Mapping[Signal, np.ndarray]
    right: np.ndarray
    failed_at: np.ndarray
    reads: HowRead
    masked: bool
    seed: int
    products: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.right)

    @property
    def steps(self) -> int:
        """The longest budget."""
        return self.right.shape[1]

    def at(self, rows: np.ndarray) -> "Courses":
        """Some of the examples: a mask or places."""
        signals: dict[Signal, np.ndarray] = {name: values[rows] for name, values in self.signals.items()}
        return Courses(
            self.model, self.model_hash, self.difficulties, self.group[rows], signals, self.right[rows],
            self.failed_at[rows], self.reads, self.masked, self.seed,
            None if self.products is None else self.products[rows], self.notes,
        )  # fmt: skip

    def right_from(self) -> np.ndarray:
        """`(examples,)`: the first step from which an example stays right to the end; 0 where there is none."""
        wrong = ~self.right
        last = self.steps - np.argmax(wrong[:, ::-1], 1)
        return np.where(self.right[:, -1], np.where(wrong.any(1), last + 1, 1), 0)

    def met(self, condition: Condition) -> np.ndarray:
        """`(examples, steps)` bool: whether the condition holds after each step."""
        if condition.signal == "steps":
            return np.broadcast_to(condition.holds(np.arange(1, self.steps + 1)), self.right.shape)
        if condition.signal not in self.signals:
            raise InputError(f"the signal {condition.signal!r} was not recorded; there are {sorted(self.signals)}")
        with np.errstate(invalid="ignore"):
            return condition.holds(self.signals[condition.signal])

    def met_all(self, conditions: Sequence[Condition]) -> np.ndarray:
        """`(examples, steps)` bool: whether all conditions hold after each step."""
        return np.logical_and.reduce([self.met(condition) for condition in conditions])

    def stops(self, met: np.ndarray, most: int | None = None) -> np.ndarray:
        """`(examples,)`: the step after which each example stops: the first at which all conditions are met, or the
        one at which it fails, or `most`, the last one when None.
        """
        first = np.where(met.any(1), met.argmax(1) + 1, self.steps)
        first = np.where(self.failed_at > 0, np.minimum(first, self.failed_at), first)
        return first if most is None else np.minimum(first, most)

    def answered(self, met: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """`(examples,)` bool: the conditions are met where an example stops, and it has not failed there."""
        failed = (self.failed_at > 0) & (self.failed_at <= stops)
        return met[np.arange(len(stops)), stops - 1] & ~failed

    def evaluations(self, conditions: Sequence[Condition], stops: np.ndarray) -> np.ndarray:
        """`(examples,)`: evaluations of `step` when stopped there by these conditions: a second run doubles them, and
        each product with the Jacobian counts as one.
        """
        signals = {condition.signal for condition in conditions}
        found = stops * (2 if "alignment" in signals else 1)
        if "certificate" in signals and self.products is not None:
            found = found + self.products[np.arange(len(stops)), stops - 1]
        return found

    def right_at(self, stops: np.ndarray) -> np.ndarray:
        """`(examples,)` bool: right when stopped there."""
        return self.right[np.arange(len(stops)), stops - 1]

    def __repr__(self) -> str:
        counts = ", ".join(f"{int((self.group == i).sum())} of {name}" for i, name in enumerate(self.difficulties))
        return (
            f"Courses({self.model}: {len(self)} examples, {counts}; {self.steps} steps; right at the end "
            f"{self.right[:, -1].mean():.4f}; signals {', '.join(self.signals)})"
        )
