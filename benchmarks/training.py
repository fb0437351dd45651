"""A training step: 40 evaluations forward, 20 products with the Jacobian back, both by plain iteration.

Only forward and backward are timed, from the state and the loss to gradients of the weights and of the context; an
optimiser would cost the same on both sides. The map contracts, slowly enough that neither solve may end before its
count; both counts are checked on both sides, and so is that the gradients agree.
"""

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import homeostat as hs
from benchmarks import features, peers_torchdeq
from benchmarks.cells import Cell, Counter, Step, mlp
from benchmarks.results import Figure, Target
from benchmarks.timing import Spread, paired

_FORWARD, _BACKWARD, _RTOL = 40, 20, 1e-6
_GAIN = 1.15


class _Training:
    """Forward and backward of both libraries on one cell."""

    def __init__(self, cell: Cell, forward: int, backward: int) -> None:
        self.cell, self.forward, self.backward = cell, forward, backward
        self.weight = cell.weights["weight"].requires_grad_()
        self.context = cell.context.clone().requires_grad_()
        self.aim = torch.randn(cell.state.shape, generator=torch.Generator().manual_seed(1)).to(cell.state.device)
        self.stop = hs.Stop(rtol=_RTOL, max_steps=forward)
        self.gradient = hs.Implicit(method=hs.Picard(), stop=hs.Stop(rtol=_RTOL, max_steps=backward))
        self.module = peers_torchdeq.equilibrium(forward, backward, _RTOL) if peers_torchdeq.available() else None

    def _gradients(self, state: Tensor) -> tuple[Tensor, Tensor]:
        self.weight.grad = self.context.grad = None
        (state * self.aim).sum().backward()
        assert self.weight.grad is not None
        assert self.context.grad is not None
        return self.weight.grad, self.context.grad

    def ours(self, step: Step | None = None, **options: Any) -> tuple[hs.Solution, tuple[Tensor, Tensor]]:
        found = hs.solve(
            step or self.cell.step,
            self.cell.state,
            self.context,
            method=hs.Picard(),
            stop=self.stop,
            gradient=self.gradient,
            **options,
        )
        return found, self._gradients(found.state)

    def theirs(self, step: Step | None = None, writer: Any = None) -> tuple[Any, tuple[Tensor, Tensor]]:
        assert self.module is not None
        step = step or self.cell.step
        (state,), statistics = self.module(lambda z: step(z, self.context), self.cell.state, backward_writer=writer)
        return statistics, self._gradients(state)

    def gradient_difference(self) -> float:
        """The larger relative difference of the two gradients."""
        mine = [x.clone() for x in self.ours()[1]]
        other = self.theirs()[1]
        return max(float((a - b).norm() / b.norm()) for a, b in zip(mine, other, strict=True))

    def check(self) -> tuple[str, dict[str, Any]]:
        """What is wrong with the counts, empty if nothing is; and all of them."""
        counted = Counter(self.cell.step)
        found, _ = self.ours(counted)
        assert found.adjoint is not None
        details: dict[str, Any] = {
            "evaluations": counted.calls,
            "steps": sorted(set(found.steps.tolist())),
            "adjoint_steps": sorted(set(found.adjoint.steps.tolist())),
        }
        if details["steps"] != [self.forward] or details["adjoint_steps"] != [self.backward]:
            return f"not {self.forward} + {self.backward} iterations: {details}", details
        if self.module is None:
            return peers_torchdeq.MISSING, details
        statistics: list[Any] = []
        counted = Counter(self.cell.step)
        forward, _ = self.theirs(counted, statistics.append)
        lowest = [float(s["rel_lowest"].min()) for s in (forward, statistics[0])]
        # Beside the iterations: one evaluation to attach the gradient, and one more in its backward.
        details["torchdeq_evaluations"] = counted.calls
        details["torchdeq_lowest_residuals"] = lowest
        if counted.calls != self.forward + 2 or min(lowest) <= _RTOL:
            return f"torchdeq took other counts: {details}", details
        return "", details


def measure(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """How many times faster than torchdeq."""
    name = (
        f"training step, Implicit by Picard, {_FORWARD} + {_BACKWARD} iterations, MLP cell: times faster than torchdeq"
    )
    target = Target(1.5, "at least")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the solves did not converge is what was asked for
        training = _Training(mlp(_GAIN, device=device), _FORWARD, _BACKWARD)
        why, details = training.check()
        if not why:  # given the time to converge, both must find the same gradient
            settled = _Training(mlp(_GAIN, device=device), 500, 500).gradient_difference()
            details["gradient_difference_when_converged"] = settled
            why = "" if settled < 1e-3 else f"the gradients differ by {settled:.1e}"
        if why:
            yield Figure.absent("training", name, why, target=target, details=details)
            return
        lines: list[tuple[str, dict[str, Any], Target | None, str]] = [
            ("", {}, target, ""),
            (", compiled", {"compile": True}, None, features.why_not_compiled()),
        ]
        for suffix, options, limit, why in lines:
            if why:
                yield Figure.absent("training", name + suffix, why, target=limit)
                continue
            # What is divided by what is turned round, so that the figure is how many times faster ours is.
            pairs = paired(
                partial(training.ours, **options),
                {"torchdeq": training.theirs},
                device=device,
                seconds=6 * share,
                most=300,
                warm_up=5,
            )["torchdeq"]
            mine, other = (1e3 * Spread.of(seconds).median for seconds in (pairs.reference_seconds, pairs.seconds))
            note = f"{mine:.1f} ms against {other:.1f} ms"
            yield Figure.ratio("training", name + suffix, pairs, target=limit, note=note, details=details)
