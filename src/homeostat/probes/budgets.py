"""Every example with every test budget in one pass, and which budget is best: what probes of the budget share."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Own
from homeostat.probes.examples import ExampleBatch, batches_of
from homeostat.probes.judge import Judge
from homeostat.probes.results import Estimate
from homeostat.probes.sweep import BatchSweep, sweep_batch

_RESAMPLES = 1000


def sweep_batches(
    model: IteratedModel,
    name: str,
    batches: Any,
    judge: Judge,
    budgets: Sequence[int],
    *,
    rtol: float,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[ExampleBatch, BatchSweep]]:
    """The batches of one difficulty, each run from the model's own start to the largest budget."""
    for batch in batches_of(name, batches, device):
        yield batch, own_sweep(model, batch, judge, budgets, rtol=rtol, seed=seed)[0]


def own_sweep(
    model: IteratedModel, batch: ExampleBatch, judge: Judge, budgets: Sequence[int], *, rtol: float, seed: int
) -> tuple[BatchSweep, Any]:
    """One batch from the model's own start; and its context."""
    start = Own().seeded(seed, batch.indices)
    return sweep_batch(
        model, batch.inputs, batch.targets, judge, budgets, rtol, lambda context: model.initial_state(context, start)
    )


def failed_by(swept: BatchSweep, budgets: Sequence[int]) -> np.ndarray:
    """`(rows, budgets)` bool: the state is no longer finite at this budget."""
    return (swept.failed_at[:, None] > 0) & (swept.failed_at[:, None] <= np.asarray(budgets))


def symbols_in(targets: Any) -> int:
    """Symbols of an example, where targets say so."""
    return max(1, targets[0].numel()) if isinstance(targets, Tensor) else 1


def best_budget(
    values: np.ndarray,
    budgets: Sequence[int],
    *,
    higher_is_better: bool,
    middle: Callable[..., Any] = np.mean,
    seed: int = 0,
) -> Estimate:
    """The budget of the best mean of `(examples, budgets)`, the smallest one of equals, and where it lies over
    bootstrap samples of the examples (1,000). NaN stands for a failure, and is worse than anything, so that no budget
    wins by losing examples; of a share hand over 0 in its place. An example that failed at every budget prefers none
    and is left out; where none is left the budget is NaN.

    The best one is chosen afterwards, and its figure is too good.

    Args:
        middle: takes the values and `axis`; the mean, or the median.

    Example:
        >>> losses = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, float("nan")]])
        >>> best_budget(losses, [1, 2, 4], higher_is_better=False)
        2.000 [2.000, 2.000] n=2
    """
    values = values[~np.isnan(values).all(1)]
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0)
    values = np.where(np.isnan(values), -math.inf if higher_is_better else math.inf, values)

    def place(chosen: np.ndarray) -> int:
        centre = middle(chosen, axis=0)
        return budgets[int(np.argmax(centre if higher_is_better else -centre))]

    draw = np.random.default_rng(seed)
    count = len(values)
    value = float(place(values))
    if count < 2:
        return Estimate(value, math.nan, math.nan, count)
    places = [place(values[draw.integers(0, count, count)]) for _ in range(_RESAMPLES)]
    low, high = np.quantile(places, [0.025, 0.975], method="nearest").tolist()
    return Estimate(value, float(low), float(high), count)
