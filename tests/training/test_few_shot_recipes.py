"""The few-shot recipes: they train, their checkpoints answer episodes, audits judge them, and missing ones are said."""

import sys

import pytest
import torch

from homeostat.cli import main
from homeostat.models import Own, load
from homeostat.studies.task_audit import audit_checkpoint
from homeostat.tasks import get_task
from homeostat.training import get_recipe, train


@pytest.mark.filterwarnings(
    "ignore:the (forward|adjoint) solve left:homeostat.errors.ConvergenceWarning"
)  # as they mean to
@pytest.mark.parametrize("name", ["imaml-characters", "imaml-digits"])
def test_a_training_and_an_audit(name, tmp_path):
    recipe = get_recipe(name).changed(steps=3, batch=2)
    fresh = train(recipe.changed(steps=1), tmp_path / "fresh").model.state_dict()
    trained = train(recipe, tmp_path / "run")
    assert any(not torch.equal(value, fresh[key]) for key, value in trained.model.state_dict().items())
    loaded = load(tmp_path / "run")
    task = get_task(recipe.task.name)
    inputs, targets = task.sample(2, 4, split="test", seed=0)  # more shots than it was trained with
    context = loaded.model.encode(inputs)
    outputs = loaded.model.decode(loaded.model.initial_state(context, Own()), context)
    assert outputs.shape == (4, 5, 25)
    assert torch.isfinite(task.loss(outputs, targets)).all()
    found = audit_checkpoint(loaded, task, {1: 4}, steps=[1, 8])
    assert found.difficulty("1 shots").count == 4


@pytest.mark.parametrize("task", ["omniglot", "mini-imagenet"])
def test_a_task_without_a_recipe_says_so(task, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["homeostat", "train", task])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code
    assert capsys.readouterr().err == (
        f"error: {task} has no recipe of its own; name a JSON file with --recipe (see docs/tasks.md)\n"
    )
