"""`extra_steps`: D(N, dN), what a model's loss does when it takes fewer or more steps than it was trained with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from homeostat.errors import InputError
from homeostat.models.contract import IteratedModel, as_model
from homeostat.probes import estimates
from homeostat.probes.answers import judge_of
from homeostat.probes.budgets import best_budget, failed_by, own_sweep, symbols_in
from homeostat.probes.examples import MOST_STEPS, Examples, batches_of, evaluating, positive, whole_number
from homeostat.probes.extra_steps.first_order import predicted_change
from homeostat.probes.extra_steps.result import Data, ExtraSteps, FirstOrder, SignAgreement, StepsCurve, StepsRow
from homeostat.probes.extra_steps.verdict import decide
from homeostat.probes.judge import Judge
from homeostat.probes.ranking import rank_correlation
from homeostat.probes.repeatable import check_repeatable
from homeostat.probes.results import Estimate

_UNITS = 4
"""A mean loss is known to so many units in the last place of the largest one on its curve."""

_NO_LOSS = "nothing gives a loss: the judge has no loss(outputs, targets), or targets are None"


def default_steps(horizon: int) -> list[int]:
    """Test budgets around a horizon, from a quarter of it to 16 times as many.

    Example:
        >>> default_steps(16)
        [4, 8, 12, 15, 16, 17, 20, 24, 32, 64, 128, 256]
        >>> default_steps(1)
        [1, 2, 4, 8, 16]
    """
    quarters = (1, 2, 3, 4, 5, 6, 8, 16, 32, 64)
    found = {horizon - 1, horizon + 1, *(max(1, quarter * horizon // 4) for quarter in quarters)}
    return sorted(steps for steps in found if 1 <= steps <= MOST_STEPS)


def extra_steps(
    model: Any,
    training: Examples | Mapping[str, Examples] | None,
    held_out: Examples | Mapping[str, Examples] | None = None,
    *,
    horizon: int | None = None,
    steps: Sequence[int] | None = None,
    judge: Any = None,
    training_is_whole: bool = False,
    margin: float = 0.05,
    settle_rtol: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> ExtraSteps:
    """Compare fewer and more steps with the trained ones, on training and on held-out examples apart.

    Each example is compared with itself: same parameters, same start (the model's own), the loss at a budget minus
    the loss at the horizon N. That is D(N, dN) of "Test like you train". Where training has reached the least loss
    that these parameters can have at N, D on the training examples cannot be negative for a model that could fit them
    as well at any budget; on held-out examples nothing of the kind holds.

    Args:
        model: anything with the functions of the contract.
        training: batches `(inputs, targets)` that it was trained on, or several such iterables by name; None where
            there are none.
        held_out: the same of examples that it was not trained on.
        horizon: N, the steps it was trained with; the model's `trained_steps` when None.
        steps: test budgets; `default_steps(horizon)` when None. The horizon itself always joins them.
        judge: has `loss`, and `correct` and `symbols` for accuracies (see `Judge`); the model's own object when None.
        training_is_whole: `training` is all that the model was trained on, as for a meta-learner with one task. Then
            its figures are facts, and the intervals points, even for one example.
        margin: a D within this share of the mean loss at N is no change.
        settle_rtol: relative residual within which a state counts as converged.
        seed: of starts and bootstraps.
        device: where to run; that of the model's parameters when None.

    Returns:
        An `ExtraSteps`: curves and a verdict. Losses and D: in units of the loss.

    Raises:
        InputError: an unknown horizon, impossible budgets or options, no examples, or a judge that judges nothing.
        ContractError: a model that breaks the contract, or that draws random numbers without saying `stochastic`.

    Source:
        Ramzi, Ablin, Peyré, Moreau, "Test like you train in implicit deep learning", arXiv 2305.15042.

    Example:
        >>> import homeostat as hs
        >>> model = hs.from_functions(  # passes through the target at its 8th step, and runs on
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.zeros_like(x),
        ...     step=lambda z, x: z + x / 8,
        ...     decode=lambda z, x: z,
        ...     trained_steps=8,
        ... )
        >>> class Squares:
        ...     def loss(self, outputs, targets):
        ...         return (outputs - targets).square().mean(1)
        >>> x = torch.linspace(1, 2, 24)[:, None]
        >>> found = extra_steps(model, [(x, x)], judge=Squares())
        >>> found.verdict.decision, found.of("training").best.value
        ('tuned to this truncation', 8.0)
    """
    iterated = as_model(model, where="the model")
    horizon = _horizon(iterated, horizon)
    budgets = _budgets(steps, horizon)
    settle_rtol, margin = positive("settle_rtol", settle_rtol), positive("margin", margin)
    seed = whole_number("seed", seed, least=0, most=2**63 - 2)
    chosen = judge_of(model, judge)
    if chosen.loss is chosen.correct is chosen.symbols is None:
        raise InputError("nothing says how good an output is: give a judge with loss(outputs, targets)")
    asked: list[tuple[str, Data, Any]] = [*_named("training", training), *_named("held out", held_out)]
    if not asked:
        raise InputError("there are no examples: give training or held-out batches (inputs, targets)")
    whole = training_is_whole and not iterated.stochastic
    curves = []
    with evaluating(model, device) as where:
        for name, data, batches in asked:
            seen = _Seen(iterated, chosen, budgets, horizon, settle_rtol, seed)
            for batch in batches_of(name, batches, where):
                seen.add(batch)
            curves.append(seen.curve(name, data, whole and data == "training"))
    verdict = decide(curves, horizon=horizon, settle_rtol=settle_rtol, margin=margin)
    return ExtraSteps(iterated.name, horizon, settle_rtol, margin, iterated.stochastic, seed, tuple(curves), verdict)


def _horizon(model: IteratedModel, horizon: int | None) -> int:
    if horizon is None and model.trained_steps is None:
        raise InputError(
            f"nothing says how many steps {model.name} was trained with: give horizon=, or set its trained_steps"
        )
    return whole_number("horizon", model.trained_steps if horizon is None else horizon, most=MOST_STEPS - 1)


def _budgets(steps: Sequence[int] | None, horizon: int) -> list[int]:
    if steps is None:
        return default_steps(horizon)
    budgets = sorted({horizon, *(whole_number("steps", n) for n in steps)})
    if budgets[-1] == horizon:
        raise InputError(f"give at least one test budget above the horizon of {horizon} steps")
    return budgets


def _named(data: Data, examples: Any) -> list[tuple[str, Data, Any]]:
    if examples is None:
        return []
    if not isinstance(examples, Mapping):
        return [(data, data, examples)]
    if not examples:
        raise InputError(f"there are no {data} examples: give batches (inputs, targets), or such lists by name")
    return [(f"{data}: {name}", data, batches) for name, batches in examples.items()]


class _Seen:
    """One curve, batch after batch."""

    def __init__(
        self, model: IteratedModel, judge: Judge, budgets: list[int], horizon: int, rtol: float, seed: int
    ) -> None:
        self._model, self._judge, self._budgets, self._horizon = model, judge, budgets, horizon
        self._rtol, self._seed = rtol, seed
        self._columns: dict[str, list[np.ndarray]] = {}
        self._predicted: list[np.ndarray] = []
        self._missing: dict[str, str] = {}
        self._symbols, self._unit = 1, 0.0

    def add(self, batch: Any) -> None:
        model, judge = self._model, self._judge
        if batch.indices.start == 0 and not model.stochastic:
            check_repeatable(model, batch.inputs, seed=self._seed, indices=batch.indices, steps=self._budgets[-1])
        swept, _ = own_sweep(model, batch, judge, self._budgets, rtol=self._rtol, seed=self._seed)
        for name in ("loss", "correct", "symbols", "residual"):
            values = getattr(swept, name)
            if values is not None:
                self._columns.setdefault(name, []).append(values.astype(float))
        self._columns.setdefault("failed", []).append(failed_by(swept, self._budgets))
        self._symbols = symbols_in(batch.targets)
        if swept.loss is None:
            self._missing["loss"] = _NO_LOSS
            return
        self._unit = max(self._unit, float(np.finfo(swept.loss.dtype).eps))
        self._predict(batch)

    def _predict(self, batch: Any) -> None:
        """A run of its own to the horizon: the sweep goes on from there, and keeps no states behind it."""
        if self._model.stochastic:
            self._missing["first-order prediction"] = "its steps draw random numbers, so that no two runs are the same"
            return
        swept, context = own_sweep(self._model, batch, self._judge, [self._horizon], rtol=self._rtol, seed=self._seed)
        found, why = predicted_change(self._model, swept.state, context, batch.targets, self._judge)
        if found is None:
            self._missing["first-order prediction"] = why
            return
        self._predicted.append(np.where(swept.failed_at > 0, np.nan, found))

    def curve(self, name: str, data: Data, whole: bool) -> StepsCurve:
        """What was seen."""
        columns = {key: np.concatenate(parts) for key, parts in self._columns.items()}
        place = self._budgets.index(self._horizon)
        failed = columns["failed"]
        count = len(failed)
        losses = columns.get("loss") if "loss" not in self._missing else None
        best, rounding, first, changes = None, 0.0, None, None
        if losses is not None:
            losses = np.where(failed | ~np.isfinite(losses), np.nan, losses)
            failed = np.isnan(losses)
            changes = _changes(losses, place)
            best = best_budget(losses, self._budgets, higher_is_better=False, seed=self._seed)
            best = None if not best.count else _point(best) if whole else best
            rounding = _UNITS * self._unit * max((abs(_mean(column)) for column in losses.T), default=0.0)
            if "first-order prediction" not in self._missing:
                first = self._first_order(np.concatenate(self._predicted), losses, changes, place)
        rows = self._rows(columns, losses, changes, failed, place, whole)
        return StepsCurve(name, data, count, whole, rows, best, rounding, first, self._missing)

    def _rows(
        self,
        columns: dict[str, np.ndarray],
        losses: np.ndarray | None,
        changes: np.ndarray | None,
        failed: np.ndarray,
        place: int,
        whole: bool,
    ) -> tuple[StepsRow, ...]:
        none: list[Estimate | None] = [None] * len(self._budgets)
        means, relatives = none, none
        if losses is not None and changes is not None:
            both = np.where(np.isfinite(changes), changes, np.nan)
            means = [*estimates.together(both, seed=self._seed)]
            relatives = [
                None if np.isnan(one.value) else one
                for one in estimates.together(both, per=losses[:, place], seed=self._seed)
            ]
        rows = []
        for i, steps in enumerate(self._budgets):
            ok = ~failed[:, i]
            loss = None if losses is None else estimates.mean(losses[ok, i], seed=self._seed)
            exact = symbol = gained = lost = p_value = None
            if "correct" in columns:
                right = (columns["correct"] > 0) & ~failed
                exact = estimates.share(right[:, i])
                gained, lost, p_value = estimates.paired_change(right[:, place], right[:, i])
            if "symbols" in columns:
                symbol = estimates.clustered_share(np.where(ok, columns["symbols"][:, i], 0.0), self._symbols)
            residual = estimates.median(np.where(ok, columns["residual"][:, i], np.inf))
            row = StepsRow(
                steps=steps,
                loss=loss,
                change=means[i],
                relative=relatives[i],
                exact=exact,
                gained=gained,
                lost=lost,
                p_value=None if whole else p_value,
                symbol=symbol,
                residual=residual,
                failed=int((~ok).sum()),
                broken=int((~ok & ~failed[:, place]).sum()),
                mended=int((ok & failed[:, place]).sum()),
                changes=() if changes is None else tuple(changes[:, i].tolist()),
            )
            rows.append(_fact(row) if whole else row)
        return tuple(rows)

    def _first_order(self, predicted: np.ndarray, losses: np.ndarray, changes: np.ndarray, place: int) -> FirstOrder:
        known = np.isfinite(predicted) & np.isfinite(losses[:, place])
        values = np.where(known, predicted, np.nan)
        agreements = []
        for i in range(place + 1, len(self._budgets)):
            there = known & np.isfinite(changes[:, i])
            foretold, found = values[there], changes[there, i]
            size = np.maximum(np.abs(losses[there, place]), np.abs(losses[there, i]))
            # A sign that is due to rounding is no sign.
            signed = (np.abs(found) > _UNITS * self._unit * size) & (foretold != 0)
            sign = estimates.share(np.sign(foretold[signed]) == np.sign(found[signed]))
            agreements.append(SignAgreement(self._budgets[i], sign, rank_correlation(foretold, found)))
        mean = estimates.mean(values[known], seed=self._seed)
        return FirstOrder(mean, tuple(values.tolist()), tuple(agreements))


def _changes(losses: np.ndarray, place: int) -> np.ndarray:
    """`(examples, budgets)` loss minus that at the horizon, where a loss that is not finite is infinite."""
    at = losses[:, [place]]
    found = losses - at
    found = np.where(np.isnan(losses) & ~np.isnan(at), np.inf, found)
    return np.where(~np.isnan(losses) & np.isnan(at), -np.inf, found)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else 0.0


def _fact(row: StepsRow) -> StepsRow:
    """The row of all the examples there are: no figure has a sampling error."""
    found = {name: getattr(row, name) for name in ("loss", "change", "relative", "exact", "symbol", "residual")}
    return dataclasses.replace(row, **{name: None if one is None else _point(one) for name, one in found.items()})


def _point(estimate: Estimate) -> Estimate:
    return dataclasses.replace(estimate, low=estimate.value, high=estimate.value)
