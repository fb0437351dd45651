"""What `measure_tokens` found, as values."""

import math
from dataclasses import dataclass

from homeostat.probes.columns import columns, percent
from homeostat.probes.figures import figure, interval
from homeostat.probes.results import Estimate


@dataclass(frozen=True)
class TokenBudget:
    """The tokens of one row after `steps` steps from the model's own start."""

    steps: int
    accuracy: Estimate
    """Share of the asked tokens that are right; the interval counts sequences, not tokens."""
    loss: Estimate
    """Cross-entropy in nats a token, over sequences that are finite; interval from sequences resampled whole."""
    residual: Estimate | None
    """Median over sequences of the sequence's own median token: RMS(f(z) - z) / RMS(f(z)) of the token's part of the
    state, the largest over its leaves. None where the state has no parts that belong to tokens."""

    @property
    def perplexity(self) -> Estimate:
        """exp(loss), and of the ends of its interval."""
        return Estimate(_exp(self.loss.value), _exp(self.loss.low), _exp(self.loss.high), self.loss.count)


@dataclass(frozen=True, repr=False)
class TokenRow:
    """The tokens at places `first` to `last` of one difficulty's sequences."""

    difficulty: str
    first: int
    """Place in the sequence, counted from 0; the target at place t is the token after it."""
    last: int
    tokens: int
    """Asked ones."""
    sequences: int
    """With an asked token here; intervals are over these."""
    budgets: tuple[TokenBudget, ...]
    first_right: Estimate
    """Steps until a token is right for the first time: median over sequences of the sequence's own median token,
    infinite where that is never right."""
    never_right: Estimate
    """Share of the tokens that are right after no step up to the largest budget."""

    def __repr__(self) -> str:
        return "\n".join(_lines((self,), 1.0))


@dataclass(frozen=True, repr=False)
class TokenTable:
    """What becomes of answers token by token; print it for a table."""

    model: str
    trained_steps: int | None
    unit_cost: float
    seed: int
    failed: int
    """Sequences whose state was not finite at the largest budget: wrong there, and without a loss."""
    rows: tuple[TokenRow, ...]
    evaluations: int
    """Evaluations of `step`, times sequences."""
    note: str = ""

    def __repr__(self) -> str:
        trained = "unknown" if self.trained_steps is None else self.trained_steps
        text = [
            f"{self.model}: tokens by place (trained steps: {trained}; seed {self.seed})",
            *_lines(self.rows, self.unit_cost),
            "accuracy and never right: % of asked tokens. loss: nats a token. residual, first right: medians. "
            "Intervals: 95 %, over sequences.",
        ]
        text += [f"{self.failed} sequences were not finite at the end."] if self.failed else []
        return "\n".join(text + ([self.note] if self.note else []))


def _exp(nats: float) -> float:
    return math.inf if nats > 700 else math.exp(nats)


def _lines(rows: tuple[TokenRow, ...], unit_cost: float) -> list[str]:
    heads = ["examples", "places", "tokens", "sequences", "steps", "cost", "accuracy", "loss", "perplexity", "residual"]
    cells = []
    for row in rows:
        for place, budget in enumerate(row.budgets):
            names = [row.difficulty, f"{row.first}–{row.last}", f"{row.tokens:,}", f"{row.sequences:,}"]
            line = names if place == 0 else ["", "", "", ""]
            line = [*line, str(budget.steps), figure(budget.steps * unit_cost), percent(budget.accuracy)]
            line += [interval(budget.loss), interval(budget.perplexity), interval(budget.residual)]
            last = [interval(row.first_right), percent(row.never_right)] if place == 0 else ["", ""]
            cells.append(line + last)
    return columns([*heads, "first right", "never right"], cells, names=2)
