"""`audit`: what a model does when it thinks longer, difficulty by difficulty, in one streaming pass."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from homeostat.checks import is_whole
from homeostat.errors import InputError
from homeostat.models.contract import IteratedModel, as_model
from homeostat.models.model_hash import hash_of
from homeostat.models.starts import Own
from homeostat.probes.audits.alignment import BatchAlignment, align, other_starts
from homeostat.probes.audits.clips import Candidate, choose, film
from homeostat.probes.audits.courses import MOST_CELLS, join_courses
from homeostat.probes.audits.summary import Collected, examples_of, summarise
from homeostat.probes.audits.verdict import decide
from homeostat.probes.examples import MOST_STEPS, ExampleBatch, Examples, batches_of, evaluating, groups_of
from homeostat.probes.judge import Judge
from homeostat.probes.results import Audit, Settings
from homeostat.probes.sweep import OnStep, sweep_batch

_TICK = 10
"""Steps between two signs of progress."""


@dataclass(frozen=True)
class AuditEvent:
    """What a progress callback is told while a batch runs."""

    difficulty: str
    first: int
    """Examples of this difficulty that are finished."""
    rows: int
    """Examples in the running batch."""
    progress: float
    """Share of the running batch that is done, 0 to 1, over its runs from all starts."""


def audit(
    model: Any,
    examples: Examples | Mapping[str, Examples],
    *,
    steps: Sequence[int],
    judge: Any = None,
    settle_rtol: float = 1e-3,
    noise_scale: float = 1.0,
    seed: int = 0,
    device: str | torch.device | None = None,
    spans: Mapping[str, int] | None = None,
    name: str | None = None,
    description: str = "",
    alignment: bool = True,
    on_event: Callable[[AuditEvent], None] | None = None,
) -> Audit:
    """Run a model for many more steps than it was trained with, and say what that does.

    Args:
        model: anything with the functions of the contract (see `from_functions`).
        examples: batches `(inputs, targets)`, or several such iterables by the name of their difficulty, easiest first.
            They are streamed: no trajectory is held. `targets` may be None where nothing is judged.
        steps: budgets; the trained horizon is added when it is below the largest.
        judge: has what it can of `correct`, `symbols`, `loss`, `answers`, `cells` (see `Judge`); a task, or the model's
            own object when None.
        settle_rtol: relative residual, RMS(f(z) - z) / RMS(f(z)), at which an example counts as settled.
        noise_scale: standard deviation of the noise start.
        seed: of the noise starts and the bootstrap intervals.
        device: where to run; that of the model's parameters when None.
        spans: by difficulty, distance in positions that information must cross, for the light-cone bound.
        name, description: what reports call the model.
        alignment: also run from other starts. This takes two to three times as long.
        on_event: called while batches run, for progress.

    Returns:
        An `Audit`: print it for a table and a verdict, `save` it for the report.

    Raises:
        InputError: no examples, or impossible budgets.
        ContractError: a model that breaks the contract.

    Example:
        >>> import homeostat as hs
        >>> heron = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.ones_like(x),
        ...     step=lambda z, x: 0.5 * (z + x / z),  # Heron's square root
        ...     decode=lambda z, x: z,
        ...     trained_steps=2,
        ... )
        >>> class Right:
        ...     def correct(self, outputs, targets):
        ...         return ((outputs - targets).abs() < 1e-3).all(1)
        >>> x = torch.linspace(1, 100, 64)[:, None]
        >>> result = hs.audit(heron, [(x, x.sqrt())], steps=[1, 2, 4, 8, 16], judge=Right(), alignment=False)
        >>> result.verdict.decision
        'may think longer'
    """
    began = time.perf_counter()
    judge = judge if isinstance(judge, Judge) else Judge.of(model if judge is None else judge)
    parameters = sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else None
    iterated = as_model(model, where="the model")
    horizon = iterated.trained_steps
    budgets = _budgets(steps, horizon)
    groups = groups_of(examples)
    difficulties, at_horizon, candidates, collections = [], [], [], []
    dtype = "none"
    with evaluating(model, device) as place:
        options = _Options(judge, budgets, settle_rtol, noise_scale, seed, alignment, on_event)
        for key, batches in groups.items():
            collected = Collected(key)
            collections.append(collected)
            for batch in batches_of(key, batches, place):
                dtype = _one_batch(iterated, batch, options, collected)
            span = None if spans is None else spans.get(key)
            light_cone = None if span is None else iterated.light_cone(span)
            difficulties.append(summarise(collected, budgets, settle_rtol, seed, light_cone))
            at_horizon.append(collected.at(budgets, horizon))
            candidates += collected.candidates
        clips = [film(iterated, judge, candidate, budgets[-1]) for candidate in choose(candidates)]
    settings = Settings(
        budgets=tuple(budgets),
        settle_rtol=settle_rtol,
        seed=seed,
        noise_scale=noise_scale,
        dtype=dtype,
        device=str(place),
        versions={"torch": torch.__version__.split("+")[0], "python": platform.python_version()},
        seconds=time.perf_counter() - began,
    )
    return Audit(
        model=name or iterated.name,
        description=description,
        trained_steps=horizon,
        unit_cost=iterated.unit_cost,
        parameters=parameters,
        settings=settings,
        difficulties=tuple(difficulties),
        verdict=decide(difficulties, at_horizon, horizon),
        clips=tuple(clip for clip in clips if clip is not None),
        courses=join_courses(name or iterated.name, hash_of(model), collections, judge),
    )


def _budgets(steps: Sequence[int], horizon: int | None) -> list[int]:
    if not all(map(is_whole, steps)):
        raise InputError(f"steps must be whole numbers, such as [1, 4, 16, 64], not {list(steps)}")
    budgets = sorted({int(step) for step in steps})
    if not budgets or budgets[0] < 1 or budgets[-1] > MOST_STEPS:
        raise InputError(f"steps must be budgets from 1 to {MOST_STEPS:,}, such as [1, 4, 16, 64], not {list(steps)}")
    if horizon is not None and horizon < budgets[-1]:
        budgets = sorted({*budgets, horizon})
    return budgets


@dataclass(frozen=True)
class _Options:
    judge: Judge
    budgets: list[int]
    rtol: float
    noise_scale: float
    seed: int
    alignment: bool
    on_event: Callable[[AuditEvent], None] | None


def _one_batch(model: IteratedModel, batch: ExampleBatch, options: _Options, into: Collected) -> str:
    """Audit one batch; returns the dtype of its state."""
    inputs, targets, indices = batch.inputs, batch.targets, batch.indices
    first, rows = indices.start, batch.rows
    runs = 3 if options.alignment else 1

    def ticker(run: int) -> OnStep | None:
        if options.on_event is None:
            return None
        tell, longest = options.on_event, options.budgets[-1]

        def tick(step: int) -> None:
            if step % _TICK == 0 or step == longest:
                tell(AuditEvent(into.name, first, rows, min(1.0, (run + step / longest) / runs)))

        return tick

    swept, context = sweep_batch(
        model,
        inputs,
        targets,
        options.judge,
        options.budgets,
        options.rtol,
        lambda context: model.initial_state(context, Own().seeded(options.seed, indices)),
        ticker(0),
        course=(first + rows) * options.budgets[-1] <= MOST_CELLS,
    )
    aligned: list[BatchAlignment] = []
    if options.alignment:
        starts, notes = other_starts(
            model, context, swept, scale=options.noise_scale, seed=options.seed, indices=indices
        )
        into.notes |= dict.fromkeys(notes)
        for run, (start, state) in enumerate(starts.items(), start=1):
            longest, tick = options.budgets[-1], ticker(min(run, runs - 1))
            aligned.append(align(model, context, swept, start, state, targets, options.judge, longest, tick))
            into.alignments.setdefault(start, []).append(aligned[-1])
    if options.on_event is not None:
        options.on_event(AuditEvent(into.name, first, rows, 1.0))
    into.sweeps.append(swept)
    found = examples_of(swept, aligned, first)
    into.examples += found
    if isinstance(targets, Tensor):
        into.symbols = max(1, targets[0].numel())
    for correct in (True, False):  # the first of each kind may be shown
        if not any(c.example.correct is correct for c in into.candidates):
            row = next((i for i, example in enumerate(found) if example.correct is correct), None)
            if row is not None:
                into.candidates.append(Candidate.of(into.name, found[row], inputs, targets, row))
    state = next(x for x in pytree.tree_leaves(swept.state) if isinstance(x, Tensor) and x.is_floating_point())
    return str(state.dtype).removeprefix("torch.")
