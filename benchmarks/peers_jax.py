"""Whole solves against jaxopt and optimistix, and the agreement of gradients with jaxopt.

They run in another process and environment (`make bench-jax`); without it these lines say so. A run of ours alternates
with a run of theirs: while one computes the other waits, each on one thread (theirs is pinned to one core and compiled
without XLA's own threads; processor time over wall time is in the results, and is 1 at most). All stop at the same
residual: ours for each row, theirs for the batch as one.
"""

import json
import math
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import homeostat as hs
from benchmarks import features
from benchmarks.cells import Cell, bare_loop, conv, mlp
from benchmarks.results import Figure, Target
from benchmarks.timing import Spread, clock, interleaved

_FOLDER = Path(__file__).parent / "jax_peers"
_VARIABLE = "BENCH_JAX_PYTHON"
_TOLERANCE, _LIMIT, _GAIN = 1e-5, 500, 1.0
_AGREEMENT = 1e-5


def interpreter() -> Path | None:
    """Python of the JAX environment: where `make bench-jax` puts it, or as an environment variable says."""
    path = Path(os.environ.get(_VARIABLE, Path(__file__).parents[1] / ".venv-jax" / "bin" / "python"))
    return path if path.exists() else None


class PeerError(RuntimeError):
    """The other side said that something failed."""


