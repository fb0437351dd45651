"""What is returned in training, and its gradient: torchdeq's phantom gradient and its implicit one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from homeostat.compat.torchdeq.solver import SolverOptions, SolverStat, damped
from homeostat.engine.backward.attach import Link, Part, Vectors, attach
from homeostat.engine.backward.functional import is_transformed
from homeostat.engine.backward.tape import Tape, record
from homeostat.engine.forward.record import to_host
from homeostat.engine.forward.run import Run
from homeostat.engine.norms import row_lengths
from homeostat.engine.problem import Problem

Step = Callable[[Any], Any]
Writer = Callable[[SolverStat], Any]


class Gradient(Protocol):
    """How a solved state gets its gradient."""

    def states(self, step: Step, state: Any, writer: Writer | None) -> list[Any]:
        """What training returns for a solved state, the last entry the one to go on from."""
        ...

    def tied(self, step: Step, state: Any, writer: Writer | None) -> Any:
        """The solved state itself, with the gradient: what evaluation returns where gradients are enabled."""
        ...


@dataclass(frozen=True)
class Phantom:
    """Damped steps with a graph, from the solved state on; the last of them is what is returned.

    Args:
        steps: number of steps.
        tau: share of the way that each goes.
        gap: return every so many of them too; 0 or less returns the last alone.
        places: or those of these numbers.

    Source:
        Geng et al., "On training implicit models", NeurIPS 2021, arXiv 2111.05177 (unrolling form).
    """

    steps: int
    tau: float
    gap: int = -1
    places: tuple[int, ...] = ()

    def states(self, step: Step, state: Any, writer: Writer | None) -> list[Any]:
        """See `Gradient.states`."""
        step, states = damped(step, self.tau), []
        for count in range(1, self.steps + 1):
            state = step(state)
            if self.gap > 0:
                chosen = count % self.gap == 0
            else:
                chosen = count in self.places
            if chosen or (self.gap <= 0 and count == self.steps):
                states.append(state)
                if chosen and self.gap <= 0 and count == self.steps:
                    states.append(state)  # torchdeq has the last twice where it is asked for
        return states

    def tied(self, step: Step, state: Any, writer: Writer | None) -> Any:
        """See `Gradient.tied`."""
        outputs = Phantom(self.steps, self.tau).states(step, state, None)[-1]
        return _tie(state, outputs, None)


@dataclass(frozen=True)
class Implicit:
    """The implicit gradient: `backward` solves `u = J^T u + g` for the whole batch at once.

    One evaluation with a graph serves its products and, in the end, the parameters; the value that is returned is that
    evaluation's.

    Args:
        solver: how that system is solved.

    Source:
        Bai, Kolter, Koltun, "Deep equilibrium models", NeurIPS 2019, arXiv 1909.01377, theorem 1.
    """

    solver: SolverOptions

    def states(self, step: Step, state: Any, writer: Writer | None) -> list[Any]:
        """See `Gradient.states`."""
        if not torch.is_grad_enabled():
            return [step(state)]
        outputs, tape = _recorded(step, state)
        return [_tie(outputs, tape, _Adjoint(tape, self.solver, writer))]

    def tied(self, step: Step, state: Any, writer: Writer | None) -> Any:
        """See `Gradient.tied`."""
        _, tape = _recorded(step, state)
        return _tie(state, tape, _Adjoint(tape, self.solver, writer))


class _Adjoint:
    """The linear system of the implicit gradient, for the whole batch at once."""

    name, pull_with_graph = "ift", None

    def __init__(self, tape: Tape, solver: SolverOptions, writer: Writer | None) -> None:
        self._tape, self._solver, self._writer = tape, solver, writer

    def pull(self, cotangents: Vectors) -> list[Tensor]:
        """See `Link.pull`."""
        return self._solved(cotangents, self._tape.pull)

    def push(self, tangents: Vectors) -> list[Tensor]:
        """See `Link.push`."""
        return self._solved(tangents, self._tape.push)

    def _solved(self, source: Vectors, product: Callable[[Vectors], list[Tensor]]) -> list[Tensor]:
        # The map of u takes 0 to g: starting from g spares the first product of torchdeq's start from 0.
        start = source[0] if len(source) == 1 else tuple(source)

        def adjoint(u: Any) -> Any:
            products = product([u] if isinstance(u, Tensor) else list(u))
            added = [p + g for p, g in zip(products, source, strict=True)]
            return added[0] if isinstance(u, Tensor) else tuple(added)

        rest = replace(self._solver, max_iter=self._solver.max_iter - 1)
        solved, _, info = rest.solve(
            adjoint, start, behind=lambda: to_host(torch.stack([row_lengths(g) for g in source]).norm(dim=0))
        )
        if self._writer is not None:
            self._writer(info)
        return [solved] if isinstance(solved, Tensor) else list(solved)


def _recorded(step: Step, state: Any) -> tuple[Any, Tape]:
    """The map's value at the state, without a graph, and the evaluation on a tape."""
    problem = Problem.of(lambda z, _: step(z), state, None)
    tape = record(problem)
    return problem.layout.build([x.detach() for x in tape.outputs]), tape


def _tie(values: Any, recorded: Any, link: Link | None) -> Any:
    """The values, with the graph of what was recorded."""
    problem = Problem.of(lambda z, _: z, values, None)
    if isinstance(recorded, Tensor):
        outputs: Sequence[Tensor] = [recorded]
    elif isinstance(recorded, tuple):
        outputs = recorded
    else:
        outputs = recorded.outputs
    if not is_transformed() and not any(x.requires_grad for x in outputs):
        return values
    nothing = torch.empty(0)
    rows = torch.arange(problem.rows, device=problem.state[0].device)
    found = Run(problem.state, nothing, nothing, nothing, 0)
    part = Part(problem, rows, problem.rows)
    recording = recorded.recording() if isinstance(recorded, Tape) else None
    tied = attach(found, part, outputs, 0, recording, link)
    return problem.layout.build(tied.leaves)
