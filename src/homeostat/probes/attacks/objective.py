"""What an attack climbs: how far a start's run gets from the clean limit, or from the right answer.

The run is unrolled for some steps, and differentiated through all of them. Values are logarithms, in float64: where
a run comes back to the clean limit the difference falls geometrically, and its logarithm still has a gradient of size 1
when the difference itself has none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from homeostat.engine.norms import out_of_bounds, row_rms
from homeostat.engine.problem import Problem
from homeostat.errors import InputError
from homeostat.models.contract import IteratedModel
from homeostat.probes.judge import Judge

Score = Callable[[list[Tensor]], Tensor]
"""From the leaves of a state to `(rows,)`, larger is worse for the model."""

_SEGMENT = 8
"""Steps of which only the first state is kept for the way back, which takes the others again."""

_TINY = 1e-24
_SMALLEST_LOSS = 1e-16


class Ball:
    """Points of a flat space around the floating leaves of the model's own start, which are its zero."""

    def __init__(self, problem: Problem) -> None:
        self._leaves = problem.state
        self._measured = problem.layout.measured()
        own = [self._leaves[i] for i in self._measured]
        self._sizes = [leaf[0].numel() for leaf in own]
        self.entries = sum(self._sizes)
        self.dtype = torch.float64 if any(leaf.dtype == torch.float64 for leaf in own) else torch.float32

    def flat(self, leaves: Sequence[Tensor]) -> Tensor:
        """The floating leaves of a state, `(rows, entries)`."""
        return torch.cat([leaves[i].reshape(len(leaves[i]), -1).to(self.dtype) for i in self._measured], dim=1)

    def towards(self, leaves: Sequence[Tensor]) -> Tensor:
        """The point at which a state lies."""
        return self.flat(leaves) - self.flat(self._leaves)

    def at(self, points: Tensor) -> list[Tensor]:
        """All leaves of the start at a point; what is not floating, or is carried, is as in the model's own start."""
        leaves = list(self._leaves)
        for i, part in zip(self._measured, points.split(self._sizes, dim=1), strict=True):
            leaves[i] = leaves[i] + part.reshape(leaves[i].shape).to(leaves[i].dtype)
        return leaves


class Unrolled:
    """The objective of a search: scores of the state after some numbers of steps, their mean."""

    def __init__(self, problem: Problem, ball: Ball, score: Score, looks: Sequence[int]) -> None:
        self._problem, self._ball, self._score = problem, ball, score
        self._looks = sorted(set(looks))
        self._measured = problem.layout.measured()
        self.evaluations = 0
        self.blind = False
        """Whether no gradient came back from the state to the start."""

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gradients at points of the ball. A run that is no longer finite has won: infinity."""
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            state, values, taken = self._ball.at(points), [], 0
            for look in self._looks:
                state, taken = self._onwards(state, look - taken), look
                values.append(self._score(state))
            value = torch.stack(values).mean(0)
            measured = [state[i].detach() for i in self._measured]
            lost = out_of_bounds(measured, [row_rms(leaf) for leaf in measured]) | ~torch.isfinite(value.detach())
            total = torch.where(lost, 0, value).sum()
            gradient = None
            if total.requires_grad:
                (gradient,) = torch.autograd.grad(total, points, allow_unused=True)
        self.blind |= gradient is None
        if gradient is None:
            gradient = torch.zeros_like(points)
        finite = torch.isfinite(gradient).all(1) & ~lost
        gradient = torch.where(finite[:, None], gradient, 0)
        return torch.where(lost, torch.inf, value.detach()), gradient.detach()

    def _onwards(self, state: list[Tensor], steps: int) -> list[Tensor]:
        def segment(count: int) -> Callable[..., tuple[Tensor, ...]]:
            def run(*leaves: Tensor) -> tuple[Tensor, ...]:
                self.evaluations += count * self._problem.rows  # first, since the second time it may be cut short
                now, step = list(leaves), self._problem.bind(self._problem.context)
                for _ in range(count):
                    now = step(now)
                return tuple(now)

            return run

        for first in range(0, steps, _SEGMENT):
            count = min(_SEGMENT, steps - first)
            found = checkpoint(segment(count), *state, use_reentrant=False, preserve_rng_state=False)
            state = list(found)  # type: ignore[arg-type]
        return state


def latent_score(ball: Ball, phases: Sequence[tuple[Tensor, Tensor]]) -> Score:
    """How far a state is from the clean limit: log of 1 - cosine + d²/(1 + d²), d the relative distance.

    The cosine alone would leave no gradient where states differ in length only, the second term no bound.

    Args:
        phases: states `(rows, entries)` of the clean limit, and the rows that they count for: one state, or all states
            of a cycle. The nearest one counts.
    """
    limits = [(state.double(), *_direction(state), rows) for state, rows in phases]

    def score(leaves: list[Tensor]) -> Tensor:
        flat = ball.flat(leaves).double()
        here, _ = _direction(flat)
        apart = []
        for state, unit, size, rows in limits:
            # From differences, since a cosine near 1 has no digits left.
            distance = (flat - state).square().sum(1) / size.square()
            broken = 0.5 * (here - unit).square().sum(1) + distance / (1 + distance)
            apart.append(torch.where(rows, broken, torch.inf))
        return (torch.stack(apart).amin(0) + _TINY).log()

    return score


def answer_score(
    model: IteratedModel, judge: Judge, problem: Problem, targets: Any, outputs: Any, answers: Tensor | None
) -> Score:
    """How wrong a state's answer is: log of the task's loss, or, where there is none, how near the clean answer is to
    being another one (its smallest margin over the runner-up).

    Args:
        outputs, answers: those of the clean limit.

    Raises:
        InputError: there is no loss, and the outputs are not scores of classes along their second dimension.
    """
    context = problem.context_layout.build(problem.context)

    def decoded(leaves: list[Tensor]) -> Any:
        found = model.decode(problem.layout.build(leaves), context)
        return pytree.tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, found)

    if judge.loss is not None and targets is not None:

        def loss(leaves: list[Tensor]) -> Tensor:
            found = judge.judged("loss", decoded(leaves), targets, problem.rows)
            assert found is not None, "there is a loss, and there are targets"
            return found.sign() * (found.abs() / _SMALLEST_LOSS).log1p()

        return loss

    if not _are_classes(outputs, answers):
        raise InputError(
            "the objective 'answer' needs a judge with a loss, and targets; or outputs (batch, classes, ...) whose "
            "largest entry along the classes is the answer"
        )
    assert answers is not None, "checked above"
    chosen = F.one_hot(answers.long(), outputs.shape[1]).movedim(-1, 1).bool()

    def margin(leaves: list[Tensor]) -> Tensor:
        found = decoded(leaves)
        own = found.masked_fill(~chosen, -torch.inf).amax(1)
        other = found.masked_fill(chosen, -torch.inf).amax(1)
        return (other - own).reshape(len(own), -1).logsumexp(1)

    return margin


def _are_classes(outputs: Any, answers: Tensor | None) -> bool:
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or answers is None or outputs.ndim < 2:
        return False
    best = outputs.argmax(1)
    return outputs.shape[1] > 1 and best.shape == answers.shape and bool((best == answers).all())


def _direction(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows, and their lengths before."""
    flat = flat.double()
    lengths = (flat.square().sum(1) + 1e-200).sqrt()
    return flat / lengths[:, None], lengths
