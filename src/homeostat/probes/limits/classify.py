"""`classify_limits`: what each example ends in, how finely that was decided, and whether it stays so when repeated."""

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from homeostat.engine.norms import noise_floor
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError, InputError
from homeostat.models.contract import IteratedModel, as_model
from homeostat.models.starts import Own
from homeostat.probes import estimates
from homeostat.probes.ends import run_to_end
from homeostat.probes.examples import (
    ExampleBatch,
    Examples,
    batches_of,
    evaluating,
    groups_of,
    positive,
    rows_at,
    whole_number,
)
from homeostat.probes.limits.result import ExampleLimit, Limit, LimitClasses, LimitShares
from homeostat.probes.repeatable import check_finite, check_repeatable
from homeostat.probes.results import LIMIT_CLASSES, Estimate

T = TypeVar("T")

Check = Literal["dtype", "batch"]

_CHECKS: tuple[Check, ...] = ("dtype", "batch")

_UNITS = 4
"""A residual of so many units in the last place can be rounding alone."""


def classify_limits(
    model: Any,
    examples: Examples | Mapping[str, Examples],
    *,
    steps: int,
    rtol: float = 1e-3,
    checks: Sequence[Check] = _CHECKS,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> LimitClasses:
    """Say what each example ends in, from the model's own start: a fixed point, a cycle of a period up to 16, a slow
    drift, a divergence, or nothing yet (see `probes/limits/limit_test.py` for the definitions).

    A class is a statement at a precision, so that it stands beside the tolerance, and beside what rounding alone
    makes of a residual. With the checks it is decided twice more: in the other precision (a copy of the model in
    float64; in float32 where the model is in float64), and with the rows of every batch split over two. An example
    whose class changes is listed.

    Args:
        model: anything with the functions of the contract (see `from_functions`). The other precision needs a module,
            functions that follow the dtype of their inputs, or an object whose attributes are modules.
        examples: batches `(inputs, targets)`, or several such iterables by the name of their difficulty.
        steps: budget of a run; each check costs another one.
        rtol: relative residual, RMS(f(z) - z) / RMS(f(z)), at which a state counts as fixed, and over p steps as
            repeated. Raised to what rounding makes, where it is less.
        checks: what to repeat with; `()` for nothing.
        seed: of the start, where it is drawn.
        device: where to run; that of the model's parameters when None.

    Raises:
        InputError: no examples, an unknown check, an impossible budget.
        ContractError: a model that breaks the contract, whose state is not finite before the first step, or that
            draws random numbers.

    Example:
        >>> import homeostat as hs
        >>> model = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.full_like(x, 0.3),
        ...     step=lambda z, x: x * z * (1 - z),  # the logistic map
        ...     decode=lambda z, x: z,
        ... )
        >>> gains = torch.tensor([[2.8], [3.2], [3.5], [9.0]])
        >>> found = classify_limits(model, [(gains, None)], steps=500)
        >>> [str(example.limit) for example in found.examples]
        ['fixed point', 'cycle of 2', 'cycle of 4', 'divergence']
        >>> found.of("all examples").same_in_other_dtype
        1.000 [0.510, 1.000] n=4
    """
    began = time.perf_counter()
    steps, rtol = whole_number("steps", steps), positive("rtol", rtol)
    seed = whole_number("seed", seed, least=0, most=2**63 - 1)
    for check in checks:
        if check not in _CHECKS:
            raise InputError(f"there is no check {check!r}; there are {', '.join(map(repr, _CHECKS))}")
    iterated = as_model(model, where="the model")
    repeats: _Repeats | None = None
    found: dict[str, list[_Batch]] = {}
    with evaluating(model, device) as place, torch.no_grad():
        for key, batches in groups_of(examples).items():
            for batch in batches_of(key, batches, place):
                if repeats is None:
                    check_repeatable(iterated, batch.inputs, seed=seed, indices=batch.indices, steps=steps)
                run = _run(iterated, batch.inputs, batch.indices, steps, rtol, seed)
                if repeats is None:
                    repeats = _Repeats(model, iterated, run.dtype, checks, steps, rtol, seed)
                found.setdefault(key, []).append(
                    _Batch(batch.indices, run, repeats.in_other_dtype(batch), repeats.in_other_batch(batch))
                )
    assert repeats is not None, "there is at least one example"
    runs = [batch.run for batches in found.values() for batch in batches]
    examples_by_name = {key: [e for batch in batches for e in batch.examples(key)] for key, batches in found.items()}
    return LimitClasses(
        model=iterated.name,
        steps=steps,
        rtol=rtol,
        tolerance=max(run.tolerance for run in runs),
        noise_floor=max(run.floor for run in runs),
        dtype=_name(repeats.dtype),
        other_dtype=_name(repeats.other),
        device=str(place),
        difficulties=tuple(_shares(key, rows) for key, rows in examples_by_name.items()),
        examples=tuple(example for rows in examples_by_name.values() for example in rows),
        evaluations=sum(run.evaluations for run in runs) + repeats.evaluations,
        seconds=time.perf_counter() - began,
        notes=tuple(repeats.notes),
    )


@dataclass(frozen=True)
class _Run:
    """The limits of some rows."""

    limits: list[Limit]
    residual: list[float]
    repeat: list[float]
    dtype: torch.dtype
    floor: float
    tolerance: float
    evaluations: int


def _run(model: IteratedModel, inputs: Any, indices: Sequence[int], steps: int, rtol: float, seed: int) -> _Run:
    context = model.encode(inputs)
    problem = Problem.of(model.step, model.initial_state(context, Own().seeded(seed, indices)), context)
    measured = problem.layout.measured()
    check_finite(problem.state, measured, model.name, "its own start", indices)
    leaves = [problem.state[i] for i in measured]
    floor = noise_floor(leaves, _UNITS)
    tolerance = max(rtol, floor)
    end = run_to_end(problem, steps, rtol=tolerance, stochastic=model.stochastic)
    return _Run(
        limits=[Limit(kind, period) for kind, period in end.limit],
        residual=end.residual.tolist(),
        repeat=end.repeat.tolist(),
        dtype=max((leaf.dtype for leaf in leaves), key=lambda dtype: torch.finfo(dtype).eps),
        floor=floor,
        tolerance=tolerance,
        evaluations=end.evaluations,
    )


@dataclass(frozen=True)
class _Batch:
    """One batch, and its repetitions where they could be had."""

    indices: range
    run: _Run
    other_dtype: list[Limit] | None
    other_batch: list[Limit] | None

    def examples(self, difficulty: str) -> list[ExampleLimit]:
        return [
            ExampleLimit(
                difficulty=difficulty,
                index=index,
                limit=self.run.limits[row],
                residual=self.run.residual[row],
                repeat=self.run.repeat[row],
                in_other_dtype=None if self.other_dtype is None else self.other_dtype[row],
                in_other_batch=None if self.other_batch is None else self.other_batch[row],
            )
            for row, index in enumerate(self.indices)
        ]


class _Repeats:
    """Decides the classes of a batch again, in the other precision and in other batches."""

    def __init__(
        self,
        source: Any,
        model: IteratedModel,
        dtype: torch.dtype,
        checks: Sequence[Check],
        steps: int,
        rtol: float,
        seed: int,
    ) -> None:
        self._model, self._checks = model, checks
        self._options = (steps, rtol, seed)
        self.dtype = dtype
        self.other = torch.float32 if dtype == torch.float64 else torch.float64
        self.evaluations = 0
        self.notes: dict[str, None] = {}
        self._twin: IteratedModel | None = None
        if "dtype" in checks:
            self._twin = self._attempt(f"in {_name(self.other)}", lambda: _converted(source, self.other))

    def in_other_dtype(self, batch: ExampleBatch) -> list[Limit] | None:
        """The limits that a copy of the model finds in the other precision."""
        twin = self._twin
        if twin is None:
            return None

        def again() -> _Run:
            run = _run(twin, _cast(batch.inputs, self.other), batch.indices, *self._options)
            if run.dtype != self.other:
                raise TypeError(f"the model makes states in {_name(run.dtype)} whatever its inputs are")
            return run

        run = self._attempt(f"in {_name(self.other)}", again)
        if run is None:
            self._twin = None  # it would fail again
            return None
        self.evaluations += run.evaluations
        return run.limits

    def in_other_batch(self, batch: ExampleBatch) -> list[Limit] | None:
        """The limits of the same rows, those at even places in one batch and those at odd places in another."""
        if "batch" not in self._checks:
            return None
        if batch.rows == 1:
            self.notes["not repeated in another batch where a batch has one example"] = None
            return None
        limits: list[Limit | None] = [None] * batch.rows
        for first in (0, 1):
            places = range(first, batch.rows, 2)
            inputs = rows_at(batch.inputs, torch.tensor(places))
            run = _run(self._model, inputs, [batch.indices[place] for place in places], *self._options)
            self.evaluations += run.evaluations
            for place, limit in zip(places, run.limits, strict=True):
                limits[place] = limit
        return [limit for limit in limits if limit is not None]

    def _attempt(self, how: str, action: Callable[[], T]) -> T | None:
        """What the action returns; where it fails, a note in place of it."""
        try:
            return action()
        except (RuntimeError, TypeError, ValueError, ContractError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self.notes[f"not repeated {how}: {reason}"] = None
            return None


def _converted(source: Any, dtype: torch.dtype) -> IteratedModel:
    """A copy of the model with its parameters in this dtype."""
    copied = copy.deepcopy(source)
    modules = [copied] if isinstance(copied, nn.Module) else getattr(copied, "__dict__", {}).values()
    for module in modules:
        if isinstance(module, nn.Module):
            module.to(dtype)
    return as_model(copied, where="the model")


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(cast, tree)


def _shares(name: str, examples: Sequence[ExampleLimit]) -> LimitShares:
    def same(others: list[Limit | None]) -> Estimate | None:
        hits = [other == e.limit for e, other in zip(examples, others, strict=True) if other is not None]
        return estimates.share(hits) if hits else None

    periods = Counter(example.limit.period for example in examples)
    return LimitShares(
        name=name,
        count=len(examples),
        shares={kind: estimates.share([e.limit.kind == kind for e in examples]) for kind in LIMIT_CLASSES},
        periods={period: count for period, count in periods.items() if period is not None},
        same_in_other_dtype=same([example.in_other_dtype for example in examples]),
        same_in_other_batch=same([example.in_other_batch for example in examples]),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
