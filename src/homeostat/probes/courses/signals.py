"""What can be known of an answer while it is being computed, without labels: the signals that a policy may stop by.

Everything is one number an example and a step, found by pure functions of an example's own rows: no signal depends on
who shares the batch.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.errors import ContractError, InputError
from homeostat.probes.answers import logits_of
from homeostat.probes.judge import Judge

Signal = Literal["steps", "residual", "stable", "confidence", "entropy", "kl", "score", "alignment", "certificate"]


class SignalKind(NamedTuple):
    """What a signal is."""

    text: str
    larger: bool
    """Whether more of it speaks for stopping."""


SIGNALS: dict[str, SignalKind] = {
    "steps": SignalKind("steps taken", True),
    "residual": SignalKind("RMS(f(z) - z) / RMS(f(z)), the largest over the floating leaves", False),
    "stable": SignalKind("steps for which the decoded answer has stayed the same", True),
    "confidence": SignalKind("softmax probability of the answer, the least over the asked positions", True),
    "entropy": SignalKind("entropy of the softmax in nats, the largest over the asked positions", False),
    "kl": SignalKind("KL divergence of the softmax from that of the step before, in nats, the largest", False),
    "score": SignalKind("the model's own halting signal", True),
    "alignment": SignalKind("cosine with a run from a noise start; -1 while the two answers differ", True),
    "certificate": SignalKind(
        "1 once the depth certificate says that no later step changes the answer, 0 before", True
    ),
}
CHEAP: tuple[Signal, ...] = ("residual", "stable", "confidence", "entropy", "kl", "score")
"""Signals that need no evaluation of `step` beyond the iteration itself."""
COSTLY: tuple[Signal, ...] = ("alignment", "certificate")
"""Signals that need more: a second run, or products with the Jacobian, each counted as one evaluation."""

_FEW_CLASSES = 16

HowRead = Literal["argmax", "judge", "outputs", "none"]


@dataclass(frozen=True)
class AnswerReader:
    """Answers and log-probabilities of outputs.

    Attributes:
        how: `"argmax"`: outputs are logits with classes along dimension 1; `"outputs"`: they are integers themselves;
            `"judge"`: `judge.answers` says; `"none"`: there is nothing that could stay the same.
        judge: used with `"judge"`.
    """

    how: HowRead
    judge: Judge

    @classmethod
    def of(cls, outputs: Any, judge: Judge) -> "AnswerReader":
        """How outputs such as these are read."""
        if judge.decoded(outputs) is None:
            return cls("none", judge)
        if judge.answers is None:
            return cls("outputs", judge)
        return cls("argmax" if logits_of(outputs, judge) is not None else "judge", judge)

    def answers(self, outputs: Any) -> Tensor:
        """Integers `(rows, ...)`; nothing, `(rows, 0)`, where there are none."""
        if self.how == "none":
            leaf = pytree.tree_leaves(outputs)[0]
            return leaf.new_zeros((len(leaf), 0), dtype=torch.int64)
        if self.how == "argmax":
            return _largest_class(_logits(outputs))
        found = self.judge.decoded(outputs)
        if found is None:
            raise InputError("this policy reads answers with a judge; give predict the judge= that it was fitted with")
        return found.long()

    def beliefs(self, outputs: Any) -> Tensor:
        """Log-probabilities `(rows, classes, positions)`, in float32 at least."""
        logits = _logits(outputs)
        return (logits if logits.dtype == torch.float64 else logits.float()).flatten(2).log_softmax(1)


def _logits(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.ndim < 2:
        raise ContractError("this policy was fitted on outputs that are logits with classes along dimension 1")
    return outputs if outputs.ndim > 2 else outputs[..., None]


def _largest_class(logits: Tensor) -> Tensor:
    """`argmax(1)`, which is many times slower than this where there are few classes and many positions."""
    if logits.shape[1] > _FEW_CLASSES:
        return logits.argmax(1)
    best, answers = logits[:, 0], torch.zeros_like(logits[:, 0], dtype=torch.int64)
    for number in range(1, logits.shape[1]):
        better = logits[:, number] > best
        best = torch.where(better, logits[:, number], best)
        answers = answers.masked_fill(better, number)
    return answers


def same(answers: Tensor, others: Tensor, asked: Tensor | None) -> Tensor:
    """`(rows,)` bool: equal wherever an answer is asked."""
    equal = (answers == others).reshape(len(answers), -1)
    return equal.all(1) if asked is None else (equal | ~_flat(asked)).all(1)


def least_confidence(beliefs: Tensor, asked: Tensor | None) -> Tensor:
    """`(rows, classes, positions)` log-probabilities to `(rows,)`: the probability of the least sure answer."""
    top = beliefs.amax(1)
    return (top if asked is None else top.masked_fill(~_flat(asked), 0.0)).amin(1).exp()


def largest_entropy(beliefs: Tensor, asked: Tensor | None) -> Tensor:
    """`(rows,)`, in nats: that of the least sure position."""
    return _largest(-(beliefs.exp() * beliefs).sum(1), asked)


def largest_divergence(beliefs: Tensor, former: Tensor, asked: Tensor | None) -> Tensor:
    """KL(now || before), `(rows,)` in nats: that of the position that changed most. Rounding below 0 counts as 0."""
    return _largest((beliefs.exp() * (beliefs - former)).sum(1).clamp(min=0), asked)


def _largest(values: Tensor, asked: Tensor | None) -> Tensor:
    return (values if asked is None else values.masked_fill(~_flat(asked), 0.0)).amax(1)


def _flat(asked: Tensor) -> Tensor:
    return asked.reshape(len(asked), -1)
