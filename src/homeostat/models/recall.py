"""The reference model: a convolutional cell that sees its input again at every step ("recall")."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Start

# Positions by which one step widens what a state depends on: one for each of the cell's two convolutions.
_REACH = 2


class RecallConfig(BaseModel):
    """Sizes of a `RecallNet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["recall"] = "recall"
    spatial_dims: Literal[1, 2]
    in_channels: int = Field(ge=1, le=1024)
    classes: int = Field(ge=2, le=4096)
    width: int = Field(default=32, ge=1, le=4096)


class RecallCell(nn.Module):
    """`z <- tanh(conv(relu(conv(z) + u)) + z)`: two convolutions of width 3, bounded by the outer tanh."""

    def __init__(self, convolution: type[nn.Module], width: int) -> None:
        super().__init__()
        self.inner = convolution(width, width, 3, padding=1)
        self.outer = convolution(width, width, 3, padding=1)

    def forward(self, state: Tensor, recalled: Tensor) -> Tensor:  # both (b width *space)
        hidden = torch.relu(self.inner(state) + recalled)
        return torch.tanh(self.outer(hidden) + state)


class RecallNet(nn.Module, IteratedModel):
    """Encoder, cell and decoder: `(batch, in_channels, *space)` to logits `(batch, classes, *space)`, any space.

    The context is the encoded input `u`, the state has the same shape, and the own start is zeros. With `damping` below
    1 a step goes only that share of the way to the cell's new state: the fixed points stay the same, and a model that
    would swing between two states can settle. Training uses whole steps.

    Example:
        >>> from homeostat.models import Own
        >>> net = RecallNet(RecallConfig(spatial_dims=1, in_channels=1, classes=2, width=8))
        >>> context = net.encode(torch.zeros(4, 1, 32))
        >>> net.decode(net.step(net.initial_state(context, Own()), context), context).shape
        torch.Size([4, 2, 32])
        >>> net.light_cone(31)  # steps before the last bit can depend on the first
        16
    """

    def __init__(
        self, config: RecallConfig, *, name: str = "recall", trained_steps: int | None = None, damping: float = 1.0
    ) -> None:
        super().__init__()
        convolution = nn.Conv1d if config.spatial_dims == 1 else nn.Conv2d
        self.config = config
        self.name = name
        self.trained_steps = trained_steps
        self.damping = damping
        self.encoder = convolution(config.in_channels, config.width, 3, padding=1)
        self.cell = RecallCell(convolution, config.width)
        self.decoder = convolution(config.width, config.classes, 1)

    def encode(self, inputs: Tensor) -> Tensor:
        return self.encoder(inputs)

    def initial_state(self, context: Tensor, start: Start) -> Any:
        return start.like(torch.zeros_like(context))

    def step(self, state: Tensor, context: Tensor) -> Tensor:
        new = self.cell(state, context)
        return new if self.damping == 1 else torch.lerp(state, new, self.damping)

    def decode(self, state: Tensor, context: Tensor) -> Tensor:
        return self.decoder(state)

    def light_cone(self, span: int) -> int:
        """After n steps a position depends on inputs at most 2n positions away: the encoder and the second
        convolution of the first step reach one each, and every later step reaches two more.
        """
        return -(-span // _REACH)
