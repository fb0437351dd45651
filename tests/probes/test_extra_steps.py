"""D(N, dN) against closed forms: affine models, where states, minimisers and losses are known exactly."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import homeostat as hs
from homeostat.errors import ContractError, InputError
from homeostat.probes import ExtraSteps, estimates, extra_steps
from homeostat.probes.budgets import best_budget
from homeostat.probes.ranking import rank_correlation


class Half:
    """Half the squared distance; right within 0.05."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - targets).square().sum(1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() < 0.05).all(1)


def iterating(step: Any, horizon: int | None = 8, **fields: Any) -> hs.IteratedModel:
    return hs.from_functions(
        encode=lambda x: x,
        initial_state=fields.pop("initial_state", lambda x: torch.zeros_like(x)),
        step=step,
        decode=fields.pop("decode", lambda z, x: z),
        trained_steps=horizon,
        **fields,
    )


def drawn(rows: int = 24, size: int = 3, seed: int = 0) -> Tensor:
    return 1 + torch.rand(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def passing(x: Tensor, horizon: int = 8) -> hs.IteratedModel:
    """Right after `horizon` steps exactly, and runs on."""
    return iterating(lambda z, x: z + x / horizon, horizon)


def judged(model: Any, training: Any, held_out: Any = None, **options: Any) -> ExtraSteps:
    return extra_steps(model, training, held_out, **{"judge": Half(), **options})


class Affine:
    """z <- z - eta K'(K z + U theta + c) from 0, with theta the exact minimiser of |z_N - w|^2 / 2."""

    def __init__(self, parameters: int, horizon: int = 6, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        k, u = draw.normal(size=(4, 4)), draw.normal(size=(4, parameters))
        self.c, self.w = draw.normal(size=4), draw.normal(size=4)
        self.h = k.T @ k
        self.eta = 1 / np.linalg.norm(self.h, 2)
        self.k, self.u, self.horizon = k, u, horizon
        a, b = self.closed(horizon)
        self.theta = np.linalg.lstsq(a, self.w - b, rcond=None)[0]

    def closed(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """A_N and b_N of z_N = b_N + A_N theta."""
        g = self.eta * sum(np.linalg.matrix_power(np.eye(4) - self.eta * self.h, i) for i in range(steps))
        return -g @ self.k.T @ self.u, -g @ self.k.T @ self.c

    def loss(self, steps: int) -> float:
        a, b = self.closed(steps)
        return float(0.5 * np.square(a @ self.theta + b - self.w).sum())

    def probed(self, **options: Any) -> ExtraSteps:
        h, eta = torch.from_numpy(self.h), float(self.eta)
        force = torch.from_numpy(self.k.T @ (self.u @ self.theta + self.c))
        model = iterating(lambda z, x: z - eta * (z @ h + force), self.horizon)
        return judged(
            model, [(torch.zeros(1, 4, dtype=torch.float64), torch.from_numpy(self.w)[None])],
            training_is_whole=True, **options,
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("parameters", [2, 6])
def test_d_of_the_affine_model_is_the_closed_form(parameters: int, seed: int) -> None:
    affine = Affine(parameters, seed=seed)
    curve = affine.probed(steps=[2, 5, 7, 12, 48]).of("training")
    assert [row.steps for row in curve.rows] == [2, 5, 6, 7, 12, 48]
    for row in curve.rows:
        assert row.loss is not None
        assert row.change is not None
        expected = affine.loss(row.steps) - affine.loss(6)
        assert row.loss.value == pytest.approx(affine.loss(row.steps), abs=1e-12)
        assert row.change.value == row.change.low == row.change.high == pytest.approx(expected, abs=1e-12)
        if parameters == 6:  # T1: overparametrised, so that no budget beats the one of the training
            assert row.change.value >= -1e-12
    if parameters == 2 and affine.loss(6) > 1e-6:
        relative = curve.at(12).relative
        assert relative is not None
        assert relative.value == pytest.approx(affine.loss(12) / affine.loss(6) - 1)


def test_an_overparametrised_model_on_its_one_example_is_tuned_to_its_truncation() -> None:
    found = Affine(6).probed()
    assert found.verdict.decision == "tuned to this truncation"
    assert "on the one training example" in found.verdict.text
    assert found.of("training").best is not None
    assert found.of("training").best.value == 6  # type: ignore[union-attr]
    # Of the same example as a sample of many nothing can be said.
    model = passing(drawn())
    lone = judged(model, [(drawn(1), drawn(1))])
    assert lone.verdict.decision == "not decided"
    assert "1 example is too few: give at least 16" in lone.verdict.text
    assert math.isnan(lone.of("training").at(9).change.low)  # type: ignore[union-attr]


@pytest.mark.parametrize("tasks", [1, 2, 20])
def test_meta_learning_is_helped_by_more_steps_with_two_tasks_and_not_with_one(tasks: int) -> None:
    """T6: inner losses h/2 |z - a|^2 + lambda/2 |z - theta|^2, theta the minimiser of the outer loss over all tasks."""
    h, penalty, eta, horizon = 1.0, 2.0, 0.1, 5
    a = drawn(tasks, 2)
    theta = a.mean(0)
    model = iterating(
        lambda z, x: z - eta * (h * (z - x) + penalty * (z - theta)),
        horizon,
        initial_state=lambda x: theta.expand_as(x),
    )
    found = judged(model, [(a, a)], training_is_whole=True)

    def share(steps: int) -> float:
        left = (1 - eta * (h + penalty)) ** steps
        return penalty / (h + penalty) * (1 - left) + left

    spread = float((a - theta).square().sum(1).mean())
    for row in found.of("training").rows:
        assert row.change is not None
        assert row.change.value == pytest.approx(
            0.5 * (share(row.steps) ** 2 - share(horizon) ** 2) * spread, abs=1e-12
        )
    assert found.verdict.decision == ("converged" if tasks == 1 else "help")
    assert (f"all {tasks} training examples" in found.verdict.text) == (tasks > 1)


# The first-order prediction


def test_the_prediction_is_the_slope_of_the_loss_along_the_step() -> None:
    x, w = drawn(30), drawn(30, seed=1)

    def step(state: Any, x: Tensor) -> Any:
        return {"z": 0.5 * state["z"] + x, "count": state["count"] + 1}

    def start(x: Tensor) -> Any:
        return {"z": torch.zeros_like(x), "count": hs.Carry(torch.zeros_like(x))}

    def decode(state: Any, x: Tensor) -> Tensor:
        return state["z"] ** 2 + 0.1 * state["count"]  # the count is a constant to the prediction

    first = judged(iterating(step, 3, initial_state=start, decode=decode), [(x, w)]).of("training").first_order
    assert first is not None
    z = 1.75 * x
    by_hand = ((z**2 + 0.3 - w) * 2 * z * (0.5 * z + x - z)).sum(1)
    assert first.values == pytest.approx(by_hand.tolist())
    assert first.predicted.value == pytest.approx(float(by_hand.mean()))


def test_signs_agree_as_the_step_becomes_small() -> None:
    """Gradient flow of a quadratic that is not the loss: the loss falls for some examples and rises for others."""
    x, w = drawn(200), drawn(200, seed=1) - 0.5
    scale = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    shares, errors = [], []
    for eta in (0.7, 0.07, 0.0007):
        model = iterating(lambda z, x, eta=eta: z - eta * scale * (z - x), 4)
        curve = judged(model, [(x, w)], steps=[5, 6]).of("training")
        assert curve.first_order is not None
        assert [agreement.steps for agreement in curve.first_order.agreements] == [5, 6]
        shares.append(curve.first_order.agreements[0].sign.value)
        measured = np.asarray(curve.at(5).changes)
        errors.append(float(np.abs(measured - np.asarray(curve.first_order.values)).max() / np.abs(measured).max()))
    assert shares[0] < 1
    assert shares[-1] == 1
    assert errors[0] > 3 * errors[1] > 150 * errors[2]  # of first order in the step
    assert curve.first_order.agreements[0].rank.value > 0.999  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["integers", "detached", "parameter"])
def test_a_loss_without_a_gradient_is_said_to_have_none(how: str) -> None:
    gain = torch.ones(3, dtype=torch.float64, requires_grad=True)
    decode = {
        "integers": lambda z, x: (z > 1).long(),
        "detached": lambda z, x: z.detach(),
        "parameter": lambda z, x: (z > 1) * gain,  # a gradient, but none by the state
    }[how]
    x = drawn()
    curve = judged(iterating(lambda z, x: 0.5 * z + x, decode=decode), [(x, x)]).of("training")
    assert curve.first_order is None
    assert "no gradient by the state" in curve.missing["first-order prediction"]


def test_rank_correlation() -> None:
    draw = np.random.default_rng(0)
    a = draw.normal(size=50).round(1)  # with ties
    b = a + draw.normal(size=50)
    found = rank_correlation(a, b)
    assert found is not None
    assert found.value == pytest.approx(stats.spearmanr(a, b)[0])
    assert found.low < found.value < found.high
    assert rank_correlation(a, -a).value == pytest.approx(-1)  # type: ignore[union-attr]
    assert rank_correlation(a[:3], b[:3]) is None


# Models whose verdict is known


def test_a_model_that_is_right_at_its_horizon_alone() -> None:
    x, y = drawn(), drawn(20, seed=1)
    noisy = x + 0.03 * torch.randn(24, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = judged(passing(x), [(x, noisy)], [(y, y)])
    assert found.verdict.decision == "tuned to this truncation"
    assert "on held-out data, the loss is higher from 9 steps on" in found.verdict.text
    row = found.of("training").at(16)
    changes = Half().loss(2 * x, noisy) - Half().loss(x, noisy)
    assert row.changes == pytest.approx(changes.tolist())
    assert row.change is not None
    assert row.change.value == pytest.approx(float(changes.mean()))
    assert row.change.low < row.change.value < row.change.high
    right = Half().correct(x, noisy)
    assert (row.gained, row.lost) == (0, int(right.sum()))
    assert row.p_value == pytest.approx(2 * 0.5 ** int(right.sum()))
    assert row.exact is not None
    assert row.exact.value == 0
    assert found.of("held out").at(4).residual.value == pytest.approx(0.25)
    text = repr(found)
    assert "8 = N" in text
    assert "least mean loss at 8 [8, 8] steps (chosen afterwards)" in text


def test_a_model_that_settles() -> None:
    x, y = drawn(), drawn(20, seed=1)
    found = judged(
        iterating(lambda z, x: 0.2 * z + 0.8 * x), [(x, x + 0.1)], {"near": [(y, y + 0.2)], "far": [(y, -y)]}
    )
    assert [curve.name for curve in found.curves] == ["training", "held out: near", "held out: far"]
    assert found.verdict.decision == "converged"
    assert "on held-out: far" in found.verdict.text
    # One that has settled in its loss, and moves on where the loss does not look.
    drift = iterating(lambda z, x: z + 1, decode=lambda z, x: x)
    assert judged(drift, [(x, x + 0.1)]).verdict.decision == "harmless"


def test_a_model_that_gets_better_with_steps() -> None:
    x = drawn()
    found = judged(iterating(lambda z, x: 0.9 * z + 0.1 * x), None, [(x, x)])
    assert found.verdict.decision == "help"
    assert found.verdict.text.endswith("the loss is lower from 9 steps on; training examples were not given")
    assert found.of("held out").best.value == 128  # type: ignore[union-attr]


def test_better_on_some_and_worse_on_others() -> None:
    x, slow = drawn(), iterating(lambda z, x: 0.9 * z + 0.1 * x)
    at = (1 - 0.9**8) * x
    assert judged(slow, [(x, at)], [(x, x)]).verdict.decision == "tuned to this truncation"
    found = judged(slow, [(x, at - 0.2)], [(x, x)])
    assert found.verdict.decision == "it depends"  # worse on training, though fewer steps are better there
    assert judged(slow, [(x, at - 0.2)]).verdict.decision == "hurt"
    halfway = judged(slow, [(x, (1 - 0.9**12) * x)])
    assert halfway.verdict.decision == "it depends"
    assert "lower at 9, 10, 12 and 16 steps and higher from 32 steps on" in halfway.verdict.text


def test_with_a_horizon_of_one_there_are_no_fewer_steps() -> None:
    x = drawn()
    found = judged(passing(x, 1), [(x, x)])
    assert [row.steps for row in found.curves[0].rows] == [1, 2, 4, 8, 16]
    assert found.verdict.decision == "hurt"


# What fails


def test_states_that_are_not_finite_count_as_failures_and_are_named() -> None:
    x = drawn(30)
    model = iterating(lambda z, x: torch.where(z >= 1.8 * 9 / 8, torch.inf, z + x / 8))  # some, and after the 9th step
    found = judged(model, [(x, x + 0.1)])
    curve = found.of("training")
    gone = (x * 9 / 8 >= 1.8 * 9 / 8).any(1)
    many = int(gone.sum())
    assert 0 < many < 30
    row = curve.at(10)
    assert (row.failed, row.broken, row.mended) == (many, many, 0)
    assert [math.isinf(change) for change in row.changes] == gone.tolist()
    kept = ~gone
    assert row.change is not None
    assert row.change.count == 30 - many
    expected = Half().loss(x * 10 / 8, x + 0.1)[kept] - Half().loss(x, x + 0.1)[kept]
    assert row.change.value == pytest.approx(float(expected.mean()))
    assert row.residual.high == math.inf
    assert curve.at(9).failed == 0
    assert found.verdict.curves[0].outcome == "worse"
    assert f"+{many} infinite" in repr(found)
    assert f"not finite, and left out of the means: {many} at 10" in repr(found)


def test_one_example_that_fails_makes_a_budget_worse() -> None:
    x = drawn(30)
    x[0] = 5
    model = iterating(lambda z, x: torch.where(x == 5, z * 1e20 + 1, 0.1 * z + 0.9 * x), 3)
    found = judged(model, [(x, x + 1)], steps=[4, 9])
    assert [row.failed for row in found.of("training").rows] == [0, 0, 1]
    assert found.verdict.curves[0].outcome in ("worse", "both")


def test_what_is_not_finite_at_the_horizon() -> None:
    x = drawn(20)
    broken = iterating(lambda z, x: torch.where(z > 0, torch.nan, z + x), 4)
    found = judged(broken, [(x, x)])
    assert found.verdict.decision == "not decided"
    assert "20 of 20 examples are not finite at N" in found.verdict.text
    row = found.of("training").at(1)
    assert (row.mended, row.changes) == (20, (-math.inf,) * 20)
    assert "-20 infinite" in repr(found)
    part = iterating(lambda z, x: torch.where((z > 0) & (x > 1.5), torch.nan, 0.5 * z + x), 4)
    few = judged(part, [(x, x)]).verdict
    assert "that are finite at N, of 20, are too few" in few.text
    assert "are not finite at N" in judged(part, [(x, x)], training_is_whole=True).verdict.text


def test_a_loss_that_is_not_finite_is_a_failure_too() -> None:
    class Odd(Half):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return torch.where(outputs.sum(1) > 9, torch.nan, super().loss(outputs, targets))

    x = drawn()
    curve = judged(passing(x), [(x, x)], judge=Odd()).of("training")
    assert curve.at(8).failed == 0
    assert curve.at(32).failed == 24
    assert curve.at(32).loss.count == 0  # type: ignore[union-attr]


def test_without_a_loss_there_are_accuracies_and_no_verdict() -> None:
    class Right:
        correct = staticmethod(Half().correct)

    x = drawn()
    found = judged(passing(x), [(x, x)], judge=Right())
    row = found.of("training").at(16)
    assert (row.loss, row.change, row.changes, row.lost) == (None, None, (), 24)
    assert found.verdict.decision == "not decided"
    assert "has no loss" in found.verdict.text
    assert "has no loss" in repr(found)
    assert "exact training" in repr(found)


def test_random_steps() -> None:
    def step(z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * z + x + 0.1 * torch.randn_like(z)

    x = drawn(100)
    torch.manual_seed(0)
    with pytest.raises(ContractError, match="another start or budget"):
        judged(iterating(step), [(x, 2 * x)])
    found = judged(iterating(step, stochastic=True), [(x, 2 * x)], training_is_whole=True)
    curve = found.of("training")
    assert not curve.whole  # another draw gives other figures
    assert curve.at(16).change.low < 0 < curve.at(16).change.high  # type: ignore[union-attr]
    assert "random numbers" in curve.missing["first-order prediction"]
    assert "draw random numbers" in repr(found)


@pytest.mark.parametrize(
    ("training", "options", "error", "words"),
    [
        ([], {}, InputError, "no examples"),
        ([(torch.zeros(0, 3), torch.zeros(0, 3))], {}, InputError, "no examples"),
        ({}, {}, InputError, "no training examples"),
        (None, {}, InputError, "no examples"),
        (torch.zeros(3), {}, ContractError, "batches"),
        (None, {"horizon": 0}, InputError, "horizon must be"),
        (None, {"steps": [4, 8]}, InputError, "above the horizon of 8"),
        (None, {"steps": [0, 9]}, InputError, "steps must be"),
        (None, {"margin": -1.0}, InputError, "margin must be"),
        (None, {"settle_rtol": math.nan}, InputError, "settle_rtol"),
        (None, {"judge": object()}, InputError, "how good an output is"),
    ],
)
def test_bad_input(training: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        judged(passing(drawn()), training, **options)


def test_an_unknown_horizon_has_to_be_given() -> None:
    x, model = drawn(), iterating(lambda z, x: z + x / 8, None, name="mine")
    with pytest.raises(InputError, match="how many steps mine was trained with: give horizon="):
        judged(model, [(x, x)])
    assert judged(model, [(x, x)], horizon=8).horizon == 8


def test_batches_do_not_matter_and_results_are_written(tmp_path: Path) -> None:
    x, y = drawn(), drawn(seed=1)
    model = iterating(lambda z, x: torch.tanh(z @ torch.ones(3, 3, dtype=z.dtype) / 4 + x))
    one = judged(model, [(x, y)])
    several = judged(model, iter([(x[:5], y[:5]), (x[5:5], y[5:5]), (x[5:], y[5:])]))
    for a, b in zip(one.curves[0].rows, several.curves[0].rows, strict=True):
        assert a.changes == pytest.approx(b.changes, abs=1e-14)
    assert one.curves[0].first_order is not None
    assert several.curves[0].first_order is not None
    assert one.curves[0].first_order.values == pytest.approx(several.curves[0].first_order.values)
    path = one.save(tmp_path / "found")
    record = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record["format"] == 1
    assert record["extra_steps"]["curves"][0]["rows"][0]["steps"] == 2
    with pytest.raises(KeyError, match="no curve 'test'"):
        one.of("test")


# Intervals for all budgets at once


def test_the_band_holds_for_all_columns_in_95_of_100_repeats() -> None:
    draw = np.random.default_rng(0)
    mixing = draw.normal(size=(10, 10))
    held, trials = 0, 80
    for seed in range(trials):
        band = estimates.together(draw.normal(size=(20, 10)) @ mixing, seed=seed)
        held += all(one.low <= 0 <= one.high for one in band)
    # Ten intervals of 95 %, each by itself, would all hold in about 54 of 80.
    assert trials - 10 < held < trials


def test_the_band_of_known_figures() -> None:
    draw = np.random.default_rng(1)
    values = draw.normal(size=(400, 1))
    (one,) = estimates.together(values)
    assert one.value == pytest.approx(values.mean())
    assert one.high - one.value == pytest.approx(1.96 * values.std() / 20, rel=0.06)
    ratio, missing = estimates.together(np.c_[values, np.full(400, np.nan)], per=np.full(400, 4.0))
    assert ratio.value == pytest.approx(values.mean() / 4)
    assert ratio.high - ratio.low == pytest.approx((one.high - one.low) / 4, rel=0.05)
    assert missing.count == 0
    assert math.isnan(missing.value)
    (constant,) = estimates.together(np.ones((5, 1)))
    assert (constant.low, constant.high) == (1, 1)
    assert math.isnan(estimates.together([[2.0]])[0].low)
    assert math.isnan(estimates.together(np.ones((3, 1)), per=[0.0, 0.0, 0.0])[0].value)


def test_an_example_that_always_fails_does_not_say_which_budget_is_best() -> None:
    losses = np.array([[3.0, 1.0, 2.0], [math.nan, math.nan, math.nan], [3.0, 1.0, 2.0]])
    found = best_budget(losses, [1, 2, 4], higher_is_better=False)
    assert (found.value, found.count) == (2.0, 2)
    assert math.isnan(best_budget(losses[1:2], [1, 2, 4], higher_is_better=False).value)
