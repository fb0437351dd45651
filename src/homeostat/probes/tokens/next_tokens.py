"""Sequences as examples: inputs and targets of next tokens, and who says what is right."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from homeostat.errors import InputError
from homeostat.tasks.base import IGNORE


@dataclass(frozen=True)
class NextTokens:
    """The judge of next tokens; masked tokens are judged alike.

    Outputs are logits `(batch, vocabulary, length)`, targets `(batch, length)` int64, `IGNORE` (-100) where no token is
    asked. A logit that is not finite is no answer: that token counts as wrong.

    Example:
        >>> import homeostat as hs
        >>> logits = torch.eye(4)[torch.tensor([[1, 2, 3]])].movedim(-1, 1)  # says 1, 2, 3
        >>> judge, targets = NextTokens(), torch.tensor([[1, 0, IGNORE]])
        >>> judge.correct(logits, targets), judge.symbols(logits, targets), judge.answers(logits)
        (tensor([False]), tensor([0.5000]), tensor([[1, 2, 3]]))
    """

    def answers(self, outputs: Tensor) -> Tensor:
        """`(batch, length)` int64: the likeliest tokens."""
        return outputs.argmax(1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` bool: every asked token of a sequence is right."""
        return (right_tokens(outputs, targets) | (targets == IGNORE)).all(1)

    def symbols(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` float32: share of a sequence's asked tokens that are right, per-token accuracy."""
        return right_tokens(outputs, targets).sum(1) / (targets != IGNORE).sum(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` cross-entropy in nats a token, mean over a sequence's asked tokens."""
        return token_losses(outputs, targets).sum(1) / (targets != IGNORE).sum(1)


def right_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    """`(batch, length)` bool: asked, and right.

    Raises:
        InputError: shapes that do not fit, a target that is no token, or a sequence that nothing is asked of.
    """
    _check(outputs, targets)
    largest, answers = outputs.max(1)
    return (answers == targets) & largest.isfinite() & (targets != IGNORE)


def token_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """`(batch, length)` cross-entropy in nats, 0 where no token is asked.

    Raises:
        InputError: as `right_tokens`.
    """
    _check(outputs, targets)
    return F.cross_entropy(outputs.float(), targets, ignore_index=IGNORE, reduction="none")


def next_tokens(input_ids: Tensor, *, attention_mask: Tensor | None = None, asked: Tensor | None = None) -> Any:
    """Sequences as a batch `(inputs, targets)` in which every token is asked for by those before it.

    Args:
        input_ids: `(batch, length)` int64.
        attention_mask: `(batch, length)`, 0 or False at padding, which neither asks nor is asked.
        asked: `(batch, length)` bool, the tokens that are asked for: an answer without its prompt; all when None.

    Returns:
        `(inputs, targets)`: inputs are the ids, or a dict with the mask where there is one; `targets[:, t]` is the
        token after place t, `IGNORE` at the last place, and where nothing is asked.

    Raises:
        InputError: shapes that differ.

    Example:
        >>> next_tokens(torch.tensor([[7, 8, 9]]))
        (tensor([[7, 8, 9]]), tensor([[   8,    9, -100]]))
    """
    ids_are_whole = isinstance(input_ids, Tensor) and input_ids.ndim == 2 and not input_ids.is_floating_point()
    if not ids_are_whole:
        raise InputError("input_ids must be whole numbers of shape (batch, length)")
    for name, given in (("attention_mask", attention_mask), ("asked", asked)):
        if given is not None and given.shape != input_ids.shape:
            raise InputError(
                f"{name} must have the shape of input_ids, {tuple(input_ids.shape)}, not {tuple(given.shape)}"
            )
    counts = torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask is not None:
        counts = attention_mask.bool()
        counts = counts & counts.roll(1, 1)  # the first token after padding has nothing before it
    if asked is not None:
        counts = counts & asked.bool()
    targets = input_ids.long().masked_fill(~counts, IGNORE).roll(-1, 1)
    targets[:, -1:] = IGNORE
    inputs = input_ids if attention_mask is None else {"input_ids": input_ids, "attention_mask": attention_mask}
    return inputs, targets


def _check(outputs: Any, targets: Any) -> None:
    fits = isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.ndim == 3 and targets.ndim == 2
    if not fits or outputs.shape[0] != targets.shape[0] or outputs.shape[2] != targets.shape[1]:
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (outputs, targets)]
        raise InputError(
            f"next tokens are judged by logits (batch, vocabulary, length) and targets (batch, length), not "
            f"{shapes[0]} and {shapes[1]}"
        )
    asked = targets != IGNORE
    if bool((asked & ((targets < 0) | (targets >= outputs.shape[1]))).any()):
        wrong = int(targets[asked & ((targets < 0) | (targets >= outputs.shape[1]))][0])
        raise InputError(
            f"target {wrong} is no token: these are 0 to {outputs.shape[1] - 1}, or {IGNORE} where none is asked"
        )
    silent = (~asked.any(1)).nonzero()
    if len(silent):
        raise InputError(
            f"sequence {int(silent[0])} of a batch asks for no token: all its targets are {IGNORE}; leave it out"
        )
