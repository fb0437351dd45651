"""What a budget of steps costs: in evaluations as the models say, or in seconds as measured here."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from homeostat.checks import is_number
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Own

_TURNS = 7
_LEAST_SECONDS = 0.02
_MOST_STEPS = 256


@dataclass(frozen=True)
class Price:
    """Cost of one example, `once + steps * step`.

    Example:
        >>> price = Price(once=1.0, step=2.0)
        >>> price.of(3), price.affords(8.9)
        (7.0, 3)
    """

    once: float
    step: float

    def of(self, steps: int) -> float:
        """What so many steps cost."""
        return self.once + steps * self.step

    def affords(self, cost: float) -> int:
        """The most steps within a cost; 0 where there is none."""
        # A cost that was made from a number of steps affords these, whatever rounding says.
        return max(0, int((cost - self.once) / self.step * (1 + 1e-12) + 1e-9))


def price_in_evaluations(model: IteratedModel, name: str) -> Price:
    """`unit_cost` a step.

    Raises:
        ContractError: it is not a finite number above 0.
    """
    cost = model.unit_cost
    if not is_number(cost) or not 0 < cost < float("inf"):
        raise ContractError(f"unit_cost of {name} must be a finite number above 0, not {cost!r}")
    return Price(0.0, float(cost))


def prices_in_seconds(models: Mapping[str, IteratedModel], inputs: Any, rows: int) -> dict[str, Price]:
    """Seconds an example, measured on one batch with all models in turns, so that a machine that slows down slows them
    all: encoding and decoding once, and then each step. Medians over seven turns.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for turn in range(_TURNS + 1):
        for name, model in models.items():
            found = _timed(model, inputs)
            if turn:  # the first turn warms up
                taken[name].append(found)
    return {
        name: Price(median(once for once, _ in found) / rows, median(step for _, step in found) / rows)
        for name, found in taken.items()
    }


def _timed(model: IteratedModel, inputs: Any) -> tuple[float, float]:
    """Seconds of encoding and decoding a batch, and of a step."""
    with torch.no_grad():
        began = _now(inputs)
        context = model.encode(inputs)
        problem = Problem.of(model.step, model.initial_state(context, Own()), context)
        ready = _now(inputs)
        state, step, count = problem.state, problem.bind(problem.context), 0
        while True:
            state, count = step(state), count + 1
            stepped = _now(inputs)
            if stepped - ready > _LEAST_SECONDS or count == _MOST_STEPS:
                break
        model.decode(problem.layout.build(state), problem.context_layout.build(problem.context))
        ended = _now(inputs)
    return (ready - began) + (ended - stepped), (stepped - ready) / count


def _now(inputs: Any) -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def common_costs(prices: Sequence[Price], longest: Sequence[int], most: float | None) -> list[float]:
    """Costs at which the models are compared: those of 1, 2, 3, 4, 6, 8, 12, ... steps of the model whose first step is
    the dearest, up to `most`; without it, up to where each has taken its `longest` budget.

    Example:
        >>> common_costs([Price(0, 1), Price(0, 2)], [7, 3], None)
        [2.0, 4.0, 6.0, 7.0]
    """
    dearest = max(prices, key=lambda price: price.of(1))
    if most is None:
        most = max(price.of(steps) for price, steps in zip(prices, longest, strict=True))
    if most < dearest.of(1):
        return []
    costs, power = {most, dearest.of(1)}, 2
    while dearest.of(power) <= most:
        costs |= {dearest.of(power), dearest.of(power * 3 // 2)}
        power *= 2
    return sorted(float(cost) for cost in costs if cost <= most)


def steps_at(price: Price, costs: Sequence[float]) -> np.ndarray:
    """`(costs,)`: the steps that a model takes at each cost; no more than the cost allows."""
    return np.array([price.affords(cost) for cost in costs])
