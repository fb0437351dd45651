"""Recipes: what they refuse, and what they draw."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from homeostat.models.checkpoint import TaskReference
from homeostat.training import RECIPES, REFERENCE, FixedDepth, Optimiser, RandomDepth, Recipe, get_recipe

BITS = TaskReference(name="prefix-sums")
PLAIN: dict[str, Any] = {"task": {"name": "prefix-sums"}, "depth": {"kind": "fixed", "steps": 4}, "steps": 10}
MODEL = {"kind": "recall", "spatial_dims": 1, "in_channels": 1, "classes": 2}
PLAIN |= {"sizes": [8], "model": MODEL}


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch": 0},
        {"sizes": []},
        {"model": {**MODEL, "width": 0}},
        {"growth": 1.5},
        {"gradient": "magic"},
        {"depth": {"kind": "fixed", "steps": 0}},
        {"depth": {"kind": "random", "free": [5, 2], "graphed": [1, 2]}},
        {"depth": {"kind": "random", "free": [-1, 2], "graphed": [1, 2]}},
        {"depth": {"kind": "random", "free": [0, float("nan")], "graphed": [1, 2]}},
        {"depth": {"kind": "random", "free": [0, float("inf")], "graphed": [1, 2]}},
        {"depth": {"kind": "random", "free": [0, 2], "graphed": [0, 2]}},
        {"depth": {"kind": "endless"}},
        {"start": {"kind": "noise", "scale": 0}},
        {"start": {"kind": "mixed", "share": 1.5}},
        {"optimiser": {"learning_rate": 0}},
        {"optimiser": {"learning_rate": float("nan")}},
        {"optimiser": {"clip": -1}},
        {"predict_steps": 0},
        {"predict_steps": float("inf")},
        {"path_noise": -0.1},
        {"ema": 1},
        {"learning_rate": 1e-3},  # belongs into optimiser
    ],
)
def test_recipes_refuse_nonsense(change: dict[str, Any]) -> None:
    Recipe.model_validate(PLAIN)
    with pytest.raises(ValidationError):
        Recipe.model_validate(PLAIN | change)


def test_a_recipe_comes_back_from_its_record() -> None:
    for recipe in RECIPES.values():
        assert Recipe.model_validate(json.loads(json.dumps(recipe.as_record()))) == recipe


def test_every_task_has_a_reference_recipe() -> None:
    for task, name in REFERENCE.items():
        assert get_recipe(name).task.name == task


def test_the_two_recipes_of_the_demonstration_differ_in_start_and_depth_alone() -> None:
    one, other = get_recipe("path-independent").as_record(), get_recipe("fixed").as_record()
    differing = {key for key in one if one[key] != other[key]}
    assert differing == {"name", "description", "start", "depth"}


def test_the_recipes_of_one_experiment_differ_in_what_they_say() -> None:
    def differing(one: str, other: str) -> set[str]:
        first, second = get_recipe(one).as_record(), get_recipe(other).as_record()
        return {key for key in first if first[key] != second[key]} - {"name", "description"}

    assert differing("fixed", "noise-fixed-depth") == {"start"}
    assert differing("path-independent", "noise-fixed-depth") == {"depth"}
    assert differing("path-independent", "zeros-random-depth") == {"start"}
    assert differing("fixed", "zeros-random-depth") == {"depth"}
    assert differing("fixed", "promote") == {"path_penalty", "batch"}
    assert differing("promote", "penalise") == {"path_penalty"}
    assert get_recipe("promote").path_penalty.weight == -get_recipe("penalise").path_penalty.weight  # type: ignore[union-attr]
    assert differing("implicit", "phantom") == {"gradient"}
    assert differing("fixed", "shallow") == {"depth", "steps"}
    assert differing("fixed", "progressive") == {"depth", "steps"}


def test_prefix_sum_recipes_have_equal_compute() -> None:
    def cost(name: str) -> float:
        recipe = get_recipe(name)
        rng, runs = np.random.default_rng(0), 1 if recipe.path_penalty is None else 2
        draws = [recipe.depth.draw(32, rng) for _ in range(4000)]
        each = np.mean([free + 3 * graphed for free, graphed in draws])
        return float(each) * runs * recipe.batch * recipe.steps

    for name in ("promote", "penalise", "noise-fixed-depth", "shallow", "progressive"):
        assert cost(name) == pytest.approx(cost("fixed"), rel=0.03), name
    for name in ("path-independent", "zeros-random-depth"):
        assert 0.8 < cost(name) / cost("fixed") < 1


def test_changed_recipes_are_validated() -> None:
    recipe = get_recipe("fixed")
    assert recipe.changed(steps=3).steps == 3
    assert recipe.changed() == recipe
    assert recipe.changed(start={"kind": "noise", "scale": 2.0}).start.scale == 2  # type: ignore[union-attr]
    assert recipe.changed(steps=3).changed(steps=1000) == recipe
    for change in ({"step": 3}, {"steps": 0}, {"depth": 4}, {"gradient": "magic"}):
        with pytest.raises(ValidationError):
            recipe.changed(**change)


def test_records_of_the_first_version_are_read() -> None:
    # As it stands in checkpoints that were made before the interventions came.
    record = {
        "name": "old",
        "description": "",
        "task": {"name": "prefix-sums", "options": {}},
        "model": None,
        "start": {"kind": "mixed", "share": 0.5, "scale": 1.0},
        "depth": {"kind": "random", "free": [0.0, 29.0], "free_unit": "steps", "graphed": [5, 19]},
        "gradient": "implicit",
        "optimiser": {"learning_rate": 1e-3, "weight_decay": 0.0, "clip": 1.0, "schedule": "constant"},
        "steps": 7,
        "batch": 128,
        "sizes": [32],
        "growth": 0.0,
        "largest": 0.0,
        "predict_steps": 2.0,
        "predict_damping": 1.0,
    }
    recipe = Recipe.model_validate(record)
    assert recipe == get_recipe("path-independent").changed(name="old", description="", gradient="implicit", steps=7)
    assert (recipe.path_noise, recipe.jacobian, recipe.path_penalty, recipe.segments, recipe.ema) == (
        0,
        None,
        None,
        None,
        0,
    )


def test_a_recipe_says_what_it_does() -> None:
    recipe = get_recipe("fixed").changed(
        path_noise=0.05,
        segments={"fresh": 0.125},
        ema=0.99,
        jacobian={"weight": 0.1},
        depth={"kind": "fixed", "steps": 4},
    )
    assert repr(recipe) == (
        "Recipe(prefix-sums: zeros start, fixed depth, unrolled, path noise 0.05, Jacobian term, segments, EMA 0.99, "
        "1000 steps of 128)"
    )
    assert "phantom" in repr(get_recipe("phantom"))
    assert "path penalty -1" in repr(get_recipe("penalise"))


def test_drawn_depths_reach_both_ends_and_nothing_beyond() -> None:
    depth, rng = RandomDepth(free=(2, 5), graphed=(1, 3)), np.random.default_rng(0)
    draws = {depth.draw(8, rng) for _ in range(500)}
    assert {free for free, _ in draws} == {2, 3, 4, 5}
    assert {graphed for _, graphed in draws} == {1, 2, 3}
    assert depth.horizon(8) == 8
    assert FixedDepth(steps=7).draw(8, rng) == (0, 7)


def test_depths_in_sizes_grow_with_the_size() -> None:
    depth, rng = RandomDepth(free=(1, 2), free_unit="sizes", graphed=(3, 3)), np.random.default_rng(0)
    assert {depth.draw(5, rng)[0] for _ in range(300)} == set(range(5, 11))
    assert depth.horizon(5) == 13


def test_the_horizon_is_the_most_steps_that_any_draw_takes() -> None:
    recipe = Recipe(
        task=BITS, depth=RandomDepth(free=(0, 1), free_unit="sizes", graphed=(1, 2)), steps=400, sizes=(2, 3)
    )
    taken = [sum(recipe.draw(step, np.random.default_rng(step))[1:]) for step in range(400)]
    assert max(taken) == recipe.horizon == 5


def test_sizes_join_one_after_the_other() -> None:
    recipe = Recipe(task=BITS, depth=FixedDepth(steps=1), steps=100, sizes=(3, 4, 5, 6, 7), growth=0.6)
    drawn = [{recipe.draw(step, np.random.default_rng(seed))[0] for seed in range(200)} for step in range(100)]
    # A new size every 15 of the first 60 steps: with sizes 3 to 7, the k-th joins at 15 (k - 1).
    for step, sizes in enumerate(drawn):
        assert sizes == set(range(3, 4 + min(4, step // 15))), step


def test_without_growth_all_sizes_are_there_from_the_first_step() -> None:
    recipe = Recipe(task=BITS, depth=FixedDepth(steps=1), steps=100, sizes=(3, 4, 5))
    assert {recipe.draw(0, np.random.default_rng(seed))[0] for seed in range(100)} == {3, 4, 5}


def test_the_largest_size_can_be_preferred() -> None:
    recipe = Recipe(task=BITS, depth=FixedDepth(steps=1), steps=100, sizes=(3, 4), largest=1.0)
    assert {recipe.draw(0, np.random.default_rng(seed))[0] for seed in range(50)} == {4}


def test_one_cycle_warms_up_and_falls_to_nothing() -> None:
    optimiser = Optimiser(learning_rate=2e-3, schedule="one-cycle")
    rates = [optimiser.rate(progress) for progress in np.linspace(0, 1, 1001)]
    assert max(rates) == pytest.approx(2e-3)
    assert np.argmax(rates) == 300
    assert rates[0] == pytest.approx(0.04 * 2e-3)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff(rates[:300]) > 0)
    assert np.all(np.diff(rates[301:]) < 0)
    assert {Optimiser(learning_rate=0.1).rate(p) for p in (0, 0.5, 1)} == {0.1}
