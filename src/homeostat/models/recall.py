"""The reference model: a convolutional cell that sees its input again at every step ("recall")."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from homeostat.models.net import Net
from homeostat.models.starts import Start
from homeostat.tasks import LabelTask

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

    @classmethod
    def of(cls, task: LabelTask, *, width: int = 32) -> "RecallConfig":
        """Sizes that fit a task.

        Example:
            >>> from homeostat.tasks import Mazes
            >>> RecallConfig.of(Mazes(), width=8)
            RecallConfig(kind='recall', spatial_dims=2, in_channels=3, classes=2, width=8)
        """
        return cls(
            spatial_dims=task.spatial_dims,  # type: ignore[arg-type]
            in_channels=task.in_channels,
            classes=task.classes,
            width=width,
        )


class RecallCell(nn.Module):
    """`z <- tanh(conv(relu(conv(z) + u)) + z)`: two convolutions of width 3, bounded by the outer tanh."""

    def __init__(self, convolution: type[nn.Module], width: int) -> None:
        super().__init__()
        self.inner = convolution(width, width, 3, padding=1)
        self.outer = convolution(width, width, 3, padding=1)

    def forward(self, state: Tensor, recalled: Tensor) -> Tensor:  # both (b width *space)
        hidden = torch.relu(self.inner(state) + recalled)
        return torch.tanh(self.outer(hidden) + state)


class RecallNet(Net):
    """Encoder, cell and decoder: `(batch, in_channels, *space)` to logits `(batch, classes, *space)`, any space.

    The context is the encoded input `u`, the state has the same shape, and the own start is zeros.

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
        super().__init__(name=name, trained_steps=trained_steps, damping=damping)
        convolution = nn.Conv1d if config.spatial_dims == 1 else nn.Conv2d
        self.config = config
        self.encoder = convolution(config.in_channels, config.width, 3, padding=1)
        self.cell = RecallCell(convolution, config.width)
        self.decoder = convolution(config.width, config.classes, 1)

    def encode(self, inputs: Tensor) -> Tensor:
        return self.encoder(inputs)

    def initial_state(self, context: Tensor, start: Start) -> Any:
        return start.like(torch.zeros_like(context), lambda: self.projection(context))

    def projection(self, context: Tensor) -> Tensor:
        """The encoded input, which has the shape of the state."""
        return context

    def update(self, state: Tensor, context: Tensor) -> Tensor:
        return self.cell(state, context)

    def decode(self, state: Tensor, context: Tensor) -> Tensor:
        return self.decoder(state)

    def light_cone(self, span: int) -> int:
        """After n steps a position depends on inputs at most 2n positions away: the encoder and the second
        convolution of the first step reach one each, and every later step reaches two more.
        """
        return -(-span // _REACH)
