"""A module with a loop of its own, taken apart: `homeostat audit --model examples/loop_taken_apart.py:build`."""

import torch
from torch import nn

import homeostat as hs


class Flood(nn.Module):
    """The model as it stood in its repository: which open cells of a corridor can be reached from the start?"""

    def __init__(self, loops=8):
        super().__init__()
        self.loops = loops
        self.spread = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        nn.init.ones_(self.spread.weight)

    def cell(self, reached, x):  # the body of the loop, moved into a function of its own
        return (self.spread(reached) + x[:, 1:]).clamp(0, 1) * x[:, :1]

    def forward(self, x):  # (batch, 2, cells): what is open, and where the start is
        reached = torch.zeros_like(x[:, 1:])
        for _ in range(self.loops):
            reached = self.cell(reached, x)
        return reached[:, 0] > 0.5


def build():
    net = Flood().eval()
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x[:, 1:]),
        step=net.cell,
        decode=lambda reached, x: reached[:, 0] > 0.5,
        trained_steps=net.loops,
        name="flood",
    )
    model.correct = lambda outputs, targets: (outputs == targets).all(1)
    model.examples = {f"{n} cells": [corridors(n)] for n in (8, 32, 128)}
    return model


def corridors(cells, count=64):
    """Corridors with walls here and there; what can be reached lies between two walls."""
    walls = torch.rand(count, cells, generator=torch.Generator().manual_seed(cells)) < 2 / cells
    walls[:, cells // 2] = False
    start = torch.zeros(count, cells)
    start[:, cells // 2] = 1
    stretch = walls.cumsum(1)
    reached = (stretch == stretch[:, cells // 2, None]) & ~walls
    return torch.stack([(~walls).float(), start], 1), reached
