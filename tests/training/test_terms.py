"""Terms added to the loss: their values by hand, their signs in training, and what they refuse."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import homeostat.training.loop as loop
from homeostat.errors import HomeostatError
from homeostat.models import Net, RecallConfig, load
from homeostat.models.checkpoint import TaskReference
from homeostat.tasks import PrefixSums
from homeostat.training import FixedDepth, JacobianTerm, PathPenalty, ProgressiveDepth, Recipe, train
from homeostat.training.step import TrainingStep
from homeostat.training.visit import Visit

RECIPE = Recipe(
    task=TaskReference(name="prefix-sums"),
    model=RecallConfig.of(PrefixSums(), width=4),
    depth=FixedDepth(steps=3),
    steps=40,
    batch=8,
    sizes=(6,),
)


@pytest.mark.parametrize("measure", ["cosine", "distance", "dot"])
def test_misalignment_is_that_of_its_formula(measure: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = ([torch.randn(5, *shape, generator=generator) for shape in ((2, 3), (4,))] for _ in range(2))
    found = PathPenalty(weight=1, measure=measure).misalignment(a, b)  # type: ignore[arg-type]
    for row in range(5):
        x, y = (np.concatenate([leaf[row].double().numpy().ravel() for leaf in leaves]) for leaves in (a, b))
        expected = {
            "cosine": 1 - x @ y / math.sqrt((x @ x) * (y @ y)),
            "distance": ((x - y) @ (x - y)) / (x @ x + y @ y),
            "dot": -(x @ y) / 10,
        }[measure]
        assert found[row].item() == pytest.approx(expected, rel=1e-5)


def test_states_at_zero_have_a_finite_misalignment_and_gradient() -> None:
    for measure in ("cosine", "distance", "dot"):
        zeros = torch.zeros(2, 3, requires_grad=True)
        value = PathPenalty(weight=1, measure=measure).misalignment([zeros], [torch.zeros(2, 3)])
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(zeros.grad).all()  # type: ignore[arg-type]


def test_schedules() -> None:
    places = (0, 0.15, 0.3, 0.5, 1)
    found = {
        s: [JacobianTerm(weight=2, schedule=s).weight_at(p) for p in places] for s in ("constant", "linear", "warmup")
    }  # type: ignore[arg-type]
    assert found["constant"] == [2, 2, 2, 2, 2]
    assert found["linear"] == [0, 0.3, 0.6, 1, 2]
    assert found["warmup"] == [0, 1, 2, 2, 2]


class Linear(Net):
    """`z <- gain * z + x`, whose states are known after any number of steps."""

    def __init__(self, gain: float) -> None:
        super().__init__(name="linear")
        self.gain = nn.Parameter(torch.tensor(gain))

    def encode(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)

    def initial_state(self, context: Tensor, start: Any) -> Tensor:
        return start.like(torch.zeros_like(context))

    def update(self, state: Tensor, context: Tensor) -> Tensor:
        return self.gain * state + context

    def decode(self, state: Tensor, context: Tensor) -> Tensor:
        return torch.stack([-state, state], 1)


def called(recipe: Recipe, model: Net, progress: float = 0.0) -> tuple[Tensor, TrainingStep]:
    batch = PrefixSums().sample(6, 8, split="train", seed=0)
    module = TrainingStep(model, PrefixSums(), recipe)
    visit = Visit(0, 3, progress, *recipe.depth.draw(6, np.random.default_rng(0)), range(8))
    return module(batch.inputs, batch.targets, visit), module


def test_the_jacobian_term_is_the_squared_gain_and_its_weight_follows_the_schedule() -> None:
    recipe = RECIPE.changed(jacobian=JacobianTerm(weight=0.5, schedule="linear"))
    model = Linear(0.7)
    loss, module = called(recipe, model, progress=0.5)
    assert module.parts["jacobian"].item() == pytest.approx(0.49)
    assert loss.item() == pytest.approx(module.parts["loss"].item() + 0.25 * 0.49)
    plain, _ = called(RECIPE, model)
    assert module.parts["loss"].item() == plain.item()
    grads = [torch.autograd.grad(value, model.gain)[0].item() for value in (loss, plain)]
    assert grads[0] - grads[1] == pytest.approx(0.25 * 2 * 0.7, abs=1e-5)
    assert module.evaluations() == (8 * 4, 8 * 4, 0)


@pytest.mark.parametrize(("between", "runs"), [("start and noise", 2), ("noises", 3)])
def test_the_path_penalty_compares_states_from_two_starts(between: str, runs: int) -> None:
    penalty = PathPenalty(weight=-2, measure="distance", between=between, scale=3.0)  # type: ignore[arg-type]
    model = Linear(0.9)
    loss, module = called(RECIPE.changed(path_penalty=penalty), model)
    plain, _ = called(RECIPE, model)
    assert module.parts["loss"].item() == plain.item(), "the task is asked of the recipe's own run alone"
    assert loss.item() == pytest.approx(plain.item() - 2 * module.parts["path_penalty"].item())
    assert module.evaluations() == (8 * 3 * runs, 8 * 3 * runs, 0)
    # With a gain of 0 nothing is left of a start, and what is left grows with the gain.
    values = [called(RECIPE.changed(path_penalty=penalty), Linear(g))[1].parts["path_penalty"] for g in (0.0, 0.3, 0.9)]
    assert values[0] == 0
    assert values[1] < values[2]


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")  # it takes three steps, whatever is left
def test_the_path_penalty_works_with_a_gradient_of_the_fixed_point() -> None:
    recipe = RECIPE.changed(path_penalty=PathPenalty(weight=1), gradient={"kind": "one-step", "rtol": 0})
    loss, module = called(recipe, Linear(0.5))
    loss.backward()
    assert 0 < module.parts["path_penalty"].item() < 1
    assert module.evaluations() == (2 * 8 * 4, 2 * 8, 0)


def test_progressive_loss_is_the_weighted_sum_of_its_two_runs() -> None:
    model = Linear(0.8)
    drawn = ProgressiveDepth(steps=6, alpha=0.3).draw(6, np.random.default_rng(0))
    loss, module = called(RECIPE.changed(depth=ProgressiveDepth(steps=6, alpha=0.3)), model)
    full, _ = called(RECIPE.changed(depth=FixedDepth(steps=6)), model)
    part, _ = called(RECIPE.changed(depth=ProgressiveDepth(steps=6, alpha=1)), model)
    shallow, _ = called(RECIPE.changed(depth=FixedDepth(steps=sum(drawn))), model)
    assert part.item() == shallow.item()
    assert loss.item() == pytest.approx(0.7 * full.item() + 0.3 * part.item())
    assert module.evaluations() == (8 * (6 + sum(drawn)), 8 * (6 + drawn[1]), 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_penalty_moves_the_states_the_way_of_its_sign(tmp_path: Path, sign: int) -> None:
    penalty = PathPenalty(weight=5.0 * sign, measure="distance")
    recipe = RECIPE.changed(path_penalty=penalty, optimiser={"learning_rate": 2e-2}, steps=20)
    train(recipe, tmp_path)
    lines = (tmp_path / "losses.csv").read_text().splitlines()
    assert lines[0] == "step,loss,path_penalty"
    values = np.array([float(line.split(",")[2]) for line in lines[1:]])
    assert sign * (values[:5].mean() - values[-5:].mean()) > 0.05
    record = load(tmp_path).config.training
    assert record["final_path_penalty"] == pytest.approx(values.mean())
    assert record["row_evaluations"] == {"forward": 20 * 8 * 6, "graphed": 20 * 8 * 6, "adjoint": 0}


def test_a_term_that_is_not_finite_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PathPenalty, "misalignment", lambda self, a, b: a[0].flatten(1).mean(1) * float("inf"))
    recipe = RECIPE.changed(path_penalty=PathPenalty(weight=1))
    with pytest.raises(HomeostatError, match=r"step 1 of 40 has loss 0\.\d+, path_penalty (nan|-?inf) and") as caught:
        train(recipe, tmp_path)
    assert "\n" not in str(caught.value)


class Empty(Linear):
    def initial_state(self, context: Tensor, start: Any) -> Tensor:
        return start.like(context[:, :0])

    def update(self, state: Tensor, context: Tensor) -> Tensor:
        return state * self.gain

    def decode(self, state: Tensor, context: Tensor) -> Tensor:
        return self.gain * torch.stack([-context, context], 1)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"jacobian": {"weight": 1}}, "the Jacobian penalty"), ({"path_penalty": {"weight": 1}}, "the path penalty")],
)
def test_an_empty_state_is_one_clear_error(change: dict[str, Any], name: str) -> None:
    with pytest.raises(HomeostatError, match=rf"{name} has nothing to look at: .* \(8, 0\)"):
        called(RECIPE.changed(**change), Empty(0.5))


def test_a_model_that_draws_random_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config: Any) -> Net:
        model = Linear(0.5)
        model.stochastic = True
        return model

    monkeypatch.setattr(loop, "build", build)
    with pytest.raises(HomeostatError, match="linear draws random numbers in its step"):
        train(RECIPE, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"jacobian": {"weight": 0}},
        {"jacobian": {"weight": -1}},
        {"jacobian": {"weight": float("inf")}},
        {"path_penalty": {"weight": 0}},
        {"path_penalty": {"weight": float("nan")}},
        {"path_penalty": {"weight": 1, "scale": 0}},
        {"path_penalty": {"weight": 1, "measure": "euclid"}},
        {"path_penalty": {"weight": 1, "schedule": "cosine"}},
        {"path_penalty": {"weight": 1, "between": "friends"}},
        {"ema": 1.0},
        {"ema": -0.1},
        {"path_noise": -1},
        {"path_noise": float("nan")},
        {"depth": ProgressiveDepth(steps=3), "gradient": "implicit"},
        {"no_such_field": 1},
    ],
)
def test_impossible_terms_are_refused_when_the_recipe_is_made(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RECIPE.changed(**change)
