"""What is right for models that answer with one token a position, whose targets may leave positions out."""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""Target of a position that is not asked for."""


class TokenAnswers:
    """Judges outputs `(batch, length, vocabulary)` against targets `(batch, length)`; -100 marks what is not asked.

    Example:
        >>> logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0]]])
        >>> TokenAnswers().correct(logits, torch.tensor([[1, -100]]))
        tensor([True])
        >>> TokenAnswers().symbols(logits, torch.tensor([[1, 1]]))
        tensor([0.5000])
    """

    def answers(self, outputs: Tensor) -> Tensor:
        """`(batch, length)`: the likeliest token of every position."""
        return outputs.argmax(-1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` bool: every position that is asked for is right."""
        return ((self.answers(outputs) == targets) | (targets == IGNORED)).flatten(1).all(1)

    def symbols(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)`: share of the positions asked for that are right; 1 where none is asked for."""
        asked = (targets != IGNORED).flatten(1)
        right = (self.answers(outputs) == targets).flatten(1) & asked
        return torch.where(asked.any(1), right.sum(1) / asked.sum(1).clamp(min=1), 1.0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)`: mean cross-entropy, in nats, over the positions asked for; 0 where none is."""
        lost = F.cross_entropy(outputs.float().mT, targets.long(), ignore_index=IGNORED, reduction="none")
        return lost.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)
