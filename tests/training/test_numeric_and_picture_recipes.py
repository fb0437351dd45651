"""The recipes of the tasks without puzzles: they train, their checkpoints come back, and audits judge them."""

import json

import pytest
import torch

from homeostat.models import load
from homeostat.studies.task_audit import audit_checkpoint
from homeostat.tasks import get_task
from homeostat.training import Recipe, get_recipe, train


@pytest.mark.parametrize("name", ["matrix-inversion", "blurry-digits"])
def test_each_has_a_counterpart_that_differs_in_start_and_depth_alone(name):
    one, other = get_recipe(name).as_record(), get_recipe(f"{name}-fixed").as_record()
    assert {key for key in one if one[key] != other[key]} == {"name", "description", "start", "depth"}
    # The same compute, in steps: one with a graph costs about three without.
    free, graphed = (sum(one["depth"][key]) / 2 for key in ("free", "graphed"))
    assert other["depth"]["steps"] == pytest.approx(graphed + free / 3, rel=0.05)


@pytest.mark.parametrize("name", ["matrix-inversion", "matrix-inversion-fixed", "blurry-digits", "blurry-digits-fixed"])
def test_a_training_and_an_audit(name, tmp_path):
    recipe = get_recipe(name).model_copy(update={"steps": 2, "batch": 4})
    trained = train(recipe, tmp_path)
    loaded = load(tmp_path)
    assert loaded.config.model == recipe.model
    assert Recipe.model_validate(json.loads((tmp_path / "config.json").read_text())["training"]["recipe"]) == recipe
    for key, value in trained.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[key])
    task = get_task(recipe.task.name)
    found = audit_checkpoint(loaded, task, {2: 5, 4: 5}, steps=[1, 3])
    for size in (2, 4):
        difficulty = found.difficulty(f"{size} {task.size_name}")
        assert difficulty.count == 5
        assert difficulty.light_cone is None
        assert {a.start for a in difficulty.alignments} >= {"swapped"}
    assert repr(found)
    found.save(tmp_path / "audit")
