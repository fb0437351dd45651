"""What an audit found, as values. Everything here goes to `audit.json` field by field and comes back from it.

Words used: a *budget* is a number of steps; the *horizon* is the number of steps a model was trained with;
the *residual* of an example is RMS(f(z) - z) / RMS(f(z)), the largest over the floating leaves of its state;
an example is *settled* when that is at most the audit's `settle_rtol`; one that is not finite is *failed*, and counts
as wrong, unsettled and disagreeing everywhere.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from homeostat.probes.courses.courses import Courses

LimitClass = Literal["fixed point", "cycle", "drift", "divergence", "unsettled"]
LIMIT_CLASSES: tuple[LimitClass, ...] = ("fixed point", "cycle", "drift", "unsettled", "divergence")

Decision = Literal["may think longer", "no need", "may not think longer", "not decided", "not judged"]


@dataclass(frozen=True, repr=False)
class Estimate:
    """A mean over `count` examples with its 95 % interval. `low`..`high` holds the true mean in 95 of 100 repeats."""

    value: float
    low: float
    high: float
    count: int

    def __repr__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.count}"


@dataclass(frozen=True)
class Budget:
    """One difficulty after `steps` steps from the model's own start."""

    steps: int
    exact: Estimate | None
    """Share of examples answered right in full (Wilson). None when the audit has nothing to judge by."""
    symbol: Estimate | None
    """Mean share of right symbols (Wilson, with the effective count of clustered symbols)."""
    loss: float | None
    """Mean loss over the examples that are finite, in the units of the task's loss."""
    residual_median: float
    residual_high: float
    """90th percentile of the residual; infinite when more than a tenth of the examples failed."""
    settled: Estimate
    failed: int
    """Examples whose state is not finite at this budget."""


@dataclass(frozen=True)
class Alignment:
    """Where a second run ends that started elsewhere, compared with the run from the model's own start."""

    start: Literal["zeros", "noise", "swapped"]
    """`swapped` is Algorithm 1 of arXiv 2211.09961: another example's limit as the start."""
    steps: int
    cosine: Estimate
    """Mean cosine of the two final states of the same example, flattened over the floating leaves. 1 is the same."""
    null: Estimate
    """The same between *different* examples' final states: what cosine is worth nothing here."""
    distance: float
    """Median of RMS(a - b) / RMS(b)."""
    agreement: Estimate | None
    """Share of examples whose decoded answers are the same in full."""
    exact: Estimate | None
    """Share answered right from this start."""
    failed: int


@dataclass(frozen=True)
class Example:
    """One example followed through every step up to the largest budget."""

    index: int
    correct: bool | None
    """Right at the largest budget."""
    first_solved: int | None
    """First step after which the answer is right in full."""
    last_change: int | None
    """Last step that changed the decoded answer; 0 when none did."""
    lost: bool | None
    """Right at some step and wrong at the largest budget."""
    settled_at: int | None
    """First step from which the residual stays within `settle_rtol`."""
    residual: float
    limit: LimitClass
    period: int | None
    """Period of a cycle, in steps."""
    failed_at: int | None
    """First step whose state is not finite."""
    alignment: dict[str, float] = field(default_factory=dict)
    """Cosine with the run from each other start, by the name of the start."""


@dataclass(frozen=True)
class Clip:
    """One example being solved or failing, for the gallery. Frames are 2-D arrays of codes into `labels`/`colours`."""

    title: str
    """In words: what becomes of the example."""
    steps: tuple[int, ...]
    frames: tuple[tuple[tuple[int, ...], ...], ...]
    """`frames[i][row][column]` after `steps[i]` steps."""
    residuals: tuple[float, ...]
    correct: tuple[bool | None, ...]
    labels: tuple[str, ...]
    colours: tuple[str, ...]
    difficulty: str
    solved: bool | None


@dataclass(frozen=True, repr=False)
class Difficulty:
    """Everything found at one difficulty."""

    name: str
    light_cone: int | None
    """Steps before which information cannot have crossed the input; None when the model does not say."""
    budgets: tuple[Budget, ...]
    alignments: tuple[Alignment, ...]
    limits: dict[str, int]
    """Number of examples in each limit class at the largest budget."""
    settled_correct: tuple[tuple[int, int], tuple[int, int]] | None
    """[[settled and right, settled and wrong], [unsettled and right, unsettled and wrong]] at the largest budget."""
    examples: tuple[Example, ...]
    row_evaluations: int
    """Evaluations of `step`, times examples, that the run from the model's own start took."""
    notes: tuple[str, ...] = ()
    """What could not be measured here, and why."""

    @property
    def count(self) -> int:
        return len(self.examples)

    def at(self, steps: int) -> Budget:
        """The budget of exactly `steps` steps."""
        for budget in self.budgets:
            if budget.steps == steps:
                return budget
        raise KeyError(f"no budget of {steps} steps; there are {[b.steps for b in self.budgets]}")

    def __repr__(self) -> str:
        last = self.budgets[-1]
        return f"Difficulty({self.name}: {self.count} examples, exact {last.exact} at {last.steps} steps)"


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict with the figures it rests on."""

    rule: str
    """Name of the rule, as in the documentation."""
    text: str
    good: bool | None
    """True speaks for thinking longer, False against; None is neither."""


@dataclass(frozen=True)
class Verdict:
    """What the figures say, by rules fixed beforehand (docs/verdict.md)."""

    decision: Decision
    text: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Settings:
    """How an audit was made; enough to make it again."""

    budgets: tuple[int, ...]
    settle_rtol: float
    seed: int
    noise_scale: float
    dtype: str
    device: str
    versions: dict[str, str]
    seconds: float


@dataclass(frozen=True, repr=False)
class Audit:
    """One model on one set of examples: what it does when it thinks longer, and what that means."""

    model: str
    description: str
    trained_steps: int | None
    unit_cost: float
    parameters: int | None
    settings: Settings
    difficulties: tuple[Difficulty, ...]
    verdict: Verdict
    clips: tuple[Clip, ...] = ()
    courses: Courses | None = field(default=None, repr=False, compare=False)
    """Every step of every example, for `fit_stopping`; None where that would be too much, or nothing says what is
    right. Not written to files."""

    def difficulty(self, name: str) -> Difficulty:
        """What was found at the difficulty of this name."""
        for difficulty in self.difficulties:
            if difficulty.name == name:
                return difficulty
        raise KeyError(f"no difficulty {name!r}; there are {[d.name for d in self.difficulties]}")

    def __repr__(self) -> str:
        """A table of the figures and the verdict."""
        from homeostat.probes.audits.table import audit_text

        return audit_text(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `report.html`, `audit.json` and `examples.parquet` into `folder`, each whole or not at all.

        Raises:
            OutputError: the folder cannot be written.
        """
        from homeostat.probes.saving import save_audits

        return save_audits([self], folder)
