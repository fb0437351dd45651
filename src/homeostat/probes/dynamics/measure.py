"""`measure_dynamics`: how a model's step behaves near where it ends, and on the way there.

Five views of one question, whether small differences die out. The spectral radius of the step's Jacobian at the limit
says it for differences of any direction there; the contraction rate says it for the path that was taken; the
finite-time Lyapunov exponent follows one tangent vector along that path; a perturbation of the limit shows it; and the
spectral norm says how much *one* step can stretch a difference, which for a matrix that is not normal may be far more
than 1 although every difference dies out. A norm above 1 alone is a false alarm, so both stand side by side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.engine.iterate import Release, iterate
from homeostat.engine.norms import out_of_bounds, residuals
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError, InputError
from homeostat.models.contract import IteratedModel, as_model
from homeostat.models.starts import Own
from homeostat.nn.jacobian import unit_rows
from homeostat.probes import estimates
from homeostat.probes.answers import judge_of
from homeostat.probes.dynamics.jacobians import CONVERGED, local_gain, push
from homeostat.probes.dynamics.recovery import directions, recover
from homeostat.probes.dynamics.result import Dynamics, DynamicsRow, ExampleDynamics
from homeostat.probes.examples import ExampleBatch, batches_of, evaluating, groups_of, positive, whole_number
from homeostat.probes.judge import Judge
from homeostat.probes.path_lengths import rounding_length, row_length
from homeostat.probes.repeatable import check_repeatable
from homeostat.probes.results import Estimate

_WINDOW = 16
"""Steps of the tail that the contraction rate is taken over."""


@dataclass(frozen=True)
class _Options:
    judge: Judge
    steps: int
    iterations: int
    perturbation: float
    tolerance: float
    settle_rtol: float
    seed: int


def measure_dynamics(
    model: Any,
    examples: Any,
    *,
    steps: int,
    judge: Any = None,
    iterations: int = 128,
    perturbation: float = 0.1,
    tolerance: float = 0.01,
    settle_rtol: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Dynamics:
    """Measure how a model's step treats small differences, at its limit and on the way there.

    Args:
        model: anything with the functions of the contract.
        examples: batches `(inputs, targets)`, or several such iterables by the name of their difficulty. Of targets
            only `IGNORE` is read, where nothing is asked.
        steps: budget of the run to the limit, and of the recovery from a perturbation.
        judge: decodes answers (see `Judge`), to say whether a perturbation changes them; the model's own object when
            None.
        iterations: Jacobian products of the power iteration for the radius; as many again go to the norm.
        perturbation: size of the perturbation of each leaf of the limit, as a share of that leaf's norm.
        tolerance: distance from the unperturbed run, as a share of its norm, at which a perturbed one is back.
        settle_rtol: relative residual at which an example counts as settled.
        seed: of the first directions and the perturbations, which are drawn for each example by itself.
        device: where to run; that of the model's parameters when None.

    Returns:
        A `Dynamics`. Radius, norm, contraction rate: no unit. Lyapunov exponents: nats per step.

    Raises:
        InputError: no examples, or an impossible option.
        ContractError: a model that breaks the contract, or that draws random numbers.

    Source:
        Lyapunov exponent: Benettin, Galgani, Giorgilli, Strelcyn, "Lyapunov characteristic exponents", Meccanica 15
        (1980): a tangent vector carried along, and its length taken out of it after every step.

    Example:
        >>> import homeostat as hs
        >>> step = torch.tensor([[0.5, 4.0], [0.0, 0.5]])  # stretches up to fourfold, and yet everything dies out
        >>> model = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.zeros_like(x),
        ...     step=lambda z, x: z @ step.T + x,
        ...     decode=lambda z, x: z,
        ... )
        >>> found = measure_dynamics(model, [(torch.eye(2), None)], steps=60)
        >>> [round(row.norm, 2) for row in found.rows[0].examples], found.rows[0].stable.value
        ([4.06, 4.06], 1.0)
    """
    steps, iterations = whole_number("steps", steps, least=2), whole_number("iterations", iterations, least=8)
    settle_rtol, perturbation = positive("settle_rtol", settle_rtol), positive("perturbation", perturbation)
    if not 0 < tolerance < perturbation:
        raise InputError(
            f"tolerance must be above 0 and below perturbation, so that there is a way back, not {tolerance!r} "
            f"and {perturbation!r}"
        )
    options = _Options(judge_of(model, judge), steps, iterations, perturbation, tolerance, settle_rtol, seed)
    iterated = as_model(model, where="the model")
    if iterated.stochastic:
        raise ContractError(f"{iterated.name}'s step draws random numbers: it has no Jacobian to speak of")
    rows = []
    with evaluating(model, device) as where:
        for name, batches in groups_of(examples).items():
            found = [one for batch in batches_of(name, batches, where) for one in _measured(iterated, batch, options)]
            rows.append(_summarise(name, found, options))
        return Dynamics(iterated.name, steps, iterations, perturbation, tolerance, settle_rtol, tuple(rows))


def _measured(
    model: IteratedModel, batch: ExampleBatch, options: _Options
) -> Iterator[tuple[ExampleDynamics, bool | None]]:
    """Example by example what was measured, and whether the perturbed run kept the answer."""
    if batch.indices.start == 0:
        check_repeatable(model, batch.inputs, seed=options.seed, indices=batch.indices, steps=options.steps)
    with torch.no_grad():
        context = model.encode(batch.inputs)
        own = model.initial_state(context, Own().seeded(options.seed, batch.indices))
        problem = Problem.of(model.step, own, context)
        trail = _Trail(problem, directions(own, options.seed, batch.indices), options.steps)
        leaves, _ = iterate(problem, max_steps=options.steps, monitor=trail)
    limit = replace(problem, state=leaves)
    failed = trail.failed.tolist()
    gain = local_gain(limit, directions(own, options.seed + 1, batch.indices), options.iterations)
    back = recover(
        model,
        limit,
        trail.failed,
        directions(own, options.seed + 2, batch.indices),
        perturbation=options.perturbation,
        tolerance=options.tolerance,
        steps=options.steps,
        judge=options.judge,
        targets=batch.targets,
    )
    fields = ("residual", "radius", "norm", "contraction", "lyapunov", "lyapunov_whole")
    measures = [_listed(x) for x in (trail.residual, gain.radius, gain.norm, *trail.rates())]
    found = (gain.radius_error <= CONVERGED).tolist()
    for row, index in enumerate(batch.indices):
        values = {name: None if failed[row] else column[row] for name, column in zip(fields, measures, strict=True)}
        recovery = None if failed[row] else back.steps[row] or None
        example = ExampleDynamics(
            index=index,
            failed=failed[row],
            radius_converged=found[row] and not failed[row],
            recovery=recovery,
            **values,
        )
        yield example, None if back.kept is None else back.kept[row]


def _listed(values: Tensor) -> list[float | None]:
    """Numbers for the host, None for NaN."""
    return [None if x != x else x for x in values.tolist()]


class _Trail:
    """The monitor of the run to the limit: step lengths of the tail, and the growth of a tangent vector."""

    def __init__(self, problem: Problem, tangent: list[Tensor], steps: int) -> None:
        self._problem, self._steps = problem, steps
        self._measured = problem.layout.measured()
        self._tangent = unit_rows(tangent)[0]
        rows, device = problem.rows, problem.state[0].device
        self.failed = torch.zeros(rows, dtype=torch.bool, device=device)
        self.residual = torch.zeros(rows, dtype=torch.float64, device=device)
        self._tail = torch.full((rows, _WINDOW + 1), float("nan"), dtype=torch.float64, device=device)
        self._moving = torch.ones(rows, dtype=torch.bool, device=device)
        self._growth = torch.zeros(rows, 2, dtype=torch.float64, device=device)  # over the run, and its second half

    def observe(
        self, step: int, rows: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], context: Sequence[Any]
    ) -> Release | None:
        """See `Monitor.observe`."""
        old, new = [before[i] for i in self._measured], [after[i] for i in self._measured]
        _, sizes, relative = residuals(old, new)
        failed = out_of_bounds(new, sizes)
        self.residual[rows] = relative.double()
        length = row_length([b - a for a, b in zip(old, new, strict=True)])
        rounding = rounding_length(new)
        # The first two lengths are kept whatever they are: a map that arrives at once has a rate too.
        moving = self._moving[rows] & ((length > rounding) | (step <= 2))
        self._moving[rows] = moving
        chosen = rows[moving]
        self._tail[chosen] = torch.cat([self._tail[chosen, 1:], length[moving, None]], dim=1)
        image = push(replace(self._problem, context=list(context)), before, self._tangent)
        self._tangent, factor = unit_rows(image)
        growth = factor.double().log()
        self._growth[rows, 0] += growth
        if step > self._steps // 2:
            self._growth[rows, 1] += growth
        if not bool(failed.any()):
            return None
        self.failed[rows[failed]] = True
        return Release(failed, failed)

    def keep(self, index: Tensor) -> None:
        """See `Monitor.keep`."""
        self._tangent = [leaf[index] for leaf in self._tangent]

    def rates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Contraction rate, Lyapunov exponent of the second half and of the whole run, `(rows,)` each."""
        known = (~self._tail.isnan()).sum(1)
        first = self._tail.gather(1, (self._tail.shape[1] - known).clamp(max=_WINDOW)[:, None])[:, 0]
        rate = (self._tail[:, -1] / first) ** (1 / (known - 1).clamp(min=1))
        rate = torch.where((known > 1) & (first > 0), rate, float("nan"))
        return rate, self._growth[:, 1] / (self._steps - self._steps // 2), self._growth[:, 0] / self._steps


def _summarise(name: str, found: list[tuple[ExampleDynamics, bool | None]], options: _Options) -> DynamicsRow:
    examples = [example for example, _ in found]
    kept = [answer for _, answer in found]

    def medians(field: str) -> Estimate:
        values = [getattr(example, field) for example in examples]
        return estimates.median([float("nan") if value is None else value for value in values])

    radii = np.array([float("nan") if e.radius is None else e.radius for e in examples])
    norms = np.array([float("nan") if e.norm is None else e.norm for e in examples])
    moving = [e for e in examples if e.failed or e.contraction is not None]
    rates = [float("nan") if e.contraction is None else e.contraction for e in moving]
    return DynamicsRow(
        difficulty=name,
        examples=tuple(examples),
        settled=estimates.share([e.residual is not None and e.residual <= options.settle_rtol for e in examples]),
        radius=medians("radius"),
        norm=medians("norm"),
        stable=estimates.share(radii < 1),
        false_alarms=estimates.share((norms > 1) & (radii < 1)),
        contraction=estimates.median(rates),
        lyapunov=medians("lyapunov"),
        recovery=medians("recovery"),
        recovered=estimates.share([e.recovery is not None for e in examples]),
        answer_kept=None if any(k is None for k in kept) else estimates.share([bool(k) for k in kept]),
        failed=sum(e.failed for e in examples),
        unconverged=sum(not e.radius_converged for e in examples if not e.failed),
    )
