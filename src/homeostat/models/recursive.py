"""A tiny recursive model for grids with boxes: an answer and a latent, refined in turns by one small network.

After the Tiny Recursive Model (Jolicoeur-Martineau, "Less is more: recursive reasoning with tiny networks", arXiv
2510.04871), said in the terms of the contract: the state is the pair of answer and latent; one step refines the latent
several times from question, answer and latent, and then the answer from answer and latent. Two things differ. Cells
exchange what they know by the means of their rows, columns and boxes, where that model has attention or a mixer over
all cells: fewer weights, no positions to learn, and every symmetry of a sudoku that moves cells moves the answer along.
And there is no head that learns when to halt: `score` is the confidence of the answer.
"""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat.models.net import Net
from homeostat.models.starts import Start
from homeostat.tasks import LabelTask
from homeostat.tasks.sudoku_geometry import geometry


class RecursiveConfig(BaseModel):
    """Sizes of a `RecursiveNet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["recursive"] = "recursive"
    in_channels: int = Field(ge=1, le=1024)
    classes: int = Field(ge=2, le=4096)
    width: int = Field(default=64, ge=1, le=4096)
    hidden: int = Field(default=128, ge=1, le=65536)
    """Width inside a layer."""
    layers: int = Field(default=1, ge=1, le=64)
    """Layers of the network that refines."""
    refinements: int = Field(default=2, ge=1, le=64)
    """Times a step refines the latent before it refines the answer."""

    @classmethod
    def of(cls, task: LabelTask, **sizes: int) -> "RecursiveConfig":
        """Sizes that fit a task.

        Example:
            >>> from homeostat.tasks import Sudoku
            >>> RecursiveConfig.of(Sudoku(side=6), width=32).in_channels
            7
        """
        return cls.model_validate({"in_channels": task.in_channels, "classes": task.classes, **sizes})


class UnitLayer(nn.Module):
    """`h <- norm(h + outer(silu(inner(h, mean of its row, mean of its column, mean of its box))))` for every cell."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.Linear(width, hidden)
        self.row, self.column, self.box = (nn.Linear(width, hidden, bias=False) for _ in range(3))
        self.outer = nn.Linear(hidden, width, bias=False)

    def forward(self, cells: Tensor) -> Tensor:  # (b side side width)
        geo = geometry(cells.shape[1])
        boxes = cells.unflatten(1, (-1, geo.box_rows)).unflatten(3, (-1, geo.box_columns))  # (b bands r stacks c width)
        # A linear map of a mean is cheaper than the mean of a linear map.
        box = self.box(boxes.mean((2, 4), keepdim=True)).expand(-1, -1, geo.box_rows, -1, geo.box_columns, -1)
        heard = self.row(cells.mean(2, keepdim=True)) + self.column(cells.mean(1, keepdim=True))
        heard = heard + box.flatten(3, 4).flatten(1, 2)
        return normalised(cells + self.outer(F.silu(self.cell(cells) + heard)))


def normalised(cells: Tensor) -> Tensor:
    """Every cell at RMS 1, so that states stay bounded over any number of steps."""
    return F.rms_norm(cells, cells.shape[-1:])


class RecursiveNet(Net):
    """`(batch, in_channels, side, side)` to logits `(batch, classes, side, side)`, for a side that has boxes (4, 6, 9).

    The context is the encoded question; the state is a pair (answer, latent) of its shape, `(batch, side, side,
    width)`; the own start of both is zeros. `unit_cost` counts layers.

    Example:
        >>> from homeostat.models import Own
        >>> net = RecursiveNet(RecursiveConfig(in_channels=5, classes=4, width=8))
        >>> context = net.encode(torch.zeros(2, 5, 4, 4))
        >>> state = net.step(net.initial_state(context, Own()), context)
        >>> [tuple(leaf.shape) for leaf in state], tuple(net.decode(state, context).shape)
        ([(2, 4, 4, 8), (2, 4, 4, 8)], (2, 4, 4, 4))
        >>> net.unit_cost  # two refinements of the latent and one of the answer, one layer each
        3.0
    """

    def __init__(
        self,
        config: RecursiveConfig,
        *,
        name: str = "recursive",
        trained_steps: int | None = None,
        damping: float = 1.0,
    ) -> None:
        super().__init__(name=name, trained_steps=trained_steps, damping=damping)
        self.config = config
        self.encoder = nn.Linear(config.in_channels, config.width)
        self.layers = nn.Sequential(*(UnitLayer(config.width, config.hidden) for _ in range(config.layers)))
        self.decoder = nn.Linear(config.width, config.classes)
        self.unit_cost = float((config.refinements + 1) * config.layers)

    def encode(self, inputs: Tensor) -> Tensor:
        return normalised(self.encoder(inputs.movedim(1, -1)))

    def initial_state(self, context: Tensor, start: Start) -> Any:
        return start.like((torch.zeros_like(context), torch.zeros_like(context)))

    def update(self, state: tuple[Tensor, Tensor], context: Tensor) -> tuple[Tensor, Tensor]:
        answer, latent = state
        for _ in range(self.config.refinements):
            latent = self.layers(latent + answer + context)
        return self.layers(answer + latent), latent

    def decode(self, state: tuple[Tensor, Tensor], context: Tensor) -> Tensor:
        return self.decoder(state[0]).movedim(-1, 1)

    def score(self, state: tuple[Tensor, Tensor], context: Tensor) -> Tensor:
        """`(batch,)`: log-probability of the answer in its least certain cell; at most 0, larger is surer."""
        return self.decode(state, context).log_softmax(1).amax(1).flatten(1).amin(1)
