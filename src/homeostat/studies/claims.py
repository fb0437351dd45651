"""Claims, and the rules by which figures decide them. Rules are data, fixed beside the claim before anything is run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from homeostat.probes.results import Estimate

Verdict = Literal["holds", "does not hold", "not decided", "not run"]


@dataclass(frozen=True)
class Above:
    """Every quantity is above `threshold`.

    With `basis="interval"` the whole 95 % interval has to be: a quantity whose interval holds the threshold leaves the
    claim undecided, and one that lies wholly below it refutes the claim. With `basis="value"` the value decides, where
    a target, not a comparison, is meant; it includes the threshold.

    Example:
        >>> Above(0.5).decide([Estimate(0.9, 0.8, 0.95, 40)])
        'holds'
        >>> Above(0.5).decide([Estimate(0.6, 0.4, 0.7, 40)])
        'not decided'
    """

    threshold: float
    basis: Literal["interval", "value"] = "interval"

    def decide(self, quantities: Sequence[Estimate]) -> Verdict:
        """What the quantities say."""
        return _decide(quantities, self.threshold, self.basis, 1)

    def __str__(self) -> str:
        return f"{'whole interval' if self.basis == 'interval' else 'value'} above {self.threshold:g}"


@dataclass(frozen=True)
class Below:
    """Every quantity is below `threshold`; see `Above`.

    Example:
        >>> Below(0.0).decide([Estimate(-0.2, -0.3, -0.1, 40), Estimate(0.2, 0.1, 0.3, 40)])
        'does not hold'
    """

    threshold: float
    basis: Literal["interval", "value"] = "interval"

    def decide(self, quantities: Sequence[Estimate]) -> Verdict:
        """What the quantities say."""
        return _decide(quantities, self.threshold, self.basis, -1)

    def __str__(self) -> str:
        return f"{'whole interval' if self.basis == 'interval' else 'value'} below {self.threshold:g}"


def _decide(quantities: Sequence[Estimate], threshold: float, basis: str, sign: int) -> Verdict:
    if not quantities or any(math.isnan(quantity.value) for quantity in quantities):
        return "not decided"  # nothing was measured, or a value is not a number
    if basis == "value":
        return "holds" if all(sign * (q.value - threshold) >= 0 for q in quantities) else "does not hold"
    # An interval with an end that is not a number decides nothing.
    known = [q for q in quantities if not math.isnan(q.low + q.high)]
    ends = [sorted((sign * (q.low - threshold), sign * (q.high - threshold))) for q in known]
    if any(high < 0 for _, high in ends):
        return "does not hold"
    if len(known) < len(quantities):
        return "not decided"
    return "holds" if all(low > 0 for low, _ in ends) else "not decided"


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and what our figures have to be for it to hold."""

    name: str
    """Short and unique within a study, such as `"promote raises accuracy"`."""
    text: str
    paper: str
    """The paper's figure, or why there is none."""
    quantity: str
    """What is measured, in words, with its unit."""
    rule: Above | Below
    given: "Given | None" = None
    """Without which the claim would be about nothing, so that it is left undecided."""


@dataclass(frozen=True)
class Given:
    """A condition of a claim: nets that answer nothing right, say, cannot lose anything under attack."""

    text: str
    rule: Above | Below


@dataclass(frozen=True)
class Decided:
    """A claim with our figures and what they say by its rule."""

    claim: Claim
    ours: tuple[tuple[str, Estimate], ...]
    """Name and value of each quantity that the rule was applied to."""
    verdict: Verdict
    note: str = ""
    """What has to be kept in mind, such as how few the nets are."""


def decide(
    claim: Claim,
    ours: Sequence[tuple[str, Estimate]],
    note: str = "",
    *,
    given: Sequence[tuple[str, Estimate]] = (),
) -> Decided:
    """Apply the claim's rule, where its condition holds for `given`.

    Example:
        >>> claim = Claim("parity", "half are even", "0.5", "share of even numbers", Above(0.4))
        >>> decide(claim, [("numbers to 100", Estimate(0.5, 0.41, 0.59, 100))]).verdict
        'holds'
    """
    if claim.given is not None and claim.given.rule.decide([estimate for _, estimate in given]) != "holds":
        found = "; ".join(f"{name} {estimate!r}" for name, estimate in given) or "not measured"
        missing = f"Left open, since it needs {claim.given.text} ({claim.given.rule}): {found}."
        return Decided(claim, tuple(ours), "not decided", f"{missing} {note}".strip())
    return Decided(claim, tuple(ours), claim.rule.decide([estimate for _, estimate in ours]), note)


def not_run(claim: Claim) -> Decided:
    """A claim whose jobs have not been run."""
    return Decided(claim, (), "not run")
