"""What outputs say: the answers where they are asked, and logits where outputs are such."""

from typing import Any

import torch
from torch import Tensor

from homeostat.probes.judge import Judge
from homeostat.tasks.base import IGNORE


def judge_of(model: Any, judge: Any) -> Judge:
    """A `Judge` as it is, or the functions of a task; of the model's own object when None."""
    return judge if isinstance(judge, Judge) else Judge.of(model if judge is None else judge)


def asked(targets: Any, answers: Tensor) -> Tensor:
    """Bool in the shape of `answers`: where an answer is asked, which is where the target is not `IGNORE`.

    Nothing else of the targets is read, so that nothing learns what would be right.
    """
    if isinstance(targets, Tensor) and targets.shape == answers.shape and not targets.is_floating_point():
        return targets != IGNORE
    return torch.ones_like(answers, dtype=torch.bool)


def logits_of(outputs: Any, judge: Judge) -> Tensor | None:
    """The outputs if they are logits: floating, classes along dimension 1, and the largest one is the answer."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.ndim < 2 or outputs.shape[1] < 2:
        return None
    answers = judge.decoded(outputs)
    if answers is None or answers.shape != (len(outputs), *outputs.shape[2:]):
        return None
    return outputs if bool((outputs.argmax(1) == answers).all()) else None


def same_answers(first: Tensor, second: Tensor, where: Tensor) -> Tensor:
    """`(rows,)` bool: equal in full, where `where` is."""
    return ((first == second) | ~where).reshape(len(first), -1).all(1)
