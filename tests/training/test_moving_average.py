"""The moving average of weights: its closed form, and that it is what a checkpoint holds."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from homeostat.models import RecallConfig
from homeostat.models.checkpoint import TaskReference
from homeostat.tasks import PrefixSums
from homeostat.training import FixedDepth, Recipe, train
from homeostat.training.ema import Average

RECIPE = Recipe(
    task=TaskReference(name="prefix-sums"),
    model=RecallConfig.of(PrefixSums(), width=4),
    depth=FixedDepth(steps=2),
    steps=4,
    batch=4,
    sizes=(6,),
)


def test_it_is_the_weighted_sum_of_all_weights() -> None:
    model = torch.nn.Linear(2, 3).double()
    average, values = Average(model, 0.3), torch.randn(20, 3, 2, dtype=torch.float64)
    for value in values:
        with torch.no_grad():
            model.weight.copy_(value)
        average.update(model)
    decays = [min(0.3, (1 + t) / (10 + t)) for t in range(1, 20)]
    weights = torch.tensor([1.0, *(1 - d for d in decays)], dtype=torch.float64)
    for t, decay in enumerate(decays, start=1):
        weights[:t] *= decay
    assert torch.allclose(average.model.weight, (weights[:, None, None] * values).sum(0))  # type: ignore[arg-type]
    assert abs(weights.sum() - 1) < 1e-12


def test_a_checkpoint_holds_the_average_of_what_the_steps_left(tmp_path: Path) -> None:
    # The training itself is the same with and without: stop after 1, 2, 3 and 4 steps to see its weights.
    path = []
    for steps in (1, 2, 3, 4):
        train(RECIPE.changed(steps=steps), tmp_path / str(steps))
        path.append(load_file(tmp_path / str(steps) / "model.safetensors"))
    train(RECIPE.changed(ema=0.2), tmp_path / "average")
    found = load_file(tmp_path / "average" / "model.safetensors")
    for name, value in found.items():
        expected = path[0][name]
        for t, weights in enumerate(path[1:], start=1):
            decay = min(0.2, (1 + t) / (10 + t))
            expected = decay * expected + (1 - decay) * weights[name]
        assert torch.allclose(value, expected, atol=1e-7)
        assert not torch.equal(value, path[-1][name])
