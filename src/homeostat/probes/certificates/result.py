"""What `certify` found, as values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from homeostat.probes import estimates
from homeostat.probes.columns import columns, percent
from homeostat.probes.figures import figure, interval
from homeostat.probes.results import Estimate

Refusal = Literal["too few steps", "no contraction", "margin too small", "slow direction", "failed"]
"""Why there is no certificate at the last step: fewer ratios than the window; a ratio that leaves q at 1 or more; a
remaining path longer than the flip distance; the same once the spectral radius is taken into q; a run that failed."""


@dataclass(frozen=True)
class ExampleCertificate:
    """One example; `contraction`, `remaining` and `flip_distance` are those of the step at which it was certified."""

    index: int
    certified_at: int | None
    """First step from which on the answer is safe; None where there is no certificate within the budget."""
    contraction: float | None
    """q: what every later ratio of step lengths is taken to stay below."""
    remaining: float | None
    """Upper bound of the length of the remaining path, in the units of the state."""
    flip_distance: float | None
    """What the state would have to move by for the answer to change, decoder factor included; in the same units."""
    last_change: int
    """Last step that changed the answer; 0 where none did."""
    changed_at: int | None
    """First step after the certificate that changed the answer all the same, or failed."""
    refusal: Refusal | None
    failed: bool


@dataclass(frozen=True)
class CertificateRow:
    """One difficulty."""

    difficulty: str
    examples: tuple[ExampleCertificate, ...]
    certified: Estimate
    """Share of examples with a certificate within the budget."""
    step: Estimate
    """Median of the first certified step; infinite where half of the examples or more have none."""
    last_change: Estimate
    """Median of the last step that changed an answer: what the best possible rule could stop at."""
    changed_later: int
    """Certified answers that changed within the budget after all. Anything but 0 breaks the assumption."""
    watched: Estimate
    """Median number of steps that certified answers were watched for afterwards."""
    exact_certified: Estimate | None
    """Share of the certified examples whose last answer is right; None where nothing says what is right."""
    exact_others: Estimate | None
    refusals: dict[Refusal, int]
    failed: int

    @property
    def count(self) -> int:
        return len(self.examples)


@dataclass(frozen=True, repr=False)
class Certificates:
    """What `certify` found; print it for a table."""

    model: str
    steps: int
    window: int
    gap: float
    decoder_factor: float
    iterations: int
    rows: tuple[CertificateRow, ...]

    @property
    def changed_later(self) -> int:
        """Certified answers, over all difficulties, that changed within the budget after all."""
        return sum(row.changed_later for row in self.rows)

    def of(self, difficulty: str) -> CertificateRow:
        """The row of this difficulty."""
        for row in self.rows:
            if row.difficulty == difficulty:
                return row
        raise KeyError(f"no difficulty {difficulty!r}; there are {[row.difficulty for row in self.rows]}")

    def __repr__(self) -> str:
        heads = ["examples", "n", "certified", "at step", "last change", "changed later", "watched", "exact", "others"]
        lines = [
            [
                row.difficulty,
                str(row.count),
                percent(row.certified),
                interval(row.step),
                interval(row.last_change),
                str(row.changed_later),
                interval(row.watched),
                percent(row.exact_certified),
                percent(row.exact_others),
            ]
            for row in self.rows
        ]
        notes = [
            "certified, exact (of the certified ones, of the others): %. at step, last change (of any answer), watched "
            "(steps after the certificate): medians. A certificate says that an answer stays, not that it is right.",
            f"It holds if all later ratios of step lengths stay below q = 1 - {figure(self.gap)} (1 - r), r the "
            f"largest of the last {self.window} ratios and of the spectral radius there, and if the decoder gets at "
            f"most {figure(self.decoder_factor)} times as steep.",
        ]
        for row in self.rows:
            if row.refusals:
                why = ", ".join(f"{count} {name}" for name, count in row.refusals.items())
                notes.append(f"{row.difficulty}: without a certificate: {why}.")
            if row.changed_later:
                notes.append(
                    f"{row.difficulty}: {row.changed_later} CERTIFIED ANSWERS CHANGED LATER: here the assumption does "
                    "not hold, and certificates are not to be relied on."
                )
        title = f"{self.model}: answers that are safe from more steps, up to {self.steps}"
        return "\n".join([title, *columns(heads, lines), *notes])


def summarise(
    difficulty: str, examples: Sequence[ExampleCertificate], right: Sequence[bool | None], steps: int
) -> CertificateRow:
    """The figures of one difficulty.

    Args:
        right: whether each last answer is right, None where nothing says so.
        steps: the budget.
    """
    certified = [e.certified_at is not None for e in examples]
    judged = all(r is not None for r in right)
    refusals: dict[Refusal, int] = {}
    for example in examples:
        if example.refusal is not None:
            refusals[example.refusal] = refusals.get(example.refusal, 0) + 1

    def exact(wanted: bool) -> Estimate | None:
        return estimates.share([bool(r) for r, c in zip(right, certified, strict=True) if c == wanted])

    return CertificateRow(
        difficulty=difficulty,
        examples=tuple(examples),
        certified=estimates.share(certified),
        step=estimates.median([float("inf") if e.certified_at is None else e.certified_at for e in examples]),
        last_change=estimates.median([e.last_change for e in examples]),
        changed_later=sum(e.changed_at is not None for e in examples),
        watched=estimates.median([steps - e.certified_at for e in examples if e.certified_at is not None]),
        exact_certified=exact(True) if judged else None,
        exact_others=exact(False) if judged else None,
        refusals=refusals,
        failed=sum(e.failed for e in examples),
    )
