"""A stopping policy: when to stop thinking about an example, as a small file of JSON that says what it promises."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from homeostat.checks import is_number
from homeostat.errors import PolicyError
from homeostat.files import write_text
from homeostat.models.model_hash import hash_of
from homeostat.probes.columns import columns
from homeostat.probes.courses.condition import Condition
from homeostat.probes.courses.signals import SIGNALS, HowRead, Signal
from homeostat.probes.examples import MOST_STEPS

FORMAT = 1
Goal = Literal["accuracy loss", "mean steps"]

ASSUMPTION = (
    "later examples are drawn independently and in the same shares as the calibration examples; nothing is promised "
    "for others, or for any one kind of them alone"
)


def _read_condition(given: Any) -> Any:
    if isinstance(given, dict) and set(given) == {"signal", "threshold"}:
        signal, threshold = given["signal"], given["threshold"]
        if not isinstance(signal, str) or signal not in SIGNALS:
            raise ValueError(f"unknown signal {signal!r}: it is one of {', '.join(SIGNALS)}")
        if not is_number(threshold) or not abs(threshold) <= 1e300:
            raise ValueError(f"the threshold of {signal} must be a finite number, not {str(threshold)[:40]}")
        return Condition(signal, float(threshold))  # type: ignore[arg-type] - one of SIGNALS
    return given


_Condition = Annotated[
    Condition,
    BeforeValidator(_read_condition),
    PlainSerializer(lambda one: {"signal": one.signal, "threshold": one.threshold}),
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Guarantee(_Part):
    """What is promised, and on what it rests.

    With probability `confidence` over the calibration examples, `what` is at most `level` on later examples.
    """

    what: Goal
    level: float
    confidence: float
    examples: int
    """On which it was judged; the rule was chosen on others."""
    observed: float
    """What was found there: share of examples right at the reference budget and wrong when stopped, or mean steps."""
    p_value: float
    reference_steps: int
    """Budget that accuracy is compared with: the most accurate one of those that were looked at."""
    assumption: str = ASSUMPTION


class Selection(_Part):
    """Which answers are given, and what is promised of those: at most `level` of them are wrong."""

    condition: _Condition
    level: float
    confidence: float
    examples: int
    """Answered ones on which it was judged."""
    errors: int
    p_value: float
    coverage: float
    """Share of examples that were answered."""


class Row(_Part):
    """One kind of rule on the examples on which rules were chosen: to compare, nothing is promised."""

    kind: str
    conditions: tuple[_Condition, ...]
    max_steps: int
    mean_steps: float
    accuracy: float
    loss: float
    """Share of examples right at the reference budget and wrong when stopped."""


class Policy(_Part):
    """When to stop. `hs.fit_stopping` makes one, `hs.predict(model, inputs, policy=policy)` runs it.

    Attributes:
        conditions: an example stops after the first step at which all of them hold, or after `max_steps`, then without
            having met them, which counts as abstaining.
        select: which of the answers are given; None gives all that met the conditions.
        reads, masked, seed: how answers are read, whether a judge says which are asked, and the second start's seed.
        failed: calibration examples whose state was not finite; they count as wrong.
        model, model_hash: what it was made for.
        mean_steps, accuracy, reference_accuracy: on the examples that it was judged on.
        compared: the cheapest rule of each kind that lost no more than this one while rules were chosen.

    Example:
        >>> policy = Policy(conditions=(Condition("residual", 1e-3),), max_steps=100)
        >>> print(policy)
        Policy: stop when residual <= 0.001, after 100 steps at the latest
          made by hand: nothing is promised
        >>> Policy.from_json(policy.to_json()) == policy
        True
    """

    format: Literal[1] = FORMAT
    conditions: tuple[_Condition, ...] = Field(min_length=1)
    max_steps: int = Field(ge=1, le=MOST_STEPS, strict=True)
    select: Selection | None = None
    reads: HowRead = "argmax"
    masked: bool = False
    seed: int = Field(default=0, ge=0)
    failed: int = Field(default=0, ge=0)
    model: str = "any model"
    model_hash: str | None = None
    guarantee: Guarantee | None = None
    mean_steps: float | None = None
    accuracy: float | None = None
    reference_accuracy: float | None = None
    compared: tuple[Row, ...] = ()

    @model_validator(mode="after")
    def _makes_sense(self) -> "Policy":
        names = [condition.signal for condition in self.conditions]
        if len(set(names)) != len(names):
            raise ValueError("a signal stands twice in the conditions")
        for name in self.signals:
            if name == "stable" and self.reads == "none":
                raise ValueError("stable needs answers, and reads is 'none'")
            if name in ("confidence", "entropy", "kl", "certificate") and self.reads != "argmax":
                raise ValueError(f"{name} needs outputs that are logits, and reads is {self.reads!r}, not 'argmax'")
        figures = (self.mean_steps, self.accuracy, self.reference_accuracy)
        if self.guarantee is not None and any(figure is None for figure in figures):
            raise ValueError("a guarantee needs mean_steps, accuracy and reference_accuracy beside it")
        return self

    @property
    def signals(self) -> tuple[Signal, ...]:
        """What has to be watched."""
        asked = [*self.conditions, *([self.select.condition] if self.select else [])]
        needed: dict[Signal, None] = dict.fromkeys(condition.signal for condition in asked)
        return tuple(name for name in needed if name != "steps")

    def check(self, model: Any) -> None:
        """Refuse a model that it was not made for.

        Raises:
            PolicyError: the hash of the weights differs.
        """
        if self.model_hash is None:
            return
        found = hash_of(model)
        if found != self.model_hash:
            ours = "no weights that could be hashed" if found is None else f"hash {found[:12]}"
            raise PolicyError(
                f"this policy was made for {self.model} with weights of hash {self.model_hash[:12]}; the model given "
                f"has {ours}. Fit a policy for it: homeostat calibrate"
            )

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it, whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        return write_text(path, self.to_json())

    @classmethod
    def from_json(cls, text: str | bytes, *, name: str = "the policy") -> "Policy":
        """Read a file's text.

        Raises:
            PolicyError: it is no policy, or one of another format; the message says where it is wrong.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise PolicyError(f"{name} is not a policy: {where + ': ' if where else ''}{first['msg']}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Policy":
        """Read a file.

        Raises:
            PolicyError: it cannot be read, or is not a policy.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise PolicyError(f"cannot read {path}: {error.strerror}") from error
        return cls.from_json(data, name=str(path))

    def __repr__(self) -> str:
        rule = rule_text(self.conditions)
        lines = [f"Policy: stop when {rule}, after {self.max_steps:,} steps at the latest"]
        promise = self.guarantee
        if promise is None:
            return f"{lines[0]}\n  made by hand: nothing is promised"
        what = "accuracy lost" if promise.what == "accuracy loss" else "mean steps"
        points = f"{100 * promise.level:g} point{'s' * (100 * promise.level != 1)}"
        level = points if promise.what == "accuracy loss" else f"{promise.level:g}"
        lines.append(
            f"  promise: {what} at most {level}, with probability {promise.confidence:g} over the calibration set "
            f"({promise.examples:,} examples, p = {promise.p_value:.2g})"
        )
        if self.failed:
            lines.append(f"  the states of {self.failed:,} calibration examples were not finite: they counted as wrong")
        if self.model_hash is None:
            lines.append("  made for a model without weights that could be hashed: not checked when it is used")
        lines.append(
            f"  there: mean steps {self.mean_steps:.1f}, exact {_percent(self.accuracy)}; "
            f"at {promise.reference_steps:,} steps {_percent(self.reference_accuracy)}"
        )
        if self.select is not None:
            one = self.select
            lines.append(
                f"  answers where {one.condition!r}: {100 * one.coverage:.1f} %, at most {100 * one.level:g} % of them "
                f"wrong with probability {one.confidence:g} (found {one.errors} of {one.examples:,})"
            )
        lines += [f"  {line}" for line in textwrap.wrap(f"provided that {promise.assumption}", 100)]
        if self.compared:
            lines += ["  on the examples that chose, where nothing is promised:", *_table(self.compared)]
        return "\n".join(lines)

    __str__ = __repr__


def rule_text(conditions: Sequence[Condition]) -> str:
    """The conditions in words."""
    return " and ".join(repr(condition) for condition in conditions)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.2f} %"


def _table(rows: Sequence[Row]) -> list[str]:
    figures = [[f"{row.mean_steps:.1f}", f"{100 * row.accuracy:.2f}", f"{100 * row.loss:.2f}"] for row in rows]
    head, *lines = columns(["mean steps", "exact %", "lost %"], figures, names=0)
    rules = [rule_text(row.conditions) for row in rows]
    return [f"    {head}  rule", *(f"    {line}  {rule}" for line, rule in zip(lines, rules, strict=True))]
