"""The convolutional network that learns a few-shot task on small pictures."""

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from homeostat.errors import ContractError
from homeostat.tasks import FewShotTask


class ConvInner(BaseModel):
    """Blocks of a 3 x 3 convolution with stride 2, group normalisation and ReLU, then a linear map to the classes.

    The network that is usual for few-shot learning has four such blocks with batch normalisation (Vinyals et al. 2016;
    strided as in Finn et al. 2017). Here a block normalises each picture by itself: statistics over a batch would let
    the answer to a query depend on the other queries, and would be state that a task changes as it learns. The head
    begins at 0, so that before it has learned a task the network prefers no class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["conv"] = "conv"
    channels: int = Field(default=1, ge=1, le=1024)
    """Of the pictures."""
    side: int = Field(ge=1, le=4096)
    """Pixels of the pictures."""
    ways: int = Field(ge=2, le=4096)
    width: int = Field(default=32, ge=1, le=4096)
    """Channels of every block."""
    blocks: int = Field(default=4, ge=1, le=16)
    """Each halves the sides of the picture, rounding up."""
    groups: int = Field(default=1, ge=0, le=4096)
    """Of channels that are normalised together, a divisor of `width`; 0 leaves normalisation out."""

    classifies: ClassVar[bool] = True

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.groups and self.width % self.groups:
            raise ValueError(f"width {self.width} is not a multiple of groups {self.groups}")
        return self

    @classmethod
    def of(cls, task: FewShotTask, *, width: int = 32, blocks: int = 4, groups: int = 1) -> "ConvInner":
        """Sizes that fit a task.

        Example:
            >>> from homeostat.tasks import FewShotDigits
            >>> ConvInner.of(FewShotDigits(ways=3), blocks=2)
            ConvInner(kind='conv', channels=1, side=8, ways=3, width=32, blocks=2, groups=1)
        """
        side = task.picture_side()
        return cls(channels=task.channels, side=side, ways=task.ways, width=width, blocks=blocks, groups=groups)

    def check(self, pictures: Tensor) -> None:
        """Refuse pictures `(..., channels, height, width)` of another size.

        Raises:
            ContractError: naming both sizes.
        """
        expected, found = (self.channels, self.side, self.side), tuple(pictures.shape[-3:])
        if found != expected:
            one, other = (" x ".join(map(str, sizes)) for sizes in (expected, found))
            raise ContractError(f"the network takes pictures of {one}, channels first, and was given {other}")

    def build(self) -> nn.Module:
        """The module, `(samples, channels, side, side)` to logits `(samples, ways)`, with fresh weights.

        Example:
            >>> import torch
            >>> ConvInner(side=20, ways=5).build()(torch.zeros(3, 1, 20, 20))
            tensor([[0., 0., 0., 0., 0.],
                    [0., 0., 0., 0., 0.],
                    [0., 0., 0., 0., 0.]], grad_fn=<AddmmBackward0>)
        """
        parts: list[nn.Module] = []
        channels, side = self.channels, self.side
        for _ in range(self.blocks):
            parts.append(nn.Conv2d(channels, self.width, 3, stride=2, padding=1))
            if self.groups:
                parts.append(nn.GroupNorm(self.groups, self.width))
            parts.append(nn.ReLU())
            channels, side = self.width, -(-side // 2)
        head = nn.Linear(channels * side**2, self.ways)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return nn.Sequential(*parts, nn.Flatten(), head)
