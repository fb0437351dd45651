"""The cells that everything is measured on.

A cell's gain is the size of its weights in units in which 1 is the edge of chaos for a random `tanh` net: below it the
iteration contracts, well above it the state moves for ever, so that no stopping test can end a run early. On such a map
a safeguarded method may hold its extrapolation back, and be cheap for that reason; so there are slow maps too, on which
acceleration is at work and does not arrive either.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Step = Callable[[Tensor, Any], Tensor]

CHAOTIC = 3.0
"""A gain at which the cells never settle. The benchmark verifies it on every run: no row may end before its steps."""

SLOW = 0.9999
"""The rate of maps that do contract, but are on their way for longer than anything here iterates."""

_SMALL = 1e-5


@dataclass(frozen=True)
class Cell:
    """An iterated map with its start, its context and the number of evaluations that it is timed over."""

    name: str
    step: Step
    state: Tensor
    context: Tensor
    weights: dict[str, Tensor]
    evaluations: int
    """Applications in one timed solve: many for a cheap cell, and enough on all that the slow tests take part."""

    @property
    def state_bytes(self) -> int:
        return self.state.numel() * self.state.element_size()


class Counter:
    """A map that counts how often it is applied, and to how many rows in all.

    At its first use the engine looks at it closely, by a few evaluations more; `reset` after that.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.reset()

    def reset(self) -> None:
        """Count from 0."""
        self.calls = 0
        self.rows = 0

    def __call__(self, state: Tensor, context: Any) -> Tensor:
        self.calls += 1
        self.rows += len(state)
        return self.step(state, context)


def bare_loop(cell: Cell, evaluations: int) -> Tensor:
    """What every ratio is a ratio to: the loop that one writes by hand, with no test in it."""
    state, step, context = cell.state, cell.step, cell.context
    with torch.no_grad():
        for _ in range(evaluations):
            state = step(state, context)
    return state


def mlp(gain: float, device: str = "cpu", seed: int = 0, batch: int = 64, width: int = 128) -> Cell:
    """`tanh(z W + x)`: so cheap that everything around it shows."""
    draw = torch.Generator().manual_seed(seed)
    weight = (torch.randn(width, width, generator=draw) * gain / math.sqrt(width)).to(device)
    state = torch.randn(batch, width, generator=draw).to(device)
    context = (0.5 * torch.randn(batch, width, generator=draw)).to(device)

    def step(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ weight + x)

    return Cell("MLP", step, state, context, {"weight": weight}, 200)


def two_layers(gain: float, device: str = "cpu", seed: int = 0, batch: int = 64, width: int = 128) -> Cell:
    """`tanh(relu(z V + x) W)`: the smallest cell with a hidden layer."""
    draw = torch.Generator().manual_seed(seed)
    size = gain / math.sqrt(width)
    hidden, weight = ((size * torch.randn(width, width, generator=draw)).to(device) for _ in range(2))
    state = torch.randn(batch, width, generator=draw).to(device)
    context = (0.5 * torch.randn(batch, width, generator=draw)).to(device)

    def step(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(torch.relu(z @ hidden + x) @ weight)

    return Cell("two-layer MLP", step, state, context, {"hidden": hidden, "weight": weight}, 200)


def conv(gain: float, device: str = "cpu", seed: int = 0, batch: int = 16, channels: int = 64, side: int = 32) -> Cell:
    """`tanh(conv3x3(z) + x)`: 65,536 unknowns an example, so that every pass over the state shows."""
    draw = torch.Generator().manual_seed(seed)
    kernel = (torch.randn(channels, channels, 3, 3, generator=draw) * gain / math.sqrt(9 * channels)).to(device)
    state = torch.randn(batch, channels, side, side, generator=draw).to(device)
    context = (0.5 * torch.randn(batch, channels, side, side, generator=draw)).to(device)

    def step(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(F.conv2d(z, kernel, padding=1) + x)

    return Cell("conv", step, state, context, {"kernel": kernel}, 40)


def transformer(
    gain: float, device: str = "cpu", seed: int = 0, batch: int = 8, tokens: int = 128, width: int = 256
) -> Cell:
    """A pre-norm block (attention with 4 heads, then an MLP) with the input injected; normalised at its end.

    The last normalisation keeps the state bounded: without it the residual stream of an untrained block grows with
    every step, and its relative change fades for that reason alone.
    """
    draw = torch.Generator().manual_seed(seed)
    heads = 4

    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=draw) * gain / math.sqrt(rows)).to(device)

    weights = {
        "qkv": matrix(width, 3 * width),
        "mix": matrix(width, width),
        "up": matrix(width, 4 * width),
        "down": matrix(4 * width, width),
    }
    state = torch.randn(batch, tokens, width, generator=draw).to(device)
    context = (0.5 * torch.randn(batch, tokens, width, generator=draw)).to(device)

    def step(z: Tensor, x: Tensor) -> Tensor:  # z, x: (b t d)
        z = z + x
        mixed = (F.layer_norm(z, (width,)) @ weights["qkv"]).unflatten(2, (3, heads, -1))  # (b t 3 h e)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)  # each (b h t e)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        z = z + attended @ weights["mix"]
        z = z + F.gelu(F.layer_norm(z, (width,)) @ weights["up"]) @ weights["down"]
        return F.layer_norm(z, (width,))

    return Cell("transformer", step, state, context, weights, 20)


def symmetric_kernel(channels: int, device: str = "cpu", side: int = 32) -> Tensor:
    """A 3x3 kernel whose convolution is symmetric with spectral radius 1, so that a factor before it is a rate."""
    draw = torch.Generator().manual_seed(0)
    kernel = torch.randn(channels, channels, 3, 3, generator=draw)
    kernel = (kernel + kernel.transpose(0, 1).flip(2, 3)).to(device)
    vector = torch.randn(1, channels, side, side, generator=draw).to(device)
    for _ in range(200):
        vector = F.conv2d(vector / vector.norm(), kernel, padding=1)
    return kernel / vector.norm()


def slow_mlp(device: str = "cpu", seed: int = 0, batch: int = 64, width: int = 128) -> Cell:
    """The MLP cell with a symmetric matrix, eigenvalues evenly spaced up to `SLOW`, close to where tanh is linear."""
    draw = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=draw))
    weight = (basis @ torch.diag(torch.linspace(0, SLOW, width)) @ basis.T).to(device)
    context = (_SMALL * torch.randn(batch, width, generator=draw)).to(device)

    def step(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ weight + x)

    return Cell("MLP", step, torch.zeros_like(context), context, {"weight": weight}, 60)


def slow_conv(device: str = "cpu", seed: int = 0, batch: int = 16, channels: int = 64, side: int = 32) -> Cell:
    """The conv cell with a symmetric convolution of spectral radius `SLOW`, close to where tanh is linear."""
    draw = torch.Generator().manual_seed(seed)
    kernel = SLOW * symmetric_kernel(channels, device, side)
    context = (_SMALL * torch.randn(batch, channels, side, side, generator=draw)).to(device)

    def step(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(F.conv2d(z, kernel, padding=1) + x)

    return Cell("conv", step, torch.zeros_like(context), context, {"kernel": kernel}, 40)


CELLS: dict[str, Callable[..., Cell]] = {
    "MLP": mlp,
    "two-layer MLP": two_layers,
    "conv": conv,
    "transformer": transformer,
}

SLOW_CELLS: dict[str, Callable[..., Cell]] = {"MLP": slow_mlp, "conv": slow_conv}
