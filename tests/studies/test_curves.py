"""Curves over test budgets: against a plain loop, on the instances that they say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from homeostat.models import Own, RecallConfig
from homeostat.models.checkpoint import TaskReference
from homeostat.studies.jobs import Place, plain
from homeostat.studies.measures import Curve
from homeostat.studies.measures.base import SEED
from homeostat.studies.nets import Net
from homeostat.tasks import PrefixSums
from homeostat.training import FixedDepth, Recipe, training_instances

_RECIPE = Recipe(
    name="tiny-bits",
    task=TaskReference(name="prefix-sums"),
    model=RecallConfig.of(PrefixSums(), width=4),
    depth=FixedDepth(steps=3),
    steps=2,
    batch=4,
    sizes=(6,),
)


@pytest.mark.parametrize("data", ["training", "held-out"])
def test_it_is_what_a_plain_loop_gives_on_these_instances(data: str, tmp_path: Path) -> None:
    net = Net(recipe=_RECIPE.changed(instances=5), seed=1)
    place = Place(tmp_path)
    net.run(place)
    budgets = (1, 3, 4)
    found = plain(Curve(net=net, count=9, budgets=budgets, data=data).run(place))
    checkpoint, task = net.load(place)
    if data == "training":
        batch = training_instances(net.recipe, seed=1)
        assert len(batch) == 5
    else:
        batch = task.sample(6, 9, split="test", seed=SEED)
    assert found["rows"] == len(batch)
    model, inputs, targets = checkpoint.model, *batch
    with torch.no_grad():
        context = model.encode(inputs)
        state = model.initial_state(context, Own())
        losses, right, symbols, residuals = [], [], [], []
        for step in range(1, 5):
            state, before = model.step(state, context), state
            if step in budgets:
                outputs = model.decode(state, context)
                losses.append(task.loss(outputs, targets).numpy())
                right.append(task.correct(outputs, targets).tolist())
                symbols.append(task.symbols(outputs, targets).numpy())
                moved, size = ((x.flatten(1) ** 2).mean(1).sqrt() for x in (state - before, state))
                residuals.append((moved / size).numpy())
    assert found["budgets"] == list(budgets)
    assert found["correct"] == right
    np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(found["symbols"], symbols, rtol=1e-6)
    np.testing.assert_allclose(found["residual"], residuals, rtol=1e-4)
    assert found["failed"] == [0, 0, 0]


def test_states_that_are_not_finite_are_counted_and_wrong(tmp_path: Path) -> None:
    net, place = Net(recipe=_RECIPE, seed=0), Place(tmp_path)
    net.run(place)
    checkpoint, task = net.load(place)

    class Broken(Net):
        def load(self, place: Place):
            step = checkpoint.model.cell.forward

            def exploding(state: torch.Tensor, recalled: torch.Tensor) -> torch.Tensor:
                return torch.where(state.abs().amax((1, 2), keepdim=True) > 0, torch.inf, step(state, recalled))

            checkpoint.model.cell.forward = exploding
            return checkpoint, task

    found = plain(Curve(net=Broken(recipe=_RECIPE, seed=0), count=3, budgets=(1, 2, 3), data="held-out").run(place))
    assert found["failed"] == [0, 3, 3]
    assert found["loss"][1:] == [[None] * 3] * 2
    assert found["residual"][1:] == [[None] * 3] * 2
    assert found["correct"][1:] == [[False] * 3] * 2
    assert None not in found["loss"][0]


@pytest.mark.parametrize("budgets", [(), (0, 1), (3, 2), (2, 2)])
def test_impossible_budgets(budgets: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        Curve(net=Net(recipe=_RECIPE, seed=0), count=1, budgets=budgets, data="training")
