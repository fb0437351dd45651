"""A model whose courses are known in closed form, for tests of policies."""

import torch
from torch import Tensor, nn

import homeostat as hs


class Countdown(nn.Module, hs.IteratedModel):
    """Example x is answered right from step ceil(x) on: its state counts steps, its logits favour class 1 by the steps
    beyond x. The residual after step t is 1 / t; the score is the margin; negative inputs fail at step -x.
    """

    name, trained_steps = "countdown", 4

    def __init__(self, sharpness: float = 1.0) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def encode(self, inputs: Tensor) -> Tensor:
        return inputs

    def initial_state(self, context: Tensor, start: hs.models.Start) -> Tensor:
        return start.like(torch.zeros_like(context))

    def step(self, state: Tensor, context: Tensor) -> Tensor:
        return torch.where((context < 0) & (state + 1 >= -context), float("nan"), state + 1)

    def decode(self, state: Tensor, context: Tensor) -> Tensor:
        margin = self.sharpness * (state - context + 0.5)
        return torch.stack([-margin, margin], 1)

    def score(self, state: Tensor, context: Tensor) -> Tensor:
        return (state - context).squeeze(1)


class One:
    """Class 1 is right."""

    def answers(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).all(1)


def numbers(count: int, most: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Whole numbers from 1 to `most`, and the targets."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(1, most + 1, (count, 1), generator=draw).float()
    return x, torch.ones_like(x, dtype=torch.int64)
