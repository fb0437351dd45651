"""Trained horizons by test budgets, on models whose best budget is known."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.errors import InputError
from homeostat.probes import cross_horizons
from homeostat.probes.estimates import clustered_share, share


class Near:
    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() < 0.05).all(1)

    def symbols(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() < 0.05).double().mean(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)


def running(horizon: int) -> hs.IteratedModel:
    """Passes through the target at its horizon exactly, and runs on."""
    return hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: z + x / horizon,
        decode=lambda z, x: z,
    )


def settling(rate: float) -> hs.IteratedModel:
    return hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: rate * z + (1 - rate) * x,
        decode=lambda z, x: z,
    )


def inputs(rows: int = 24, size: int = 3) -> Tensor:
    return 1 + torch.rand(rows, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("metric", ["exact", "symbol", "loss"])
def test_the_best_budget_of_a_truncated_model_is_its_horizon(metric: Any) -> None:
    x = inputs()
    budgets = [2, 4, 8, 16]
    table = cross_horizons({n: running(n) for n in (4, 8, 2)}, [(x, x)], steps=budgets, metric=metric, judge=Near())
    for n in (2, 4, 8):
        best = table.best_of(n).steps
        assert (best.value, best.low, best.high) == (n, n, n)
    assert [cell.trained for cell in table.cells] == sorted([2, 4, 8] * 4)
    assert table.higher_is_better == (metric != "loss")


def test_cells_by_hand() -> None:
    x, judge = inputs(), Near()
    models = {4: settling(0.5), 16: settling(0.8)}
    for metric in ("exact", "symbol", "loss", "residual"):
        table = cross_horizons(models, [(x, x)], steps=[8, 4, 1], metric=metric, judge=judge)  # type: ignore[arg-type]
        for trained, rate in ((4, 0.5), (16, 0.8)):
            for steps in (1, 4, 8):
                z, last = (1 - rate**steps) * x, (1 - rate ** (steps - 1)) * x
                found = table.at(trained, steps).estimate
                if metric == "exact":
                    assert found == share(judge.correct(z, x).numpy())
                elif metric == "symbol":
                    assert found == clustered_share(judge.symbols(z, x).numpy(), 3)
                elif metric == "loss":
                    assert found.value == pytest.approx(float(judge.loss(z, x).mean()))
                else:
                    relative = (z - last).square().mean(1).sqrt() / z.square().mean(1).sqrt()
                    assert found.value == pytest.approx(float(np.median(relative.numpy())))


def test_of_budgets_that_are_as_good_the_smallest_is_named() -> None:
    x = inputs()
    table = cross_horizons({4: settling(0.1)}, [(x, x)], steps=[1, 4, 16, 64], judge=Near())
    assert table.best_of(4).steps.value == 4


def test_a_metric_of_ones_own() -> None:
    x = inputs()

    def worst(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().amax(1)

    with pytest.raises(InputError, match="higher_is_better"):
        cross_horizons({4: running(4)}, [(x, x)], steps=[4], metric=worst)
    table = cross_horizons({4: running(4)}, [(x, x)], steps=[2, 4, 8], metric=worst, higher_is_better=False)
    assert table.metric == "worst"
    assert table.best_of(4).steps.value == 4
    assert table.at(4, 8).estimate.value == pytest.approx(float(x.amax(1).mean()))


def test_difficulties_and_examples_that_can_be_read_only_once() -> None:
    x = inputs()
    examples = {"easy": iter([(x, x)]), "hard": iter([(x[:5], -x[:5]), (x[5:], -x[5:])])}
    table = cross_horizons({2: running(2), 4: running(4)}, examples, steps=[2, 4], judge=Near())
    assert table.difficulties == ("easy", "hard")
    assert table.at(4, 4, "easy").estimate.value == 1
    assert table.at(4, 4, "hard").estimate.value == 0
    assert table.at(2, 2, "hard").estimate.count == 24
    with pytest.raises(KeyError, match="name a difficulty"):
        table.at(2, 2)
    text = repr(table)
    assert "easy (n=24)" in text
    assert "hard (n=24)" in text
    assert "100 [86.2, 100]*" in text


def test_failed_examples_are_told_and_never_win() -> None:
    """Half of the examples blow up from the third step on; of the rest the loss is smallest afterwards."""
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: torch.where((x > 1.5) & (z > 1), math.inf, 0.5 * (z + x)),
        decode=lambda z, x: z,
    )
    x = torch.where(torch.arange(24)[:, None] < 12, 1.2, 1.8).double().expand(24, 3)
    for metric in ("exact", "loss", "residual"):
        table = cross_horizons({2: model}, [(x, x)], steps=[2, 12], metric=metric, judge=Near())  # type: ignore[arg-type]
        cell = table.at(2, 12)
        assert cell.failed == 12
        assert "not finite: 12 at 2 x 12" in repr(table)
        if metric == "exact":
            assert cell.estimate.value == 0.5
        elif metric == "loss":
            assert cell.estimate.count == 12
            assert table.best_of(2).steps.value == 2
        else:
            assert table.best_of(2).steps.value == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": []}, "budget"),
        ({"steps": [0]}, "steps"),
        ({"models": {}}, "no models"),
        ({"models": {0: running(1)}}, "trained horizon"),
        ({"models": {"4": running(1)}}, "trained horizon"),
        ({"metric": "beauty"}, "metric must be one of"),
        ({"metric": "exact", "judge": None}, "nothing gives exact"),
        ({"metric": "loss", "higher_is_better": True}, "less is better"),
        ({"examples": []}, "no examples"),
        ({"examples": [(inputs(), None)]}, "targets are None"),
    ],
)
def test_what_cannot_be_measured_is_told(options: dict[str, Any], words: str) -> None:
    x = inputs()
    arguments: dict[str, Any] = {"models": {4: running(4)}, "examples": [(x, x)], "steps": [4], "judge": Near()}
    arguments |= options
    with pytest.raises(InputError, match=words):
        cross_horizons(arguments.pop("models"), arguments.pop("examples"), **arguments)