class Peer:
    """The process with the JAX libraries; `with` ends it."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [str(python), str(_FOLDER / "peer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Send an order and wait for its answer.

        Raises:
            PeerError: what went wrong over there.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"the JAX process ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer


def _hand_over(peer: Peer, cell: Cell, aim: torch.Tensor, folder: Path) -> None:
    path = folder / f"{cell.name}.npz"
    (weight,) = cell.weights.values()
    arrays = {"weight": weight.detach(), "state": cell.state, "context": cell.context, "aim": aim}
    np.savez(path, allow_pickle=False, **{name: array.numpy() for name, array in arrays.items()})
    peer.ask("load", cell=cell.name, path=str(path))


def _residual(cell: Cell, state: torch.Tensor) -> float:
    with torch.no_grad():
        after = cell.step(state, cell.context)
    return float((after - state).norm() / after.norm())


def _solves(peer: Peer, cell: Cell, folder: Path, seconds: float) -> Iterator[Figure]:
    """Every solver of theirs against ours, eager and compiled."""
    limit = bare_loop(cell, 1000 if cell.name == "MLP" else 120)
    norm_tolerance = _TOLERANCE * float(limit.norm())
    tolerances = {
        "norm_tolerance": norm_tolerance,
        "rms_tolerance": norm_tolerance / math.sqrt(limit.numel()),
        "limit": _LIMIT,
    }
    stop = hs.Stop(rtol=_TOLERANCE, max_steps=_LIMIT)
    solvers: list[tuple[str, Any]] = [("jaxopt Picard", hs.Picard()), ("optimistix Picard", hs.Picard())]
    if (
        cell.name == "MLP"
    ):  # jaxopt's Anderson takes five seconds on the conv cell, too long for a line without a target
        solvers.append(("jaxopt Anderson", hs.Anderson(memory=6)))
    for theirs, method in solvers:
        family = type(method).__name__
        path = folder / "state.npz"
        iterations = peer.ask("prepare", solver=theirs, out=str(path), **tolerances)["iterations"]
        with np.load(path) as file:
            reached = _residual(cell, torch.from_numpy(file["state"]))
        once = peer.ask("run", solver=theirs, repeats=1)["seconds"]
        repeats = max(1, min(50, round(0.02 / once)))  # readings of 20 ms at least: the clock is no part of it
        threads: list[float] = []

        def their_clock(theirs: str = theirs, repeats: int = repeats, threads: list[float] = threads) -> float:
            answer = peer.ask("run", solver=theirs, repeats=repeats)
            threads.append(answer["threads"])
            return answer["seconds"]

        clocks: dict[str, Callable[[], float]] = {}
        taken: dict[str, int] = {}
        missing: dict[str, str] = {}
        for label, options in (("compiled", {"compile": True}), ("eager", {})):
            why = features.why_not(family) or (features.why_not_compiled() if options else "")
            if why:
                missing[label] = why
                continue

            def ours(method: Any = method, options: dict[str, Any] = options) -> hs.Solution:
                with torch.no_grad():
                    return hs.solve(cell.step, cell.state, cell.context, method=method, stop=stop, **options)

            ours()  # compiles, and warms up
            taken[label] = int(ours().steps.max())

            def our_clock(ours: Callable[[], Any] = ours, repeats: int = repeats) -> float:
                return clock(lambda: [ours() for _ in range(repeats)], "cpu") / repeats

            clocks[label] = our_clock
        pairs = interleaved(their_clock, clocks, seconds=seconds, least=3, most=40)
        for label in ("compiled", "eager"):
            name = f"whole solve to {_TOLERANCE:.0e}, {cell.name} cell, {label}, over {theirs}"
            target = Target(1.3 if cell.name == "MLP" else 1.0) if label == "compiled" and family == "Picard" else None
            details: dict[str, Any] = {"their_iterations": iterations, "their_residual": reached}
            if label in missing:
                details["their_seconds"] = once
                yield Figure.absent("jax", name, missing[label], target=target, details=details)
                continue
            details |= {"steps": taken[label], "their_processor_time_over_wall_time": max(threads)}
            mine, other = (Spread.of(x).median for x in (pairs[label].seconds, pairs[label].reference_seconds))
            note = f"{1e3 * mine:.1f} ms, {taken[label]} steps, against {1e3 * other:.1f} ms, {iterations}"
            yield Figure.ratio("jax", name, pairs[label], target=target, note=note, details=details)


def _agreement(peer: Peer, cell: Cell, aim: torch.Tensor, folder: Path) -> Figure:
    """Both libraries' implicit gradient of `sum(aim z)` with respect to weight and context."""
    name = f"implicit gradient, {cell.name} cell, float32: largest relative difference to jaxopt's"
    path = folder / "gradient.npz"
    peer.ask("gradient", norm_tolerance=1e-7 * float(bare_loop(cell, 100).norm()), limit=_LIMIT, out=str(path))
    (weight,) = cell.weights.values()
    weight.requires_grad_()
    context = cell.context.clone().requires_grad_()
    stop = hs.Stop(rtol=1e-6, max_steps=_LIMIT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hs.solve(cell.step, cell.state, context, stop=stop, gradient=hs.Implicit(stop=stop))
        (found.state * aim).sum().backward()
    assert weight.grad is not None
    assert context.grad is not None
    with np.load(path) as file:
        theirs = {key: torch.from_numpy(file[key]) for key in ("weight", "context")}
    mine = {"weight": weight.grad, "context": context.grad}
    differences = {key: float((mine[key] - theirs[key]).norm() / theirs[key].norm()) for key in mine}
    weight.requires_grad_(False).grad = None
    return Figure("jax", name, max(differences.values()), "relative", target=Target(_AGREEMENT), details=differences)


def measure(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """All lines; on a CPU alone, where both can be held to one thread."""
    if device != "cpu":
        return
    python = interpreter()
    if python is None:
        why = "no JAX environment: make bench-jax"
        for cell, limit in (("MLP", 1.3), ("conv", 1.0)):
            for theirs in ("jaxopt", "optimistix"):
                name = f"whole solve to {_TOLERANCE:.0e}, {cell} cell, compiled, over {theirs} Picard"
                yield Figure.absent("jax", name, why, target=Target(limit))
        name = "implicit gradient, float32: largest relative difference to jaxopt's"
        yield Figure.absent("jax", name, why, unit="relative", target=Target(_AGREEMENT))
        return
    with Peer(python) as peer, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        versions = peer.ask("versions")
        for make, seconds in ((mlp, 4.0), (conv, 12.0)):
            cell = make(_GAIN)
            aim = torch.randn(cell.state.shape, generator=torch.Generator().manual_seed(1))
            _hand_over(peer, cell, aim, folder)
            for figure in _solves(peer, cell, folder, share * seconds):
                yield figure.with_details(versions=versions)
            yield _agreement(peer, cell, aim, folder).with_details(versions=versions)
