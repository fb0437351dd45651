"""Peaks of memory: what a solve needs beyond a bare loop, and whether training forgets how long it iterated.

On a CPU the peak is exact: torch's profiler records every allocation and release of torch's allocator, those inside an
operator included, and the peak is the largest running sum. (A dispatch mode with weak references would see only what
operators hand out, a resident set what the system has not taken back.) On a GPU the caching allocator counts itself.
"""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import homeostat as hs
from benchmarks import features, peers_torchdeq
from benchmarks.cells import CHAOTIC, Cell, bare_loop, conv, slow_conv
from benchmarks.results import Figure, Target

Run = Callable[[], object]


def peak_bytes(run: Run, device: str = "cpu") -> int:
    """Most bytes that `run` held at once, beyond what was there before it; its result is kept to the end.

    Example:
        >>> peak_bytes(lambda: torch.zeros(1000) + torch.zeros(1000))  # two terms and their sum
        12000
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = run()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del result
        return peak
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = run()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def _beyond(cell: Cell, run: Run, evaluations: int, device: str) -> float:
    """Peak of a run in states, less that of the bare loop."""
    return (peak_bytes(run, device) - peak_bytes(lambda: bare_loop(cell, evaluations), device)) / cell.state_bytes


def forward(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """States beyond a bare loop, conv cell, on maps that do not arrive; long enough for the cycle test to take part."""
    del share
    chaotic, slow = conv(CHAOTIC, device=device), slow_conv(device=device)
    for label, method, memory, compiled, limit, cell, evaluations in (
        ("Picard", hs.Picard(), None, False, 4, chaotic, 80),
        ("Picard, compiled", hs.Picard(), None, True, None, chaotic, 80),
        ("Anderson (memory 6)", hs.Anderson(memory=6), 6, False, 16, chaotic, 80),
        ("Anderson (memory 6), slow map", hs.Anderson(memory=6), 6, False, 16, slow, 80),
        ("Broyden, slow map", hs.Broyden(), None, False, None, slow, 40),
    ):
        family = type(method).__name__
        name = f"memory beyond a bare loop, conv cell, {evaluations} evaluations: {label}"
        rest: dict[str, Any] = {"unit": "states", "target": None if limit is None else Target(limit)}
        if peers_torchdeq.available() and not compiled:
            theirs = peers_torchdeq.overhead_run(family, cell, evaluations, memory)
            rest["peer"] = f"{_beyond(cell, theirs, evaluations, device):.2f}"
        if why := features.why_not(family) or (features.why_not_compiled() if compiled else ""):
            yield Figure.absent("memory", name, why, **rest)
            continue
        stop = hs.Stop(rtol=1e-6, max_steps=evaluations)
        options: dict[str, Any] = {"compile": True} if compiled else {}
        solutions: list[hs.Solution] = []

        def ours(
            cell: Cell = cell,
            method: Any = method,
            stop: hs.Stop = stop,
            options: dict[str, Any] = options,
            solutions: list[hs.Solution] = solutions,
        ) -> None:
            with torch.no_grad():
                solutions[:] = [hs.solve(cell.step, cell.state, cell.context, method=method, stop=stop, **options)]

        if compiled:
            ours()  # what the compiler makes is made once
            solutions.clear()
        beyond = _beyond(cell, ours, evaluations, device)
        early = int((solutions[0].status != hs.Status.MAX_STEPS).sum())
        note = f"{early} rows ended early" if early else ""
        yield Figure("memory", name, beyond, note=note, **rest)


def _slow_rotation(device: str) -> Cell:
    """`tanh(z Q + x)` with an orthogonal Q and a small state: it turns for thousands of steps and hardly shrinks."""
    draw = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(128, 128, generator=draw))
    weight = (0.9999 * turn).to(device).requires_grad_()
    state = (0.1 * torch.randn(64, 128, generator=draw)).to(device)
    context = (1e-3 * torch.randn(64, 128, generator=draw)).to(device)

    def step(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ weight + x)

    return Cell("MLP", step, state, context, {"weight": weight}, 0)


def _training_peak(cell: Cell, method: Any, gradient: Any, steps: int, device: str) -> tuple[int, float]:
    """Peak of forward and backward, and the share of steps that each row really took."""
    (weight,) = cell.weights.values()
    taken = []

    def run() -> None:
        solution = hs.solve(
            cell.step,
            cell.state,
            cell.context,
            method=method,
            stop=hs.Stop(rtol=1e-6, max_steps=steps),
            gradient=gradient,
        )
        solution.state.square().mean().backward()
        taken.append(float(solution.steps.double().mean()) / steps)
        weight.grad = None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows that do not converge are what is asked for
        if steps == min(_STEPS):
            run()
        peak = peak_bytes(run, device)
    return peak, taken[-1]


_STEPS = (10, 100, 1000)


def training(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """Peak of a training step against the number of steps; with Unrolled beside it, to show what growth looks like."""
    rotation, images = _slow_rotation(device), slow_conv(device=device, batch=4)
    images.weights["kernel"].requires_grad_()
    implicit = hs.Implicit(method=hs.Picard(), stop=hs.Stop(rtol=1e-6, max_steps=20))
    counts = _STEPS if share == 1 else _STEPS[:2]
    for label, cell, method, gradient, limit in (
        ("Implicit, Picard", rotation, hs.Picard(), implicit, 5.0),
        ("Implicit, Anderson", rotation, hs.Anderson(), implicit, 5.0),
        ("Implicit, Picard", images, hs.Picard(), implicit, 5.0),
        ("Unrolled, Picard", rotation, hs.Picard(), hs.Unrolled(), None),
    ):
        shown = counts if limit is not None else counts[:2]
        steps = ", ".join(str(n) for n in shown)
        name = f"training step, growth of peak memory at {steps} steps, {cell.name} cell: {label}"
        rest: dict[str, Any] = {"unit": "%", "target": None if limit is None else Target(limit)}
        if why := features.why_not(type(method).__name__):
            yield Figure.absent("memory", name, why, **rest)
            continue
        peaks, taken = zip(*(_training_peak(cell, method, gradient, n, device) for n in shown), strict=True)
        details = {"peak_bytes": list(peaks), "steps": list(shown), "share_of_steps_taken": list(taken)}
        if min(taken) < 1:
            why = f"rows stopped early: {min(taken):.0%} of the steps"
            yield Figure.absent("memory", name, why, details=details, **rest)
            continue
        note = " / ".join(f"{peak / 2**20:.2f}" for peak in peaks) + " MiB"
        yield Figure("memory", name, 100 * (max(peaks) / min(peaks) - 1), note=note, details=details, **rest)


def measure(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """Both."""
    yield from forward(device, share)
    yield from training(device, share)
