"""A multiscale deep equilibrium model: one state at several resolutions, all of them updated in every step.

After "Multiscale deep equilibrium models" (Bai, Koltun, Kolter, NeurIPS 2020, arXiv 2006.08656), at the size of small
pictures: fewer channels, one residual block at each scale, one convolution for each way between two of them.
"""

from math import gcd
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat.models.net import Net
from homeostat.models.starts import Start
from homeostat.tasks import LabelTask

State = tuple[Tensor, ...]


class MultiscaleConfig(BaseModel):
    """Sizes of a `MultiscaleNet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["multiscale"] = "multiscale"
    in_channels: int = Field(ge=1, le=1024)
    classes: int = Field(ge=2, le=4096)
    widths: tuple[int, ...] = Field(default=(16, 24), min_length=1, max_length=6)
    """Channels at each scale, that of the picture first; each scale has half the side of the one before."""
    groups: int = Field(default=4, ge=1, le=1024)
    """Groups of channels that are normalised together, at most; the most that divide the channels are taken."""
    grid: int = Field(default=2, ge=1, le=64)
    """Regions a side that the decoder tells apart at each scale; 1 averages over all of space."""

    @field_validator("widths")
    @classmethod
    def _possible(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= width <= 4096 for width in widths):
            raise ValueError(f"widths must be channels from 1 to 4096, not {widths}")
        return widths

    @classmethod
    def of(cls, task: LabelTask, *, widths: tuple[int, ...] = (16, 24)) -> "MultiscaleConfig":
        """Sizes that fit a task.

        Example:
            >>> from homeostat.tasks import Images
            >>> MultiscaleConfig.of(Images(), widths=(8, 12))
            MultiscaleConfig(kind='multiscale', in_channels=1, classes=10, widths=(8, 12), groups=4, grid=2)
        """
        return cls(in_channels=task.in_channels, classes=task.classes, widths=widths)


class ResidualBlock(nn.Module):
    """`norm(relu(z + norm(conv(relu(norm(conv(z))))) + u))`; `u`, the input, comes in at the finest scale alone."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.inner, self.outer = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(_norm(width, groups) for _ in range(3))

    def forward(self, state: Tensor, injected: Tensor | None) -> Tensor:  # (b width h w)
        hidden = torch.relu(self.norms[0](self.inner(state)))
        hidden = state + self.norms[1](self.outer(hidden))
        return self.norms[2](torch.relu(hidden if injected is None else hidden + injected))


class Fusion(nn.Module):
    """From every scale to every other, summed: strided convolutions down, one convolution and nearest pixels up."""

    def __init__(self, widths: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.ways = nn.ModuleList(
            nn.ModuleList(_way(widths, source, target, groups) for source in range(len(widths)))
            for target in range(len(widths))
        )
        self.norms = nn.ModuleList(_norm(width, groups) for width in widths)

    def forward(self, state: State) -> State:
        fused = []
        for target, own in enumerate(state):
            heard = own
            for source, other in enumerate(state):
                if source != target:
                    heard = heard + _sized(self.ways[target][source](other), own.shape[2:])  # type: ignore[index]
            fused.append(self.norms[target](torch.relu(heard)))
        return tuple(fused)


def _way(widths: tuple[int, ...], source: int, target: int, groups: int) -> nn.Module:
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(nn.Conv2d(widths[source], widths[target], 1, bias=False), _norm(widths[target], groups))
    layers: list[nn.Module] = []
    for scale in range(source, target):
        last = scale + 1 == target
        width = widths[target] if last else widths[source]
        layers += [nn.Conv2d(widths[source], width, 3, stride=2, padding=1, bias=False), _norm(width, groups)]
        layers += [] if last else [nn.ReLU()]
    return nn.Sequential(*layers)


def _sized(scale: Tensor, space: torch.Size) -> Tensor:
    return scale if scale.shape[2:] == space else F.interpolate(scale, size=space, mode="nearest")


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(width, groups), width)


class MultiscaleNet(Net):
    """`(batch, in_channels, height, width)`, of any size, to logits `(batch, classes)`.

    The context is the encoded picture, `(batch, widths[0], height, width)`. The state is a tuple, a tensor
    `(batch, widths[i], height / 2**i, width / 2**i)`, rounded up, for each scale; the own start is zeros. A step is a
    residual block at every scale, then the fusion of all scales; it ends with a group norm, so that states stay bounded
    over any number of steps. The answer comes from the means of every scale over `grid` parts of each side.

    Example:
        >>> from homeostat.models import Own
        >>> net = MultiscaleNet(MultiscaleConfig(in_channels=1, classes=10, widths=(8, 12)))
        >>> context = net.encode(torch.zeros(2, 1, 8, 8))
        >>> state = net.step(net.initial_state(context, Own()), context)
        >>> [tuple(scale.shape) for scale in state], tuple(net.decode(state, context).shape)
        ([(2, 8, 8, 8), (2, 12, 4, 4)], (2, 10))
    """

    def __init__(
        self,
        config: MultiscaleConfig,
        *,
        name: str = "multiscale",
        trained_steps: int | None = None,
        damping: float = 1.0,
    ) -> None:
        super().__init__(name=name, trained_steps=trained_steps, damping=damping)
        widths = config.widths
        self.config = config
        self.encoder = nn.Sequential(
            nn.Conv2d(config.in_channels, widths[0], 3, padding=1, bias=False), _norm(widths[0], config.groups)
        )
        self.blocks = nn.ModuleList(ResidualBlock(width, config.groups) for width in widths)
        self.fusion = Fusion(widths, config.groups)
        self.pool = nn.AdaptiveAvgPool2d(config.grid)
        self.decoder = nn.Linear(sum(widths) * config.grid**2, config.classes)

    def encode(self, inputs: Tensor) -> Tensor:
        return self.encoder(inputs)

    def initial_state(self, context: Tensor, start: Start) -> Any:
        rows, _, height, width = context.shape
        scales = []
        for channels in self.config.widths:
            scales.append(context.new_zeros(rows, channels, height, width))
            height, width = -(-height // 2), -(-width // 2)
        return start.like(tuple(scales))

    def update(self, state: State, context: Tensor) -> State:
        blocks = zip(self.blocks, state, strict=True)
        return self.fusion(tuple(block(scale, None if i else context) for i, (block, scale) in enumerate(blocks)))

    def decode(self, state: State, context: Tensor) -> Tensor:
        return self.decoder(torch.cat([self.pool(scale).flatten(1) for scale in state], dim=1))
