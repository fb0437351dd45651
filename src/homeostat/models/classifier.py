"""A classifier that thinks: the recall cell over space, and one label for the whole input."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from homeostat.models.net import Net
from homeostat.models.recall import RecallCell
from homeostat.models.starts import Start
from homeostat.tasks import LabelTask


class ClassifierConfig(BaseModel):
    """Sizes of a `ClassifierNet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classifier"] = "classifier"
    spatial_dims: Literal[1, 2]
    in_channels: int = Field(ge=1, le=1024)
    classes: int = Field(ge=2, le=4096)
    width: int = Field(default=32, ge=1, le=4096)
    grid: int = Field(default=2, ge=1, le=64)
    """Regions a side that the decoder tells apart; 1 averages over all of space."""

    @classmethod
    def of(cls, task: LabelTask, *, width: int = 32) -> "ClassifierConfig":
        """Sizes that fit a task.

        Example:
            >>> from homeostat.tasks import BlurryDigits
            >>> ClassifierConfig.of(BlurryDigits(), width=8)
            ClassifierConfig(kind='classifier', spatial_dims=2, in_channels=1, classes=10, width=8, grid=2)
        """
        return cls(
            spatial_dims=task.spatial_dims,  # type: ignore[arg-type]
            in_channels=task.in_channels,
            classes=task.classes,
            width=width,
        )


class ClassifierNet(Net):
    """Encoder, recall cell, pooling, linear map: `(batch, in_channels, *space)` to logits `(batch, classes)`.

    The context is the encoded input, the state has the same shape, `(batch, width, *space)`, and the own start is
    zeros. The answer comes from the means of the state over `grid` parts of each side, so that any space will do.

    Example:
        >>> import torch
        >>> from homeostat.models import Own
        >>> net = ClassifierNet(ClassifierConfig(spatial_dims=2, in_channels=1, classes=10, width=8))
        >>> context = net.encode(torch.zeros(4, 1, 8, 8))
        >>> net.decode(net.step(net.initial_state(context, Own()), context), context).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        config: ClassifierConfig,
        *,
        name: str = "classifier",
        trained_steps: int | None = None,
        damping: float = 1.0,
    ) -> None:
        super().__init__(name=name, trained_steps=trained_steps, damping=damping)
        convolution = nn.Conv1d if config.spatial_dims == 1 else nn.Conv2d
        self.config = config
        self.encoder = convolution(config.in_channels, config.width, 3, padding=1)
        self.cell = RecallCell(convolution, config.width)
        self.pool = (nn.AdaptiveAvgPool1d if config.spatial_dims == 1 else nn.AdaptiveAvgPool2d)(config.grid)
        self.decoder = nn.Linear(config.width * config.grid**config.spatial_dims, config.classes)

    def encode(self, inputs: Tensor) -> Tensor:
        return self.encoder(inputs)

    def initial_state(self, context: Tensor, start: Start) -> Any:
        return start.like(context.new_zeros(context.shape))

    def update(self, state: Tensor, context: Tensor) -> Tensor:
        return self.cell(state, context)

    def decode(self, state: Tensor, context: Tensor) -> Tensor:
        return self.decoder(self.pool(state).flatten(1))
