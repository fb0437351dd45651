"""A cell on matrices: its state is driven by products with the input, so that iterative solvers can be expressed."""

import math
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from homeostat.models.net import Net
from homeostat.models.starts import Start

_LARGEST = 1000.0
"""Bound on the RMS of a state. Far above that of any solution, it only keeps a diverging cell finite."""


class MatrixConfig(BaseModel):
    """Sizes of a `MatrixNet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["matrix"] = "matrix"
    channels: int = Field(default=2, ge=1, le=256)
    """Matrices in the state, each with a velocity."""


class MatrixNet(Net):
    """Square matrices `(batch, n, n)` to square matrices of the same size, for any n.

    The context is the input u over its Frobenius norm. The state holds c channels of matrices z and as many velocities
    v, `(batch, 2c, n, n)`; the own start is zeros. With learned c x c maps A, B, C and a vector b, one step is

        v <- A v + B (u z) + C (z u) + b I,        z <- z + v,

    two matrix products a channel. Gradient descent with heavy-ball momentum (Polyak 1964) and stationary
    second-order Richardson iterations have this form; Newton's iteration has not, as it multiplies states with one
    another. For each input the step is affine in the state, hence a stable cell has one limit, whatever the start.
    Where z rests, v = 0 and B (u z) + C (z u) = -b I: every channel is then a multiple of the inverse of u, and what
    training has to find is stable maps and the right multiple. The answer is a learned mix of the z channels, in the
    scale of the input.

    Example:
        >>> from homeostat.models import Own
        >>> net = MatrixNet(MatrixConfig(channels=3))
        >>> context = net.encode(torch.eye(5).expand(2, 5, 5))
        >>> state = net.step(net.initial_state(context, Own()), context)
        >>> tuple(state.shape), tuple(net.decode(state, context).shape)
        ((2, 6, 5, 5), (2, 5, 5))
    """

    def __init__(
        self, config: MatrixConfig, *, name: str = "matrix", trained_steps: int | None = None, damping: float = 1.0
    ) -> None:
        super().__init__(name=name, trained_steps=trained_steps, damping=damping)
        c = config.channels
        self.config = config
        # A stable start: half the velocity is kept, both products pull back, and what drives the state counts for the
        # answer. Between the two signs of the answer lies a saddle that training crosses slowly.
        self.momentum = nn.Parameter(0.5 * torch.eye(c))
        self.left = nn.Parameter(-0.3 * torch.eye(c) + 0.1 / math.sqrt(c) * torch.randn(c, c))
        self.right = nn.Parameter(-0.3 * torch.eye(c) + 0.1 / math.sqrt(c) * torch.randn(c, c))
        self.drive = nn.Parameter(0.3 + 0.1 * torch.randn(c))
        self.readout = nn.Parameter(torch.full((c,), 1 / c))

    def encode(self, inputs: Tensor) -> dict[str, Tensor]:
        norm = torch.linalg.matrix_norm(inputs, keepdim=True)
        return {"matrix": inputs / norm, "norm": norm}

    def initial_state(self, context: dict[str, Tensor], start: Start) -> Any:
        rows, side, _ = context["matrix"].shape
        return start.like(context["matrix"].new_zeros(rows, 2 * self.config.channels, side, side))

    def update(self, state: Tensor, context: dict[str, Tensor]) -> Tensor:
        matrix = context["matrix"][:, None]
        position, velocity = state.chunk(2, dim=1)  # (b c n n) each
        products = torch.cat([velocity, matrix @ position, position @ matrix], dim=1)
        maps = torch.cat([self.momentum, self.left, self.right], dim=1)
        identity = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)
        velocity = torch.einsum("oc,bcij->boij", maps, products) + self.drive[:, None, None] * identity
        new = torch.cat([position + velocity, velocity], dim=1)
        rms = new.square().mean((1, 2, 3), keepdim=True).sqrt()
        return new * (_LARGEST / rms.clamp(min=_LARGEST))

    def decode(self, state: Tensor, context: dict[str, Tensor]) -> Tensor:
        position = state[:, : self.config.channels]
        # The inverse of u has entries of about n times those of one over a well-conditioned input's norm.
        return torch.einsum("c,bcij->bij", self.readout, position) * (state.shape[-1] / context["norm"])
