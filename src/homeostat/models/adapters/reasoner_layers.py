"""Layers of the recursive reasoners TRM, HRM and EqR, with the names that their checkpoints use.

Weights are kept in float32 and cast to the dtype of what they meet, as these models do.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, `(length, head size)` each, in float32."""


class CastLinear(nn.Module):
    """A linear map in the dtype of its input. Keys: `weight` `(out, in)`, and `bias` `(out,)` where it has one."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class SwiGLU(nn.Module):
    """`down(silu(gate) * up)`. Keys: `gate_up_proj.weight` `(2 inner, size)`, gate first; `down_proj.weight`."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = CastLinear(size, 2 * inner)
        self.down_proj = CastLinear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Attention(nn.Module):
    """Every position looks at every other. Keys: `qkv_proj.weight` `(3 size, size)`, all heads of q, then of k, then of
    v; `o_proj.weight` `(size, size)`.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = CastLinear(size, 3 * size)
        self.o_proj = CastLinear(size, size)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:  # (b n d)
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (b heads n d / heads)
        if rotation is not None:
            q, k = rotated(q, *rotation), rotated(k, *rotation)
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Mixing over positions, then over channels, each added to its input and normalised after that.

    Mixing over positions is attention (`self_attn.…`) or, with `tokens`, a SwiGLU along the sequence (`mlp_t.…`), whose
    length is then fixed.
    """

    def __init__(self, size: int, inner: int, *, heads: int, tokens: tuple[int, int] | None, eps: float) -> None:
        super().__init__()
        self.eps = eps
        if tokens is None:
            self.self_attn = Attention(size, heads)
        else:
            self.mlp_t = SwiGLU(*tokens)
        self.tokens = tokens
        self.mlp = SwiGLU(size, inner)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        if self.tokens is None:
            x = self._normed(x + self.self_attn(x, rotation))
        else:  # the norm too is taken along the sequence here
            x = x.mT
            x = self._normed(x + self.mlp_t(x)).mT
        return self._normed(x + self.mlp(x))

    def _normed(self, x: Tensor) -> Tensor:
        """RMS 1 along the last dimension, computed in float32, without learned gains."""
        wide = x.float()  # spelled out: the fused kernel rounds otherwise, and these maps amplify that
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Level(nn.Module):
    """A stack of blocks on `state + injection`. Keys: `layers.0.…`, `layers.1.…`."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, state: Tensor, injection: Tensor, rotation: Rotation | None) -> Tensor:
        x = state + injection
        for block in self.layers:
            x = block(x, rotation)
        return x


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: entries i and i + half of a section turn together, in float32.

    With tables of several sections (rotary positions in two dimensions), each section has halves of its own; `cos` and
    `sin` are then `(length, sections, size of a section)`.
    """
    sections = x.float().unflatten(-1, (1, -1) if cos.ndim == 2 else cos.shape[1:])
    cos, sin = (table.unsqueeze(1) if table.ndim == 2 else table for table in (cos, sin))
    first, second = sections.chunk(2, dim=-1)
    return (sections * cos + torch.cat([-second, first], dim=-1) * sin).flatten(-2).to(x.dtype)


def rotation_1d(length: int, size: int, base: float, device: torch.device) -> Rotation:
    """Tables `(length, size)` for positions 0, 1, … in a sequence."""
    angles = _angles(length, size, base, device)
    return angles.cos(), angles.sin()


def rotation_2d(height: int, width: int, size: int, base: float, device: torch.device) -> Rotation:
    """Tables `(height * width, 2, size / 2)` for a board read row by row: the first section turns with the row, the
    second with the column.
    """
    rows = _angles(height, size // 2, base, device).repeat_interleave(width, 0)
    columns = _angles(width, size // 2, base, device).repeat(height, 1)
    angles = torch.stack([rows, columns], dim=1)
    return angles.cos(), angles.sin()


def _angles(length: int, size: int, base: float, device: torch.device) -> Tensor:
    speeds = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), speeds)
    return torch.cat([angles, angles], dim=-1)
