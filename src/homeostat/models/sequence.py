"""A sequence equilibrium model: one transformer layer, applied again and again with its input injected at every step.

After the DEQ-transformer of "Deep equilibrium models" (Bai, Kolter, Koltun, NeurIPS 2019, arXiv 1909.01377): the same
weights in every step, the embedded sequence added before each, norms after each half of the layer. Positions are rotary
(Su et al., arXiv 2104.09864), so that any length will do; there is no memory of earlier segments.
"""

from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat.models.net import Net
from homeostat.models.starts import Start
from homeostat.tasks import Text

_BASE = 10_000.0
"""Of the wavelengths of rotary positions."""


class SequenceConfig(BaseModel):
    """Sizes of a `SequenceNet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sequence"] = "sequence"
    classes: int = Field(ge=2, le=2**20)
    """Symbols that there are, in the input and in the answer."""
    width: int = Field(default=64, ge=2, le=4096)
    heads: int = Field(default=4, ge=1, le=256)
    hidden: int = Field(default=128, ge=1, le=65536)
    """Width inside the two-layer network."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be an even number for each of the {self.heads} heads")
        return self

    @classmethod
    def of(cls, task: Text, **sizes: int) -> "SequenceConfig":
        """Sizes that fit a task.

        Example:
            >>> from homeostat.tasks import Text
            >>> SequenceConfig.of(Text(), width=32)
            SequenceConfig(kind='sequence', classes=256, width=32, heads=4, hidden=128)
        """
        return cls.model_validate({"classes": task.classes, **sizes})


class CausalAttention(nn.Module):
    """Every position hears of itself and of those before it."""

    frequencies: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inner = nn.Linear(width, 3 * width, bias=False)
        self.outer = nn.Linear(width, width, bias=False)
        half = width // heads // 2
        self.register_buffer("frequencies", _BASE ** (-torch.arange(half) / half), persistent=False)

    def forward(self, sequence: Tensor) -> Tensor:  # (b l width)
        query, key, value = self.inner(sequence).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (b h l d)
        length = sequence.shape[1]
        places = torch.arange(length, device=sequence.device)
        angles = places[:, None] * self.frequencies
        turn = (angles.cos().to(sequence.dtype), angles.sin().to(sequence.dtype))
        scores = _turned(query, *turn) @ _turned(key, *turn).mT / query.shape[-1] ** 0.5
        weights = scores.masked_fill(places[:, None] < places, float("-inf")).softmax(-1)
        return self.outer((weights @ value).transpose(1, 2).flatten(2))


def _turned(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: the halves of each vector as pairs, turned by an angle that grows with the position."""
    a, b = vectors.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class SequenceNet(Net):
    """`(batch, length)` int64 symbols to logits `(batch, classes, length)` of the symbol after each, for any length.

    The context is the embedded sequence `u`, `(batch, length, width)`; the state has the same shape, and its own start
    is zeros. A step is `a = norm(y + attention(y))` with `y = z + u`, then `norm(a + mlp(a))`: the norm at the end
    keeps states bounded over any number of steps. What stands later in a sequence never changes an earlier answer.

    Example:
        >>> from homeostat.models import Own
        >>> net = SequenceNet(SequenceConfig(classes=5, width=8, heads=2))
        >>> context = net.encode(torch.tensor([[0, 4, 1]]))
        >>> net.decode(net.step(net.initial_state(context, Own()), context), context).shape
        torch.Size([1, 5, 3])
    """

    def __init__(
        self,
        config: SequenceConfig,
        *,
        name: str = "sequence",
        trained_steps: int | None = None,
        damping: float = 1.0,
    ) -> None:
        super().__init__(name=name, trained_steps=trained_steps, damping=damping)
        self.config = config
        self.embedding = nn.Embedding(config.classes, config.width)
        self.attention = CausalAttention(config.width, config.heads)
        self.inner, self.outer = nn.Linear(config.width, config.hidden), nn.Linear(config.hidden, config.width)
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(2))
        self.decoder = nn.Linear(config.width, config.classes)

    def encode(self, inputs: Tensor) -> Tensor:
        return self.embedding(inputs)

    def initial_state(self, context: Tensor, start: Start) -> Any:
        return start.like(torch.zeros_like(context), lambda: self.projection(context))

    def projection(self, context: Tensor) -> Tensor:
        """The embedded sequence, which has the shape of the state."""
        return context

    def update(self, state: Tensor, context: Tensor) -> Tensor:
        heard = state + context
        heard = self.norms[0](heard + self.attention(heard))
        return self.norms[1](heard + self.outer(F.gelu(self.inner(heard))))

    def decode(self, state: Tensor, context: Tensor) -> Tensor:
        return self.decoder(state).mT
