"""A batch in which one row is slow: what the others cost, in row-evaluations and in seconds."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import homeostat as hs
from benchmarks import features, peers_torchdeq
from benchmarks.cells import Counter, symmetric_kernel
from benchmarks.criteria import CRITERIA, Criterion
from benchmarks.results import Figure, Target
from benchmarks.timing import paired

_ROWS, _SLOW, _FAST = 64, 0.97, 0.3
_CONV = Criterion("relative", 1e-6)


def _gains(dtype: torch.dtype, device: str) -> Tensor:
    gains = torch.full((_ROWS,), _FAST, dtype=dtype, device=device)
    gains[_ROWS // 2] = _SLOW
    return gains


def linear(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """Row-evaluations of `z <- a z + x`."""
    del share
    if device != "cpu":  # they are the same anywhere
        return
    unknowns = 128
    source = torch.randn(_ROWS, unknowns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    context = (_gains(torch.float64, "cpu")[:, None], source)
    start = torch.zeros_like(source)

    def step(z: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        return at[0] * z + at[1]

    for criterion in CRITERIA:
        for method in (hs.Picard(), hs.Anderson()):
            label = type(method).__name__
            name = f"one row of {_ROWS} at {_SLOW}, others {_FAST}, to {criterion}: {label}"
            peer = ""
            if peers_torchdeq.available():
                counted = Counter(step)
                peers_torchdeq.solver(label, 2000, **criterion.theirs)(counted, start, context)
                peer = f"{_ROWS * counted.calls:,}"
            rest: dict[str, Any] = {"unit": "row-evaluations", "target": Target(1700), "peer": peer}
            if why := features.why_not(label):
                yield Figure.absent("batches", name, why, **rest)
                continue
            counted = Counter(step)  # by an outside count; the solution's own is beside it
            with torch.no_grad():
                hs.solve(counted, start, context, method=method, stop=hs.Stop(max_steps=1))
                counted.reset()
                found = hs.solve(counted, start, context, method=method, stop=criterion.ours(unknowns, 2000))
            details = {"steps": found.steps.tolist(), "row_evaluations": found.row_evaluations}
            value = float(counted.rows) if found.converged.all() else math.inf
            note = "" if counted.rows == found.row_evaluations else f"it says {found.row_evaluations:,} itself"
            yield Figure("batches", name, value, note=note, details=details, **rest)


def conv(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """Wall time of the same with a conv cell of 64 channels on 32x32."""
    name = f"one row of {_ROWS} at {_SLOW}, others {_FAST}, to {_CONV}, conv cell: times faster than torchdeq"
    target = Target(8, "at least")
    if not peers_torchdeq.available():
        yield Figure.absent("batches", name, peers_torchdeq.MISSING, target=target)
        return
    channels, side = (64, 32) if share == 1 else (16, 32)
    kernel = symmetric_kernel(channels, device)
    draw = torch.Generator().manual_seed(1)
    # Small, so that tanh stays close to linear and the gains are the rates.
    source = (0.01 * torch.randn(_ROWS, channels, side, side, generator=draw)).to(device)
    context = (_gains(torch.float32, device)[:, None, None, None], source)
    start = torch.zeros_like(source)

    def step(z: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        return torch.tanh(at[0] * F.conv2d(z, kernel, padding=1) + at[1])

    stop = _CONV.ours(source[0].numel(), 2000)
    solutions: dict[str, Any] = {}
    counted = Counter(step)

    def theirs() -> None:
        counted.calls = 0
        solutions["torchdeq"] = peers_torchdeq.solver("Picard", 2000, **_CONV.theirs)(counted, start, context)

    def ours() -> None:
        with torch.no_grad():
            solutions["ours"] = hs.solve(step, start, context, method=hs.Picard(), stop=stop)

    # What is divided by what is turned round here, so that the figure is how many times faster ours is.
    pairs = paired(ours, {"torchdeq": theirs}, device=device, seconds=1, least=2 if share == 1 else 1, warm_up=0)
    found = solutions["ours"]
    state, _ = solutions["torchdeq"]
    difference = (found.state - state).flatten(1).norm(dim=1) / state.flatten(1).norm(dim=1)
    details = {
        "row_evaluations": found.row_evaluations,
        "torchdeq_row_evaluations": _ROWS * counted.calls,
        "largest_relative_difference": float(difference.max()),
        "converged": bool(found.converged.all()),
        "channels": channels,
    }
    note = f"Picard both; {found.row_evaluations:,} row-evaluations against {_ROWS * counted.calls:,}"
    if not found.converged.all():
        yield Figure.absent("batches", name, "not all rows converged", target=target, details=details)
        return
    yield Figure.ratio("batches", name, pairs["torchdeq"], target=target, note=note, peer="1", details=details)


def measure(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """Both."""
    yield from linear(device, share)
    yield from conv(device, share)
