"""Gradients as data: what the engine is asked for, and that each of them trains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import homeostat as hs
from homeostat.engine import GMRES, Anderson, Broyden, Neumann, OneStep, Phantom, Picard, Shine
from homeostat.models import RecallConfig, load
from homeostat.models.checkpoint import TaskReference
from homeostat.tasks import PrefixSums
from homeostat.training import FixedDepth, Optimiser, Recipe, train
from homeostat.training.gradient import solver_options

RECIPE = Recipe(
    task=TaskReference(name="prefix-sums"),
    model=RecallConfig.of(PrefixSums(), width=8),
    depth=FixedDepth(steps=12),
    optimiser=Optimiser(learning_rate=1e-2),
    steps=30,
    batch=16,
    sizes=(2,),
)


@pytest.mark.parametrize(
    ("choice", "method", "gradient", "recorded"),
    [
        ("implicit", Picard(), hs.Implicit(), 1),
        ({"kind": "implicit", "solver": "anderson", "adjoint": "gmres"}, Anderson(), hs.Implicit(method=GMRES()), 1),
        ({"kind": "phantom", "steps": 3, "damping": 0.9}, Picard(), Phantom(steps=3, damping=0.9), 3),
        ({"kind": "one-step", "solver": "broyden"}, Broyden(), OneStep(), 1),
        ({"kind": "neumann", "terms": 2}, Picard(), Neumann(terms=2), 1),
        ({"kind": "shine"}, Broyden(), Shine(), 1),
    ],
)
def test_the_engine_is_asked_for_what_the_recipe_says(choice: Any, method: Any, gradient: Any, recorded: int) -> None:
    recipe = RECIPE.changed(gradient=choice)
    assert solver_options(recipe.gradient, 10, 2) == (method, hs.Stop(rtol=1e-5, max_steps=12), gradient, recorded)
    assert Recipe.model_validate(recipe.as_record()) == recipe


def test_adjoint_steps_have_the_tolerance_of_the_solver() -> None:
    recipe = RECIPE.changed(gradient={"kind": "implicit", "adjoint_steps": 7, "rtol": 1e-3})
    _, stop, gradient, _ = solver_options(recipe.gradient, 0, 5)
    assert stop == hs.Stop(rtol=1e-3, max_steps=5)
    assert gradient == hs.Implicit(stop=hs.Stop(rtol=1e-3, max_steps=7))


@pytest.mark.parametrize(
    "choice",
    [
        "magic",
        {"kind": "magic"},
        {"kind": "phantom", "steps": 0},
        {"kind": "phantom", "damping": 0},
        {"kind": "phantom", "damping": 1e-9},
        {"kind": "neumann", "terms": -1},
        {"kind": "shine", "solver": "picard"},
        {"kind": "implicit", "adjoint": "broyden"},
        {"kind": "implicit", "on_failure": "ignore"},
        {"kind": "implicit", "rtol": -1},
        {"kind": "one-step", "steps": 3},
    ],
)
def test_impossible_gradients_are_refused_when_the_recipe_is_made(choice: Any) -> None:
    with pytest.raises(ValidationError):
        RECIPE.changed(gradient=choice)


def test_an_unknown_gradient_is_told_what_there_is() -> None:
    for choice in ({"kind": "magic"}, {"steps": 3}, 7):
        with pytest.raises(ValidationError, match="implicit, phantom, one-step, neumann or shine") as caught:
            RECIPE.changed(gradient=choice)
        assert caught.value.errors()[0]["loc"] == ("gradient",)
    with pytest.raises(ValidationError, match="'unrolled' or 'implicit'"):
        RECIPE.changed(gradient="magic")


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")  # the first solves stop early
@pytest.mark.parametrize("kind", ["phantom", "one-step", "neumann", "shine"])
def test_each_gradient_trains(tmp_path: Path, kind: str) -> None:
    losses: list[float] = []
    recipe = RECIPE.changed(gradient={"kind": kind})
    train(recipe, tmp_path, on_step=lambda event: losses.append(event.loss))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    counts = load(tmp_path).config.training["row_evaluations"]
    assert counts["graphed"] == 30 * 16 * (5 if kind == "phantom" else 1)
    assert counts["graphed"] < counts["forward"] <= 30 * 16 * 30
    assert (counts["adjoint"] > 0) == (kind == "neumann")
