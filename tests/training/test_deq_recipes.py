"""Recipes of the equilibrium models: they train, a killed training goes on, a record says how far they converged."""

import json
import math
from pathlib import Path

import pytest
import torch

from homeostat.engine import GMRES, Implicit, Picard, Stop, Unrolled
from homeostat.models import MultiscaleConfig, SequenceConfig, load
from homeostat.studies.task_audit import audit_checkpoint
from homeostat.tasks import Images, Text, get_task
from homeostat.training import FixedDepth, Recipe, TrainingEvent, get_recipe, train
from homeostat.training.gradient import solver_options

NAMES = ("multiscale-digits", "sequence-text")
_ADJOINTS = {"multiscale-digits": GMRES(), "sequence-text": Picard()}
_SMALL = {
    "multiscale-digits": {"model": MultiscaleConfig.of(Images(), widths=(4, 6))},
    "sequence-text": {"model": SequenceConfig.of(Text(), width=8, heads=2, hidden=8), "sizes": (12,)},
}


def small(name: str, **changes: object) -> Recipe:
    fields = {**_SMALL[name.removesuffix("-unrolled")], "steps": 3, "batch": 4, "depth": FixedDepth(steps=3)}
    return get_recipe(name).changed(**{**fields, **changes})


@pytest.mark.parametrize("name", NAMES)
def test_the_two_of_a_kind_differ_in_their_gradient_alone(name: str) -> None:
    implicit, unrolled = get_recipe(name).as_record(), get_recipe(f"{name}-unrolled").as_record()
    assert {key for key in implicit if implicit[key] != unrolled[key]} == {"name", "description", "gradient"}


@pytest.mark.parametrize("steps", [3, 18])
@pytest.mark.parametrize("name", NAMES)
def test_both_take_exactly_so_many_plain_steps_converged_or_not(name: str, steps: int) -> None:
    for recipe, gradient in (
        (get_recipe(name), Implicit(method=_ADJOINTS[name], stop=Stop(rtol=0, max_steps=5))),
        (get_recipe(f"{name}-unrolled"), Unrolled(last=steps)),
    ):
        changed = recipe.changed(depth=FixedDepth(steps=steps))
        assert changed.horizon == steps
        asked = solver_options(changed.gradient, 0, steps)
        assert asked[:3] == (Picard(), Stop(rtol=0, max_steps=steps), gradient)


@pytest.mark.parametrize("name", [f"{name}{kind}" for name in NAMES for kind in ("", "-unrolled")])
def test_a_killed_training_ends_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(event: TrainingEvent) -> None:
        if event.step == 2:
            raise Killed

    recipe = small(name)
    whole = train(recipe, tmp_path / "whole", seed=1).model.state_dict()
    with pytest.raises(Killed):
        train(recipe, tmp_path / "cut", seed=1, checkpoint_every=1, on_step=kill)
    again = train(recipe, tmp_path / "cut", seed=1).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    assert load(tmp_path / "cut").config.trained_steps == 3


@pytest.mark.parametrize("name", NAMES)
def test_the_record_says_how_far_from_converged_it_ended(name: str, tmp_path: Path) -> None:
    train(small(name), tmp_path / "implicit")
    record = json.loads((tmp_path / "implicit" / "config.json").read_text())["training"]
    rows, adjoint = 3 * 4, 5
    assert record["row_evaluations"]["forward"] == rows * (3 + 1)  # and one that is recorded for the gradient
    assert record["row_evaluations"]["adjoint"] == rows * adjoint
    assert set(record["last_residuals"]) == {"forward", "adjoint"}
    assert all(0 < value < math.inf for value in record["last_residuals"].values())
    train(small(f"{name}-unrolled"), tmp_path / "unrolled")
    record = json.loads((tmp_path / "unrolled" / "config.json").read_text())["training"]
    assert "last_residuals" not in record


@pytest.mark.parametrize(("name", "size"), [("multiscale-digits", 3), ("sequence-text", 9)])
def test_an_audit_judges_them(name: str, size: int, tmp_path: Path) -> None:
    train(small(name, steps=2), tmp_path)
    checkpoint = load(tmp_path)
    task = get_task(checkpoint.config.task.name)
    found = audit_checkpoint(checkpoint, task, {size: 5}, steps=[1, 3])
    difficulty = found.difficulty(f"{size} {task.size_name}")
    assert difficulty.count == 5
    assert {a.start for a in difficulty.alignments} >= {"swapped"}
    assert repr(found)
