"""A training on a fixed set of instances sees these and no others, each as often as the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from homeostat.models import RecallConfig
from homeostat.training import TrainingEvent, get_recipe, train, training_instances
from homeostat.training.instances import visited
from homeostat.training.step import TrainingStep

SMALL = RecallConfig(spatial_dims=1, in_channels=1, classes=2, width=4)


def test_every_instance_is_seen_as_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("fixed").changed(steps=6, batch=4, instances=8, model=SMALL)
    seen: list[torch.Tensor] = []
    forward = TrainingStep.forward

    def spy(self: Any, inputs: Any, targets: Any, visit: Any) -> torch.Tensor:
        seen.append(inputs)
        return forward(self, inputs, targets, visit)

    monkeypatch.setattr(TrainingStep, "forward", spy)
    train(recipe, tmp_path, seed=3)
    rows = torch.cat(seen).flatten(1)
    whole = training_instances(recipe, seed=3).inputs.flatten(1)
    counts = (rows[:, None] == whole[None]).all(2).sum(0)
    assert counts.tolist() == [3] * 8


def test_another_seed_has_other_instances() -> None:
    recipe = get_recipe("fixed").changed(batch=4, instances=4)
    a, b = (training_instances(recipe, seed=seed).inputs for seed in (0, 1))
    assert not torch.equal(a, b)


def test_rounds_cover_everything_whatever_the_batch() -> None:
    for batch in (1, 3, 5, 7):
        taken = np.concatenate([visited(7, batch, step, seed=1) for step in range(7)])
        assert np.bincount(taken, minlength=7).tolist() == [batch] * 7


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(ValidationError, match="a batch of 128 is more than the 5 instances"):
        get_recipe("fixed").changed(instances=5)


def test_a_killed_training_goes_on_with_the_same_instances(tmp_path: Path) -> None:
    recipe = get_recipe("fixed").changed(steps=4, batch=4, instances=6, model=SMALL)
    whole = train(recipe, tmp_path / "whole")

    def stop(event: TrainingEvent) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", checkpoint_every=1, on_step=stop)
    again = train(recipe, tmp_path / "cut", checkpoint_every=1)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
