"""torchdeq's layer against `homeostat.compat.torchdeq` on the same cell: one import differs, and nothing else.

Both are called as a program calls them, `z_out, info = deq(f, z0)`, with the same options. Two questions: what a call
costs where both take the same number of evaluations (a tolerance that neither reaches), and what it costs to get to the
same tolerance. Before anything is timed, states and gradients are compared.
"""

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers_torchdeq
from benchmarks.cells import Cell, Counter, conv, mlp
from benchmarks.results import Figure
from benchmarks.timing import Spread, paired
from homeostat.compat import torchdeq as ours

_GAIN = 0.9
_FORWARD, _BACKWARD = 40, 20
_TOL, _MOST = 1e-4, 300
SOLVERS = ("fixed_point_iter", "simple_fixed_point_iter", "anderson", "broyden")


class _Program:
    """One call of the layer of either library, forward or forward and backward."""

    def __init__(self, cell: Cell, solver: str, *, counted: bool) -> None:
        self.cell = cell
        (self.weight,) = (weight.requires_grad_() for weight in cell.weights.values())
        self.aim = torch.randn_like(cell.state)
        steps, back, tol = (_FORWARD, _BACKWARD, 1e-30) if counted else (_MOST, _MOST, _TOL)
        backward = "fixed_point_iter" if solver.startswith("simple") else solver
        self.options: dict[str, Any] = {
            "f_solver": solver,
            "b_solver": backward,
            "f_max_iter": steps,
            "b_max_iter": back,
            "f_tol": tol,
            "b_tol": tol,
            "f_stop_mode": "rel",
            "b_stop_mode": "rel",
            "ift": True,
        }

    def layers(self) -> dict[str, Any]:
        assert peers_torchdeq.get_deq is not None
        return {"ours": ours.get_deq(**self.options), "torchdeq": peers_torchdeq.get_deq(**self.options)}

    def forward(self, layer: Any, step: Any = None) -> Tensor:
        step = step or self.cell.step
        with torch.no_grad():
            return layer.eval()(lambda z: step(z, self.cell.context), self.cell.state)[0][-1]

    def both(self, layer: Any, step: Any = None) -> tuple[Tensor, Tensor]:
        step = step or self.cell.step
        self.weight.grad = None
        (state,), _ = layer.train()(lambda z: step(z, self.cell.context), self.cell.state)
        (state * self.aim).sum().backward()
        assert self.weight.grad is not None
        return state.detach(), self.weight.grad

    def difference(self, layers: dict[str, Any]) -> float:
        """The largest relative difference of states and gradients."""
        mine, theirs = (self.both(layer) for layer in layers.values())
        return max(float((a - b).norm() / b.norm()) for a, b in zip(mine, theirs, strict=True))

    def evaluations(self, layers: dict[str, Any]) -> dict[str, int]:
        found = {}
        for name, layer in layers.items():
            counter = Counter(self.cell.step)
            self.forward(layer, counter)
            counter.reset()
            self.forward(layer, counter)
            found[name] = counter.calls
        return found


def measure(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """How many times faster than torchdeq."""
    name = "the same program by another import: times faster than torchdeq"
    if not peers_torchdeq.available():
        yield Figure.absent("compat", name, peers_torchdeq.MISSING)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Smaller than elsewhere, so that all pairs of a quick run take less than two minutes.
        cells = (partial(mlp, _GAIN, device), partial(conv, _GAIN, device, batch=4, channels=32, side=16))
        for make in cells:
            for solver in SOLVERS:
                yield from _solver(make, solver, name, device, share)


def _solver(make: Any, solver: str, name: str, device: str, share: float) -> Iterator[Figure]:
    settled = _Program(make(), solver, counted=False)
    difference = settled.difference(settled.layers())
    # Both stop at the same residual; gradients are as far apart as two such stops are.
    limit = 100 * _TOL
    head = f"{name}, {settled.cell.name} cell, {solver}"
    for counted in (True, False) if not solver.startswith("simple") else (True,):
        program = _Program(make(), solver, counted=counted)
        layers = program.layers()
        counts = program.evaluations(layers)
        where = f"{_FORWARD} evaluations" if counted else f"to {_TOL:g}"
        details = {"difference": difference, "evaluations": counts}
        for what, run in (("forward", program.forward), ("forward and backward", program.both)):
            line = f"{head}, {where}, {what}"
            if difference > limit:
                yield Figure.absent("compat", line, f"the results differ by {difference:.1e}", details=details)
                continue
            pairs = paired(
                partial(run, layers["ours"]),
                {"torchdeq": partial(run, layers["torchdeq"])},
                device=device,
                seconds=5 * share,
                least=3,
                most=100,
            )["torchdeq"]
            mine, theirs = (1e3 * Spread.of(x).median for x in (pairs.reference_seconds, pairs.seconds))
            note = f"{mine:.1f} ms against {theirs:.1f} ms; {counts['ours']} and {counts['torchdeq']} evaluations"
            yield Figure.ratio("compat", line, pairs, note=note, details=details)
