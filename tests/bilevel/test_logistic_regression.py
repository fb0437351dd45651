"""Tuning the regularisation of a logistic regression: the published protocol, and bad input."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.bilevel import GradientDescent, tune_regularisation
from homeostat.errors import ContractError, ConvergenceError

ROOT = Path(__file__).parents[2]


def example():
    path = ROOT / "examples" / "logistic_regression_hyperparameters.py"
    spec = importlib.util.spec_from_file_location("logistic_regression_hyperparameters", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_draws_the_published_data() -> None:
    model_selection = pytest.importorskip("sklearn.model_selection")
    state = np.random.get_state()  # noqa: NPY002
    (x, y), (x_valid, y_valid) = example().data(torch.float64)
    after = np.random.get_state()  # noqa: NPY002 - the user's own generator is not touched
    assert all(np.array_equal(a, b) for a, b in zip(state, after, strict=True))
    random = np.random.RandomState(1)
    oracle, features = random.randn(20), random.randn(1000, 20)
    labels = (features @ oracle + 0.1 * random.randn(1000) > 0).astype(float)
    wanted = model_selection.train_test_split(features, labels, test_size=0.5, random_state=random)
    for ours, theirs in zip((x, x_valid, y, y_valid), wanted, strict=True):
        assert np.array_equal(ours.numpy(), theirs)


def test_the_first_losses_are_the_published_ones() -> None:
    training, validation = example().data(torch.float64)
    tuned = tune_regularisation(training, validation, outer_steps=2)
    assert round(float(tuned.validation_loss[0]), 4) == 0.5744
    assert round(float(tuned.training_loss[0]), 5) == 0.62409


def test_the_tuning_is_its_own_plain_loop() -> None:
    # The same hypergradients by backpropagation through the last steps, with nothing of the library.
    training, validation = example().data(torch.float64)
    tuned = tune_regularisation(training, validation, outer_steps=3, gradient=hs.Unrolled(last=4))

    def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(x @ w, y)

    h, velocity = torch.ones(20, dtype=torch.float64), 0
    for k in range(3):
        h = h.detach().requires_grad_()
        w = torch.zeros(20, dtype=torch.float64, requires_grad=True)
        for step in range(100):
            if step == 96:
                w = w.detach().requires_grad_()
            (g,) = torch.autograd.grad(loss(w, *training) + 0.5 * (h * w * w).sum(), w, create_graph=True)
            w = w - 0.1 * g
        value = loss(w, *validation)
        torch.testing.assert_close(tuned.validation_loss[k], value.detach(), rtol=1e-10, atol=0)
        velocity = 0.9 * velocity + torch.autograd.grad(value, h)[0]
        h = (h.detach() - velocity).clamp(min=1e-8)
    torch.testing.assert_close(tuned.penalties, h, rtol=1e-9, atol=0)
    assert "validation loss" in repr(tuned)


def test_the_implicit_gradient_tunes_as_well_and_reports_its_residual() -> None:
    training, validation = example().data(torch.float64)
    gradient = hs.Implicit(hs.CG(), hs.Stop(rtol=1e-8), on_failure="raise")
    tuned = tune_regularisation(training, validation, outer_steps=12, gradient=gradient)
    assert bool((tuned.adjoint_residual <= 1e-8).all())
    assert float(tuned.validation_loss[-1]) < 0.5


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).float()


@pytest.mark.parametrize(
    ("training", "match"),
    [
        ((data()[0], torch.ones(20)), "one class alone, 1"),
        ((data()[0], data()[1] * 2 - 1), "labels of training must be 0 or 1"),
        ((data()[0] * float("nan"), data()[1]), "training has features that are not finite"),
        ((data()[0], data()[1][:-1]), "training must be x"),
        ((data()[0][:, :1], data()[1]), "training has 1 features, validation 2"),
    ],
)
def test_data_that_cannot_be_learnt_from_is_refused(training, match) -> None:
    with pytest.raises(ContractError, match=match):
        tune_regularisation(training, data(1), outer_steps=1)


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_a_step_size_that_diverges_is_an_error() -> None:
    with pytest.raises(ConvergenceError, match="outer step 0 has no finite hypergradient"):
        tune_regularisation(data(), data(1), inner=GradientDescent(1e4), outer_steps=2)


@pytest.mark.parametrize("wrong", [{"outer_steps": 0}, {"momentum": 1.0}, {"outer_step_size": 0.0}, {"lowest": -1.0}])
def test_impossible_settings_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="must be"):
        tune_regularisation(data(), data(1), **wrong)
