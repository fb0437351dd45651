"""`compare`: several models on the same inputs, at equal evaluations or at equal measured time."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from homeostat.checks import is_number
from homeostat.errors import InputError
from homeostat.models.contract import IteratedModel, as_model
from homeostat.models.starts import stream_seed
from homeostat.probes import estimates
from homeostat.probes.budgets import failed_by, own_sweep
from homeostat.probes.comparison.differences import differences_at_once, paired_difference
from homeostat.probes.comparison.price import (
    Price,
    common_costs,
    price_in_evaluations,
    prices_in_seconds,
    steps_at,
)
from homeostat.probes.comparison.result import (
    Comparison,
    Contestant,
    Costs,
    Curve,
    CurvePoint,
    Difference,
    Peak,
    PeakDifference,
)
from homeostat.probes.examples import (
    MOST_STEPS,
    ExampleBatch,
    Examples,
    batches_of,
    evaluating,
    groups_of,
    positive,
    whole_number,
)
from homeostat.probes.judge import Judge

ALL = "all examples"

OnExamples = Callable[[str, str, int], None]
"""Told the difficulty, the model, and the examples of the difficulty that it has done."""


def compare(
    models: Mapping[str, Any],
    examples: Examples | Mapping[str, Examples],
    *,
    judge: Any = None,
    costs: Costs = "evaluations",
    most: float | None = None,
    calibration: float = 0.5,
    seed: int = 0,
    device: str | torch.device | None = None,
    on_examples: OnExamples | None = None,
) -> Comparison:
    """Compare models on the same inputs at equal cost: accuracy by cost, paired differences, and each at its best.

    Every model starts from its own start and is read after each budget. At a cost, a model takes the most steps that
    the cost allows. The examples are split at random: on the calibration split the best budget of each model is chosen,
    and all that is reported comes from the test split.

    Args:
        models: two or more by name, each with the functions of the contract.
        examples: batches `(inputs, targets)`, or several such iterables by the name of their difficulty. All models
            get each batch, as it is.
        judge: has `correct`, and `symbols` where there are such; the models' own objects when None.
        costs: `"evaluations"` counts `unit_cost` a step, in the unit that the models say it in, which must be the same
            one. `"seconds"` measures, on the first batch of each difficulty, what encoding, decoding and a step of each
            model take on this machine, and divides by the examples of that batch.
        most: the largest cost an example; by default that of the longest budget among eight times the horizon of each
            model (128 steps where that is unknown).
        calibration: share of the examples that budgets are chosen on, above 0 and below 1.
        seed: of the split and the bootstrap.
        device: where to run; where the parameters of the first model are when None.
        on_examples: told of progress.

    Raises:
        InputError: fewer than two models, no or too few examples, numbers that are not finite, impossible options, or
            nothing that says what is right.
        ContractError: a model that breaks the contract.

    Example:
        >>> import homeostat as hs
        >>> class Root:
        ...     trained_steps = 4
        ...     def __init__(self, rate):
        ...         self.rate = rate
        ...     def encode(self, x):
        ...         return x
        ...     def initial_state(self, x):
        ...         return torch.ones_like(x)
        ...     def step(self, z, x):
        ...         return z + self.rate * (x - z * z)
        ...     def decode(self, z, x):
        ...         return z
        ...     def correct(self, outputs, targets):
        ...         return ((outputs - targets).abs() < 1e-2).all(1)
        >>> x = torch.linspace(1, 4, 200)[:, None]
        >>> found = hs.compare({"quick": Root(0.2), "slow": Root(0.05)}, [(x, x.sqrt())])
        >>> found.peak_differences[0].value
        0.000 [-0.037, 0.037] n=100
        >>> [d.value for d in found.differences if d.cost == 8]
        [0.970 [0.904, 1.000] n=100]
    """
    if not isinstance(models, Mapping) or len(models) < 2:
        raise InputError("a comparison takes two or more models by name, such as {'ours': ..., 'theirs': ...}")
    if costs not in ("evaluations", "seconds"):
        raise InputError(f"costs must be 'evaluations' or 'seconds', not {costs!r}")
    most = None if most is None else positive("most", most)
    seed = whole_number("seed", seed, least=0, most=2**63 - 2)
    if not is_number(calibration) or not 0 < calibration < 1:
        raise InputError(f"calibration must be a share above 0 and below 1, such as 0.5, not {calibration!r}")
    runners = [_Runner.of(str(name), model, judge) for name, model in models.items()]
    splits: list[_Split] = []
    with evaluating(runners[0].subject, device) as where:
        for name, batches in groups_of(examples).items():
            group = _Group(name, runners, costs, most)
            for batch in batches_of(name, batches, where):
                group.add(batch, seed, on_examples)
            splits.append(group.split(calibration, stream_seed(seed, len(splits))))
    if len(splits) > 1 and costs == "evaluations":
        splits.append(_joined(splits))
    return _summarise(runners, splits, costs, seed, str(where))


@dataclass(frozen=True)
class _Runner:
    """A model that takes part."""

    name: str
    subject: Any
    model: IteratedModel
    judge: Judge

    @classmethod
    def of(cls, name: str, subject: Any, judge: Any) -> "_Runner":
        model = as_model(subject, where=name)
        source = subject if judge is None else judge
        chosen = source if isinstance(source, Judge) else Judge.of(source)
        if chosen.correct is None:
            whose = f"{name} has no correct(outputs, targets)" if judge is None else "the judge has no correct()"
            raise InputError(f"{whose}, so that nothing says what is right; hand over a judge that has")
        return cls(name, subject, model, chosen)

    @property
    def longest(self) -> int:
        """Eight times the horizon, or 128 steps."""
        return min(MOST_STEPS, 8 * (self.model.trained_steps or 16))

    def contestant(self) -> Contestant:
        parameters = None
        if isinstance(self.subject, nn.Module):
            parameters = sum(p.numel() for p in self.subject.parameters())
        return Contestant(self.name, self.model.trained_steps, float(self.model.unit_cost), parameters)


@dataclass
class _Scores:
    """One model on the examples of a difficulty, `(examples, costs)`, batch after batch."""

    correct: list[np.ndarray] = field(default_factory=list)
    failed: list[np.ndarray] = field(default_factory=list)
    symbols: list[np.ndarray] | None = field(default_factory=list)


class _Group:
    """The models on one difficulty."""

    def __init__(self, name: str, runners: Sequence[_Runner], costs: Costs, most: float | None) -> None:
        self._name, self._runners, self._costs_in, self._most = name, runners, costs, most
        self._prices: dict[str, Price] = {}
        self._costs: list[float] = []
        self._scores = {runner.name: _Scores() for runner in runners}

    def add(self, batch: ExampleBatch, seed: int, on_examples: OnExamples | None) -> None:
        for leaf in pytree.tree_leaves((batch.inputs, batch.targets)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                raise InputError(f"examples of {self._name!r} hold numbers that are not finite, in {batch!r}")
        if not self._prices:
            self._set_costs(batch)
        for runner in self._runners:
            steps = steps_at(self._prices[runner.name], self._costs)
            budgets = sorted(set(steps.tolist()))
            with evaluating(runner.subject):
                swept, _ = own_sweep(runner.model, batch, runner.judge, budgets, rtol=1e-3, seed=seed)
            if swept.correct is None:
                raise InputError(f"examples of {self._name!r} have no targets, so that nothing says what is right")
            columns = np.searchsorted(budgets, steps)
            failed = failed_by(swept, budgets)
            scores = self._scores[runner.name]
            scores.correct.append((swept.correct & ~failed)[:, columns])
            scores.failed.append(failed[:, columns])
            if swept.symbols is None:
                scores.symbols = None
            elif scores.symbols is not None:
                scores.symbols.append(np.where(failed, 0.0, swept.symbols)[:, columns])
            if on_examples is not None:
                on_examples(self._name, runner.name, batch.indices.stop)

    def _set_costs(self, batch: ExampleBatch) -> None:
        models = {runner.name: runner.model for runner in self._runners}
        if self._costs_in == "evaluations":
            self._prices = {name: price_in_evaluations(model, name) for name, model in models.items()}
        else:
            with ExitStack() as modes:  # as they will be when they are judged, and nothing of theirs is changed
                for runner in self._runners:
                    modes.enter_context(evaluating(runner.subject))
                self._prices = prices_in_seconds(models, batch.inputs, batch.rows)
        prices = [self._prices[runner.name] for runner in self._runners]
        self._costs = common_costs(prices, [runner.longest for runner in self._runners], self._most)
        if not self._costs:
            least = max(price.of(1) for price in prices)
            if self._most is None:
                raise InputError(f"on {self._name!r} not every model can take a step; give most, {least:g} at least")
            raise InputError(
                f"most is {self._most:g} {self._costs_in}, at which not every model can take one step on "
                f"{self._name!r}: that takes {least:g}"
            )
        if max(price.affords(self._costs[-1]) for price in prices) > MOST_STEPS:
            raise InputError(f"most lets a model take more than {MOST_STEPS:,} steps on {self._name!r}")

    def split(self, calibration: float, seed: int) -> "_Split":
        first = self._scores[self._runners[0].name]
        count = sum(map(len, first.correct))
        chosen = round(calibration * count)
        if not 0 < chosen < count:
            raise InputError(
                f"{self._name!r} has {count} example{'s' * (count != 1)}, of which {calibration:g} cannot be set aside "
                "for calibration with some left to test on; give more"
            )
        order = np.random.default_rng(seed).permutation(count)
        parts = order[:chosen], order[chosen:]
        return _Split(
            self._name,
            self._costs,
            {runner.name: steps_at(self._prices[runner.name], self._costs) for runner in self._runners},
            {name: tuple(np.concatenate(s.correct)[part] for part in parts) for name, s in self._scores.items()},
            {name: np.concatenate(s.failed)[parts[1]] for name, s in self._scores.items()},
            {
                name: None if s.symbols is None else np.concatenate(s.symbols)[parts[1]]
                for name, s in self._scores.items()
            },
        )


@dataclass(frozen=True)
class _Split:
    """The models on one difficulty: by name, `(examples, costs)`."""

    name: str
    costs: list[float]
    steps: dict[str, np.ndarray]
    correct: dict[str, tuple[np.ndarray, ...]]
    """On the calibration split, and on the test split."""
    failed: dict[str, np.ndarray]
    """On the test split, as the symbols."""
    symbols: dict[str, np.ndarray | None]


def _joined(splits: Sequence[_Split]) -> _Split:
    """All difficulties together: with evaluations, costs are the same ones everywhere."""
    first = splits[0]
    names = list(first.steps)

    def symbols_of(name: str) -> np.ndarray | None:
        found = [split.symbols[name] for split in splits]
        return None if any(one is None for one in found) else np.concatenate([one for one in found if one is not None])

    return _Split(
        ALL,
        first.costs,
        first.steps,
        {
            name: tuple(np.concatenate([split.correct[name][part] for split in splits]) for part in (0, 1))
            for name in names
        },
        {name: np.concatenate([split.failed[name] for split in splits]) for name in names},
        {name: symbols_of(name) for name in names},
    )


def _summarise(
    runners: Sequence[_Runner], splits: Sequence[_Split], costs: Costs, seed: int, device: str
) -> Comparison:
    names = [runner.name for runner in runners]
    pairs = list(combinations(names, 2))
    curves, differences, peaks, gaps = [], [], [], []
    for split in splits:
        best: dict[str, int] = {}
        for name in names:
            curves.append(_curve(split, name))
            calibration, test = split.correct[name]
            shares = calibration.mean(0)
            best[name] = place = int(np.argmax(shares))  # of equals the cheapest
            peaks.append(
                Peak(
                    model=name,
                    difficulty=split.name,
                    steps=int(split.steps[name][place]),
                    cost=split.costs[place],
                    calibration=float(shares[place]),
                    exact=estimates.share(test[:, place]),
                )
            )
        for ours, theirs in pairs:
            a, b = split.correct[ours][1], split.correct[theirs][1]
            found = differences_at_once(a, b, seed=seed)
            differences += [
                Difference(ours, theirs, split.name, cost, one) for cost, one in zip(split.costs, found, strict=True)
            ]
            value = paired_difference(a[:, best[ours]], b[:, best[theirs]], seed=seed)
            gaps.append(PeakDifference(ours, theirs, split.name, value))
    alone = [split for split in splits if split.name != ALL or len(splits) == 1]
    return Comparison(
        costs=costs,
        models=tuple(runner.contestant() for runner in runners),
        curves=tuple(curves),
        differences=tuple(differences),
        peaks=tuple(peaks),
        peak_differences=tuple(gaps),
        calibration=sum(len(split.correct[names[0]][0]) for split in alone),
        test=sum(len(split.correct[names[0]][1]) for split in alone),
        seed=seed,
        device=device,
        notes=tuple(_notes(runners, splits, costs)),
    )


def _curve(split: _Split, name: str) -> Curve:
    test, failed, symbols = split.correct[name][1], split.failed[name], split.symbols[name]
    points = [
        CurvePoint(
            cost=cost,
            steps=int(split.steps[name][place]),
            exact=estimates.share(test[:, place]),
            symbol=None if symbols is None else float(symbols[:, place].mean()),
            failed=int(failed[:, place].sum()),
        )
        for place, cost in enumerate(split.costs)
    ]
    return Curve(name, split.name, tuple(points))


def _notes(runners: Sequence[_Runner], splits: Sequence[_Split], costs: Costs) -> Iterator[str]:
    if costs == "evaluations":
        units = ", ".join(f"{runner.name} {runner.model.unit_cost:g}" for runner in runners)
        yield f"Evaluations an example, by what the models say a step costs: {units}."
    else:
        yield "Seconds an example as measured here, in batches of the size given; other machines will differ."
    for runner in runners:
        if runner.model.stochastic:
            yield f"{runner.name}'s step draws random numbers: another run gives other figures."
    for split in splits:
        for name, (calibration, _) in split.correct.items():
            shares = calibration.mean(0)
            if math.isclose(shares[-1], shares.max()) and np.argmax(shares) == len(shares) - 1 and len(shares) > 1:
                yield f"{split.name}: {name} was best at the largest cost; a larger one might be better."
