"""`cross_horizons`: models trained at several horizons, each run with several test budgets.

The question behind the table is whether the best test budget stays at the trained horizon (the model has specialised
to its truncation), lies above it (it makes use of more steps), or anywhere above it is as good (it settles).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from homeostat.errors import InputError
from homeostat.models.contract import as_model
from homeostat.probes import estimates
from homeostat.probes.answers import judge_of
from homeostat.probes.budgets import best_budget, failed_by, sweep_batches, symbols_in
from homeostat.probes.columns import columns, percent
from homeostat.probes.examples import Examples, evaluating, groups_of, pairs_of, positive, whole_number
from homeostat.probes.figures import interval
from homeostat.probes.judge import Judge
from homeostat.probes.results import Estimate

Metric = Literal["exact", "symbol", "loss", "residual"]
_FIELDS: dict[str, str] = {"exact": "correct", "symbol": "symbols", "loss": "loss", "residual": "residual"}


@dataclass(frozen=True)
class HorizonCell:
    """One model with one test budget at one difficulty."""

    difficulty: str
    trained: int
    steps: int
    estimate: Estimate
    """exact: Wilson; symbol: Wilson with the effective count; residual: median; others: mean over the examples that are
    finite, with a bootstrap interval."""
    failed: int
    """Examples whose state, or whose metric, is not finite at this budget. Exact and symbol count them as wrong, the
    residual as infinite; where they are left out of a mean, this says how many."""


@dataclass(frozen=True)
class BestBudget:
    """Where the best test budget of one model lies at one difficulty."""

    difficulty: str
    trained: int
    steps: Estimate
    """The budget of the best mean, the smallest one of equals; the interval is what it becomes over bootstrap samples
    of the examples. The metric there is chosen afterwards, and so too good: measure it on other examples."""


@dataclass(frozen=True, repr=False)
class HorizonTable:
    """What `cross_horizons` found; print it for a table."""

    metric: str
    higher_is_better: bool
    cells: tuple[HorizonCell, ...]
    best: tuple[BestBudget, ...]

    @property
    def difficulties(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.difficulty for cell in self.cells))

    def at(self, trained: int, steps: int, difficulty: str | None = None) -> HorizonCell:
        """One cell; the difficulty may be left out where there is one."""
        difficulty = self._one(difficulty)
        for cell in self.cells:
            if (cell.difficulty, cell.trained, cell.steps) == (difficulty, trained, steps):
                return cell
        raise KeyError(f"no cell for {trained} trained and {steps} test steps at {difficulty!r}")

    def best_of(self, trained: int, difficulty: str | None = None) -> BestBudget:
        """Where the best test budget of one model lies."""
        difficulty = self._one(difficulty)
        for best in self.best:
            if (best.difficulty, best.trained) == (difficulty, trained):
                return best
        raise KeyError(f"no model trained with {trained} steps at {difficulty!r}")

    def _one(self, difficulty: str | None) -> str:
        if difficulty is None and len(self.difficulties) > 1:
            raise KeyError(f"name a difficulty; there are {list(self.difficulties)}")
        return next(iter(self.difficulties)) if difficulty is None else difficulty

    def __repr__(self) -> str:
        share = self.metric in ("exact", "symbol")
        write = percent if share else interval
        text = [f"{self.metric}{', %' if share else ''} [95 % interval] by trained horizon (rows) and test steps"]
        for difficulty in self.difficulties:
            cells = [cell for cell in self.cells if cell.difficulty == difficulty]
            budgets = sorted({cell.steps for cell in cells})
            lines = []
            for trained in dict.fromkeys(cell.trained for cell in cells):
                best = self.best_of(trained, difficulty).steps
                row = [self.at(trained, steps, difficulty) for steps in budgets]
                marks = ["*" if cell.steps == best.value else "" for cell in row]
                lines.append([
                    str(trained),
                    *(write(cell.estimate) + mark for cell, mark in zip(row, marks, strict=True)),
                    interval(best),
                ])  # fmt: skip
            count = cells[0].estimate.count + (
                0 if self.metric in _FIELDS and self.metric != "loss" else cells[0].failed
            )
            text += ["", f"{difficulty} (n={count})", *columns(["trained", *map(str, budgets), "best at"], lines)]
            failed = [f"{c.failed} at {c.trained} x {c.steps}" for c in cells if c.failed]
            if failed:
                text.append(f"not finite: {', '.join(failed)}")
        text.append("* the best test budget, which is chosen afterwards: measure its figure on other examples.")
        return "\n".join(text)


def cross_horizons(
    models: Mapping[int, Any],
    examples: Examples | Mapping[str, Examples],
    *,
    steps: Sequence[int],
    metric: Metric | Callable[[Any, Any], Tensor] = "exact",
    higher_is_better: bool | None = None,
    judge: Any = None,
    settle_rtol: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> HorizonTable:
    """Run every model with every test budget, on the same examples, in one pass each.

    Args:
        models: by the steps they were trained with; anything with the functions of the contract.
        examples: batches `(inputs, targets)`, or several such iterables by the name of their difficulty. They are
            read once and kept, since every model runs on them.
        steps: test budgets.
        metric: `exact` and `symbol` accuracy, `loss`, `residual` (relative, of the last step), or a function
            `(outputs, targets) -> (batch,)`.
        higher_is_better: of a function; known for the others.
        judge: has `correct`, `symbols`, `loss` (see `Judge`); each model's own object when None.
        settle_rtol: relative residual below which a run may leave early once it rests.
        seed: of starts and bootstrap.
        device: where to run; that of each model's parameters when None.

    Raises:
        InputError: no models or examples, impossible budgets, or nothing that gives this metric.
        ContractError: a model that breaks the contract.

    Example:
        >>> import homeostat as hs
        >>> def trained(horizon):  # one that has learned to be right after exactly so many steps
        ...     return hs.from_functions(
        ...         encode=lambda x: x,
        ...         initial_state=lambda x: torch.zeros_like(x),
        ...         step=lambda z, x: z + x / horizon,
        ...         decode=lambda z, x: z,
        ...     )
        >>> x = torch.linspace(1, 2, 8)[:, None]
        >>> table = cross_horizons(
        ...     {n: trained(n) for n in (2, 4)},
        ...     [(x, x)],
        ...     steps=[1, 2, 4, 8],
        ...     metric=lambda outputs, targets: (outputs - targets).abs().mean(1),
        ...     higher_is_better=False,
        ... )
        >>> [table.best_of(n).steps.value for n in (2, 4)]
        [2.0, 4.0]
    """
    budgets = sorted({whole_number("steps", n) for n in steps})
    if not budgets:
        raise InputError("give at least one test budget, such as steps=[4, 16, 64]")
    if not models:
        raise InputError("there are no models: give them by the steps they were trained with")
    horizons = sorted(whole_number("a trained horizon", horizon) for horizon in models)
    settle_rtol, seed = positive("settle_rtol", settle_rtol), whole_number("seed", seed, least=0, most=2**63 - 2)
    name, upwards = _metric(metric, higher_is_better)
    groups = {key: list(pairs_of(key, batches)) for key, batches in groups_of(examples).items()}
    cells, best = [], []
    for horizon in horizons:
        model = models[horizon]
        chosen = judge_of(model, judge)
        if callable(metric):
            chosen = replace(chosen, loss=metric, symbols=None)
        for key, batches in groups.items():
            values, symbols = _measured(model, key, batches, chosen, budgets, name, settle_rtol, seed, device)
            for place, budget in enumerate(budgets):
                estimate, failed = _estimate(values[:, place], name, symbols, seed)
                cells.append(HorizonCell(key, horizon, budget, estimate, failed))
            best.append(BestBudget(key, horizon, _best(values, budgets, name, upwards, seed)))
    order = {key: place for place, key in enumerate(groups)}
    cells.sort(key=lambda cell: (order[cell.difficulty], cell.trained, cell.steps))
    best.sort(key=lambda found: (order[found.difficulty], found.trained))
    return HorizonTable(name, upwards, tuple(cells), tuple(best))


def _metric(metric: Any, higher_is_better: bool | None) -> tuple[str, bool]:
    """What the metric is called, and which way it is better."""
    if callable(metric):
        if not isinstance(higher_is_better, bool):
            raise InputError("say with higher_is_better=True or False which way your metric is better")
        return getattr(metric, "__name__", type(metric).__name__).strip("<>"), higher_is_better
    if metric not in _FIELDS:
        raise InputError(f"metric must be one of {', '.join(_FIELDS)}, or a function, not {metric!r}")
    upwards = metric in ("exact", "symbol")
    if higher_is_better not in (None, upwards):
        raise InputError(f"of {metric}, {'more' if upwards else 'less'} is better: leave higher_is_better out")
    return metric, upwards


def _measured(
    model: Any,
    key: str,
    batches: list[tuple[Any, Any]],
    judge: Judge,
    budgets: list[int],
    metric: str,
    rtol: float,
    seed: int,
    device: str | torch.device | None,
) -> tuple[np.ndarray, int]:
    """`(examples, budgets)` values of the metric, NaN for a failed example; and the symbols of an example."""
    field = _FIELDS.get(metric, "loss")
    iterated = as_model(model, where="the model")
    found, symbols = [], 1
    with evaluating(model, device) as where:
        for batch, swept in sweep_batches(iterated, key, batches, judge, budgets, rtol=rtol, seed=seed, device=where):
            values = getattr(swept, field)
            if values is None:
                raise InputError(f"nothing gives {metric} for {key!r}: the judge has no {field}, or targets are None")
            found.append(np.where(failed_by(swept, budgets), np.nan, values.astype(float)))
            symbols = symbols_in(batch.targets)
    return np.concatenate(found), symbols


def _estimate(values: np.ndarray, metric: str, symbols: int, seed: int) -> tuple[Estimate, int]:
    bad = np.isnan(values)
    if metric == "exact":
        return estimates.share(np.where(bad, 0, values) > 0), int(bad.sum())
    if metric == "symbol":
        return estimates.clustered_share(np.where(bad, 0, values), symbols), int(bad.sum())
    if metric == "residual":
        return estimates.median(values), int(bad.sum())
    finite = np.isfinite(values)
    return estimates.mean(values[finite], seed=seed), int((~finite).sum())


def _best(values: np.ndarray, budgets: list[int], metric: str, upwards: bool, seed: int) -> Estimate:
    """The budget of the best mean; of residuals, of the best median."""
    if metric in ("exact", "symbol"):
        values = np.where(np.isnan(values), 0.0, values)  # a failed example is wrong, and no more than that
    middle = np.median if metric == "residual" else np.mean
    return best_budget(values, budgets, higher_is_better=upwards, middle=middle, seed=seed)
