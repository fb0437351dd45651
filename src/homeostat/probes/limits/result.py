"""What `classify_limits` found, as values."""

from collections.abc import Sequence
from dataclasses import dataclass

from homeostat.probes.columns import columns, percent
from homeostat.probes.results import LIMIT_CLASSES, Estimate, LimitClass

_SHOWN = 5
"""Examples whose class changed that are written out."""


@dataclass(frozen=True)
class Limit:
    """What an example ends in."""

    kind: LimitClass
    period: int | None = None
    """In steps; None for what is no cycle."""

    def __str__(self) -> str:
        return self.kind if self.period is None else f"{self.kind} of {self.period}"


@dataclass(frozen=True)
class ExampleLimit:
    """What one example ends in, and how that was decided."""

    difficulty: str
    index: int
    limit: Limit
    residual: float
    """Relative residual of the last step; infinite where the state is not finite."""
    repeat: float
    """The smallest relative residual over 2 to 16 steps: that of the period, where there is one."""
    in_other_dtype: Limit | None
    """The same run in the other precision; None where that could not be had."""
    in_other_batch: Limit | None
    """The same run in another batch."""

    @property
    def stable(self) -> bool:
        """Whether no repetition gave another class or period."""
        return all(other in (None, self.limit) for other in (self.in_other_dtype, self.in_other_batch))


@dataclass(frozen=True, repr=False)
class LimitShares:
    """The examples of one difficulty."""

    name: str
    count: int
    shares: dict[LimitClass, Estimate]
    """Share of examples in each class, with Wilson's interval."""
    periods: dict[int, int]
    """Number of examples that end in a cycle of each period."""
    same_in_other_dtype: Estimate | None
    """Share of examples whose class and period are the same there; None where nothing could be repeated."""
    same_in_other_batch: Estimate | None

    def __repr__(self) -> str:
        return f"LimitShares({self.name}: {self.count} examples, fixed points {self.shares['fixed point']})"


@dataclass(frozen=True, repr=False)
class LimitClasses:
    """What examples end in, with the precision at which that was decided; print it for a table."""

    model: str
    steps: int
    rtol: float
    """Relative residual that was asked for."""
    tolerance: float
    """Relative residual at which a state counts as fixed, or as repeated: `rtol`, or `noise_floor` if that is more."""
    noise_floor: float
    """What rounding alone can make a relative residual in the coarsest dtype of the state."""
    dtype: str
    other_dtype: str
    """That of the first repetition."""
    device: str
    difficulties: tuple[LimitShares, ...]
    examples: tuple[ExampleLimit, ...]
    evaluations: int
    """Evaluations of `step`, times examples, repetitions included."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""

    def of(self, difficulty: str) -> LimitShares:
        """What was found at the difficulty of this name."""
        for found in self.difficulties:
            if found.name == difficulty:
                return found
        raise KeyError(f"no difficulty {difficulty!r}; there are {[d.name for d in self.difficulties]}")

    @property
    def unstable(self) -> tuple[ExampleLimit, ...]:
        """The examples that a repetition put into another class."""
        return tuple(example for example in self.examples if not example.stable)

    def __repr__(self) -> str:
        kinds: list[LimitClass] = [
            kind for kind in LIMIT_CLASSES if any(d.shares[kind].value > 0 for d in self.difficulties)
        ]
        heads = ["examples", "n", *kinds, "periods", f"same in {self.other_dtype}", "same in another batch"]
        lines = [
            [
                found.name,
                str(found.count),
                *(percent(found.shares[kind]) for kind in kinds),
                ", ".join(f"{count} of {period}" for period, count in sorted(found.periods.items())) or "–",
                percent(found.same_in_other_dtype),
                percent(found.same_in_other_batch),
            ]
            for found in self.difficulties
        ]
        text = [
            f"{self.model}: what examples end in after {self.steps} steps; decided in {self.dtype} at a relative "
            f"residual of {self.tolerance:.1e} (rounding makes up to {self.noise_floor:.1e})",
            *columns(heads, lines),
            "Shares in %.",
            *_changes(self.unstable, self.dtype, self.other_dtype),
            *self.notes,
        ]
        return "\n".join(text)


def _changes(examples: Sequence[ExampleLimit], dtype: str, other_dtype: str) -> list[str]:
    lines = []
    for example in examples[:_SHOWN]:
        others = [("another batch", example.in_other_batch), (other_dtype, example.in_other_dtype)]
        changed = " and ".join(f"{other} in {where}" for where, other in others if other not in (None, example.limit))
        lines.append(f"{example.difficulty}, example {example.index}: {example.limit} in {dtype}, {changed}")
    if len(examples) > _SHOWN:
        lines.append(f"and {len(examples) - _SHOWN} more whose class is not stable")
    return lines
