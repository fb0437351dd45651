"""Implicit MAML on sinusoids beside jaxopt: time of an outer step, and the outer loss that both end with.

Both follow the protocol of jaxopt's example (25 tasks of 10 shots, 16 inner steps with a line search, 5 steps of
conjugate gradients, Adam). Ours is `train` with the recipe `imaml`; theirs is one compiled function an outer step, with
the drawing of tasks and Adam inside. They take turns, some outer steps at a time, each on one thread, from weights and
tasks of their own.
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers_jax import Peer, interpreter
from benchmarks.results import Figure, Target
from benchmarks.timing import Paired
from homeostat.models import MetaConfig
from homeostat.training import TrainingEvent, get_recipe, train

_TURN, _STEPS = 25, 1000
_LIMIT = 1.5


class _Turns:
    """Lets the peer run while a training of ours waits in its callback."""

    def __init__(self, peer: Peer, dtype: str) -> None:
        self._peer = peer
        self.first = peer.ask("imaml_begin", dtype=dtype, seed=0)
        self.mine: list[float] = []
        self.theirs: list[float] = []
        self.their_losses: list[float] = list(self.first["losses"])
        self.threads = 0.0
        self.startup = 0.0
        self._began = time.perf_counter()

    def __call__(self, event: TrainingEvent) -> None:
        if event.step == 1:
            self.startup = time.perf_counter() - self._began
            self._began = time.perf_counter()
        elif event.step % _TURN == 1:
            self.mine.append(time.perf_counter() - self._began)
            answer = self._peer.ask("imaml_advance", steps=_TURN)
            self.theirs.append(answer["seconds"])
            self.their_losses += answer["losses"]
            self.threads = max(self.threads, answer["threads"])
            self._began = time.perf_counter()

    def pairs(self) -> Paired:
        """Each turn of ours over the mean of theirs before and after it."""
        around = [statistics.mean(self.theirs[max(i - 1, 0) : i + 1]) for i in range(len(self.theirs))]
        return Paired(tuple(self.mine), tuple(around))


def _beside(peer: Peer, dtype: str, steps: int) -> Iterator[Figure]:
    recipe = get_recipe("imaml").changed(
        model=MetaConfig(regulariser=2.0, dtype=dtype),  # type: ignore[arg-type]
        steps=steps + 1,
    )
    turns = _Turns(peer, dtype)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fixed number of steps is not convergence, as the engine says
        record = train(recipe, Path(folder), checkpoint_every=steps + 2, on_step=turns).config.training
    mine, theirs = sum(turns.mine), sum(turns.theirs)
    details: dict[str, Any] = {
        "outer_steps": steps,
        "our_loss": record["final_loss"],
        "their_loss": statistics.mean(turns.their_losses[-50:]),
        "our_first_step": turns.startup,
        "their_first_step": turns.first["seconds"],
        "their_processor_time_over_wall_time": turns.threads,
    }
    name = f"implicit MAML on sinusoids, {dtype}, an outer step, over jaxopt"
    note = f"{1e3 * mine / steps:.1f} ms against {1e3 * theirs / steps:.1f} ms"
    yield Figure.ratio("meta", name, turns.pairs(), target=Target(_LIMIT), note=note, details=details)
    ours_whole, theirs_whole = turns.startup + mine, turns.first["seconds"] + theirs
    name = f"the same, {steps:,} outer steps with start-up and compilation"
    note = f"{ours_whole:.0f} s against {theirs_whole:.0f} s, of which {turns.first['seconds']:.0f} s compile"
    yield Figure("meta", name, ours_whole / theirs_whole, "x", note=note, details=details)


def measure(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """All lines; on a CPU alone, where both can be held to one thread."""
    if device != "cpu":
        return
    python = interpreter()
    if python is None:
        for dtype in ("float64", "float32"):
            name = f"implicit MAML on sinusoids, {dtype}, an outer step, over jaxopt"
            yield Figure.absent("meta", name, "no JAX environment: make bench-jax", target=Target(_LIMIT))
        return
    steps = max(_TURN * 2, round(share * _STEPS / _TURN) * _TURN)
    for dtype in ("float64", "float32"):
        with Peer(python) as peer:
            versions = peer.ask("versions")
            for figure in _beside(peer, dtype, steps):
                yield figure.with_details(versions=versions)
