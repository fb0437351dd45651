"""Random maps on which acceleration is held against plain iteration, fixed by their family and seed alone.

How they are drawn, written down before any of them was solved:

* families: linear (dense Gaussian or symmetric, scaled to a spectral radius), triangular (upper, so that its powers
  grow before they decay), tanh (Gaussian weights), conv (`tanh` of a 3x3 convolution);
* unknowns, rates, gains and starts are random; `1 - rate` is log-uniform on [0.01, 0.5];
* every map is conjugated by a scale log-uniform on [1e-3, 1e3]: `z <- s f(z / s)`;
* float64, one example each, to a relative residual of 1e-6;
* a map belongs to the set where plain iteration converges within `LIMIT` steps; seeds go up from 0 until each family
  has its share, and what was left out is counted.

Slow maps, on which the same extrapolation is run with and without its safeguard: eigenvalues from 0 to a rate close to
1, linear and as `tanh` cells.

Beside them, shifts: `z <- S z + b` with `S` the shift of length n, which plain iteration solves in n + 1 steps (the
last one sees that nothing changes) and which nothing solves in less than about n.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LIMIT = 1000
RTOL = 1e-6
SHIFTS = range(32, 129)
_SMALL = 1e-5


@dataclass(frozen=True)
class RandomMap:
    """A map with its start; `name` says all that is needed to draw it again."""

    name: str
    step: Callable[[Tensor, Tensor], Tensor]
    state: Tensor
    source: Tensor


def _uniform(draw: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=draw, dtype=torch.float64))


def _log_uniform(draw: torch.Generator, low: float, high: float) -> float:
    return math.exp(_uniform(draw, math.log(low), math.log(high)))


def _normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _linear(draw: torch.Generator) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...]]:
    unknowns = round(_log_uniform(draw, 4, 256))
    matrix = _normal(draw, unknowns, unknowns)
    if _uniform(draw, 0, 1) < 0.5:
        matrix = matrix + matrix.T
    matrix *= (1 - _log_uniform(draw, 0.01, 0.5)) / torch.linalg.eigvals(matrix).abs().max()
    return lambda z: z @ matrix, (unknowns,)


def _triangular(draw: torch.Generator) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...]]:
    unknowns = round(_log_uniform(draw, 4, 64))
    rate = 1 - _log_uniform(draw, 0.01, 0.5)
    coupling = _uniform(draw, 0.2, 2.0) / math.sqrt(unknowns)
    matrix = torch.triu(coupling * _normal(draw, unknowns, unknowns), diagonal=1)
    matrix += torch.diag(rate * (2 * torch.rand(unknowns, generator=draw, dtype=torch.float64) - 1))
    return lambda z: z @ matrix, (unknowns,)


def _tanh(draw: torch.Generator) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...]]:
    unknowns = round(_log_uniform(draw, 4, 256))
    matrix = _normal(draw, unknowns, unknowns) * _uniform(draw, 0.3, 1.3) / math.sqrt(unknowns)
    return lambda z: torch.tanh(z @ matrix), (unknowns,)


def _conv(draw: torch.Generator) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...]]:
    channels, side = round(_log_uniform(draw, 2, 8)), round(_log_uniform(draw, 4, 16))
    kernel = _normal(draw, channels, channels, 3, 3) * _uniform(draw, 0.3, 1.3) / math.sqrt(9 * channels)
    return lambda z: torch.tanh(F.conv2d(z, kernel, padding=1)), (channels, side, side)


FAMILIES = {"linear": _linear, "triangular": _triangular, "tanh": _tanh, "conv": _conv}


def random_map(family: str, seed: int) -> RandomMap:
    """The map of a family with a seed."""
    draw = torch.Generator().manual_seed(seed)
    inner, shape = FAMILIES[family](draw)
    scale = _log_uniform(draw, 1e-3, 1e3)
    source = _uniform(draw, 0.1, 1.0) * _normal(draw, 1, *shape)
    start = _normal(draw, 1, *shape) * (0.0 if _uniform(draw, 0, 1) < 0.5 else 1.0)
    size = "x".join(str(n) for n in shape)
    return RandomMap(
        f"{family} {seed} ({size}, scale {scale:.0e})",
        lambda z, x: scale * (inner(z / scale) + x),
        scale * start,
        source,
    )


def shift(length: int) -> RandomMap:
    """The shift of a length, with a random source."""
    source = _normal(torch.Generator().manual_seed(length), 1, length)
    return RandomMap(f"shift {length}", lambda z, b: F.pad(z[:, :-1], (1, 0)) + b, torch.zeros_like(source), source)


def slow_tanh(rate: float, seed: int, unknowns: int = 128) -> RandomMap:
    """`tanh(z W + x)` close to where tanh is linear; W symmetric, eigenvalues evenly spaced from 0 to the rate."""
    draw = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(_normal(draw, unknowns, unknowns))
    weight = basis @ torch.diag(torch.linspace(0, rate, unknowns, dtype=torch.float64)) @ basis.T
    source = _SMALL * _normal(draw, 1, unknowns)
    return RandomMap(
        f"slow tanh {rate}, {seed}", lambda z, x: torch.tanh(z @ weight + x), torch.zeros_like(source), source
    )


def slow_conv(rate: float, seed: int, channels: int = 8, side: int = 12) -> RandomMap:
    """`tanh(conv3x3(z) + x)` close to where tanh is linear; the convolution symmetric, its spectral radius the rate."""
    draw = torch.Generator().manual_seed(seed)
    kernel = _normal(draw, channels, channels, 3, 3)
    kernel = kernel + kernel.transpose(0, 1).flip(2, 3)
    vector = _normal(draw, 1, channels, side, side)
    for _ in range(200):
        vector = F.conv2d(vector / vector.norm(), kernel, padding=1)
    kernel = rate * kernel / vector.norm()
    source = _SMALL * _normal(draw, 1, channels, side, side)
    return RandomMap(
        f"slow conv {rate}, {seed}",
        lambda z, x: torch.tanh(F.conv2d(z, kernel, padding=1) + x),
        torch.zeros_like(source),
        source,
    )


def spectrum(rate: float, seed: int, unknowns: int = 128) -> RandomMap:
    """A symmetric matrix with eigenvalues evenly spaced from 0 to the rate, in a random basis."""
    draw = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(_normal(draw, unknowns, unknowns))
    matrix = basis @ torch.diag(torch.linspace(0, rate, unknowns, dtype=torch.float64)) @ basis.T
    source = _normal(draw, 1, unknowns)
    return RandomMap(f"spectrum {rate}, {seed}", lambda z, b: z @ matrix + b, torch.zeros_like(source), source)
