"""Whether a run comes back from a perturbation of its limit, and in how many steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.iterate import Release, iterate
from homeostat.engine.nest import flatten
from homeostat.engine.norms import out_of_bounds, residuals, row_rms
from homeostat.engine.problem import Problem
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Noise
from homeostat.probes.answers import asked, same_answers
from homeostat.probes.examples import rows_at
from homeostat.probes.judge import Judge


def directions(state: Any, seed: int, indices: Sequence[int]) -> list[Tensor]:
    """Gaussian directions in the shape of the measured leaves, from each example's own stream."""
    leaves, layout = flatten(Noise().seeded(seed, indices).like(state), "state")
    return [leaves[i] for i in layout.measured()]


class _Twins:
    """The monitor of a perturbed run beside an unperturbed one: lets go of a pair when the two are together again."""

    def __init__(self, problem: Problem, tolerance: float) -> None:
        measured = problem.layout.measured()
        self._first, self._second = measured[: len(measured) // 2], measured[len(measured) // 2 :]
        self._tolerance = tolerance
        self.back = torch.zeros(problem.rows, dtype=torch.int64, device=problem.state[0].device)

    def observe(
        self, step: int, rows: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], context: Sequence[Any]
    ) -> Release | None:
        """See `Monitor.observe`."""
        plain, moved = [after[i] for i in self._first], [after[i] for i in self._second]
        _, sizes, apart = residuals(moved, plain)
        bad = out_of_bounds(plain, sizes) | out_of_bounds(moved, [row_rms(leaf) for leaf in moved])
        back = (apart <= self._tolerance) & ~bad
        self.back[rows[back]] = step
        return Release(back | bad, bad) if bool((back | bad).any()) else None

    def keep(self, index: Tensor) -> None:
        """See `Monitor.keep`."""


@dataclass(frozen=True)
class Recovery:
    """A batch after its perturbation, an entry a row."""

    steps: list[int]
    """Steps until it is back; 0 where it is not within the budget."""
    kept: list[bool] | None
    """Whether both runs end in the same answer, where one is asked; None where nothing decodes answers."""


def recover(
    model: IteratedModel,
    limit: Problem,
    failed: Tensor,
    noise: Sequence[Tensor],
    *,
    perturbation: float,
    tolerance: float,
    steps: int,
    judge: Judge,
    targets: Any,
) -> Recovery:
    """Perturb the limit, each leaf by a share of its norm, and run on until it is back.

    What it comes back to is the run that goes on unperturbed from the same state, so that a cycle, or a limit that is
    still on the way, counts by what the perturbation does to it and by nothing else. Back is the first step at which
    the relative distance of the two, RMS over RMS, the largest over leaves, is within `tolerance`.

    Args:
        limit: the map at the last states.
        failed: `(rows,)` bool, runs that have no limit.
        noise: directions, shaped as the measured leaves.
    """
    layout, measured = limit.layout, limit.layout.measured()
    moved = list(limit.state)
    for i, direction in zip(measured, noise, strict=True):
        leaf = moved[i]
        scale = perturbation * row_rms(leaf) / row_rms(direction).clamp(min=1e-30)
        moved[i] = leaf + (scale.view(-1, *([1] * (leaf.ndim - 1))) * direction).to(leaf.dtype)
    both = (layout.build(limit.state, marks=True), layout.build(moved, marks=True))
    pairs, pair_layout = flatten(both, "state")
    # A limit of zero has no size to perturb it by.
    empty = torch.stack([row_rms(limit.state[i]) for i in measured]).amax(0) == 0
    chosen = (~failed & ~empty).nonzero().squeeze(1)
    back = torch.zeros_like(failed, dtype=torch.int64)
    kept = torch.zeros_like(failed)
    known = judge.answers is not None
    if len(chosen):

        def step(states: Any, context: Any) -> Any:
            return model.step(states[0], context), model.step(states[1], context)

        with torch.no_grad():
            pair = replace(limit, step=step, state=pairs, layout=pair_layout).subset(chosen)
            twins = _Twins(pair, tolerance)
            leaves, _ = iterate(pair, max_steps=steps, monitor=twins)
            back[chosen] = twins.back
            context = pair.context_layout.build(pair.context)
            plain, other = (judge.decoded(model.decode(end, context)) for end in pair_layout.build(leaves))
        known = plain is not None and other is not None
        if plain is not None and other is not None:
            kept[chosen] = same_answers(plain, other, asked(rows_at(targets, chosen), plain))
    return Recovery(back.tolist(), kept.tolist() if known else None)
