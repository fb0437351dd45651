"""The package's own meta-learner: recipes, checkpoints, interrupted trainings, audits."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import homeostat as hs
from homeostat.errors import HomeostatError
from homeostat.models import MetaConfig, MetaNet, MLPInner, Own, load
from homeostat.tasks import Sinusoids
from homeostat.training import FixedDepth, Recipe, get_recipe, train

INNER = MLPInner(widths=(8,))
MAML = get_recipe("maml").changed(
    steps=4, batch=3, depth=FixedDepth(steps=2), model=MetaConfig(inner=INNER, dtype="float64")
)
IMAML = get_recipe("imaml").changed(
    steps=4, batch=3, depth=FixedDepth(steps=3), model=MetaConfig(inner=INNER, regulariser=2.0)
)


@pytest.mark.parametrize("recipe", [MAML, IMAML], ids=["maml", "imaml"])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(recipe: Recipe, tmp_path: Path) -> None:
    whole = train(recipe, tmp_path / "whole")

    def stop(event: object) -> None:
        if event.step == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "killed", checkpoint_every=2, on_step=stop)
    resumed = train(recipe, tmp_path / "killed", checkpoint_every=2)
    again = load(tmp_path / "killed")
    for name, value in whole.model.state_dict().items():
        assert value.dtype == (torch.float64 if recipe is MAML else torch.float32)
        assert torch.equal(value, resumed.model.state_dict()[name])
        assert torch.equal(value, again.model.state_dict()[name])


def test_training_lowers_the_loss_of_new_tasks(tmp_path: Path) -> None:
    recipe = get_recipe("maml").changed(
        steps=60,
        batch=10,
        depth=FixedDepth(steps=1),
        model=MetaConfig(inner=MLPInner(widths=(20, 20), initialisation="uniform")),
    )
    trained = train(recipe, tmp_path).model
    batch = Sinusoids().sample(10, 200, split="test", seed=0)

    @torch.no_grad()
    def loss(model: torch.nn.Module) -> float:
        context = model.encode(batch.inputs)  # type: ignore[operator]
        start = model.initial_state(context, Own())  # type: ignore[operator]
        step = hs.Stop(rtol=0, max_steps=1)
        state = hs.solve(model.step, start, context, method=hs.Picard(), stop=step).state  # type: ignore[arg-type]
        return Sinusoids().loss(model.decode(state, context), batch.targets).mean().item()  # type: ignore[operator]

    torch.manual_seed(0)
    assert loss(trained) < loss(MetaNet(recipe.model))  # type: ignore[arg-type]


@pytest.mark.parametrize("instances", [1, 3])
def test_a_fixed_set_of_tasks_can_be_trained_on(instances: int, tmp_path: Path) -> None:
    recipe = IMAML.changed(instances=instances, batch=1, steps=2)
    assert math.isfinite(train(recipe, tmp_path).config.training["final_loss"])


def test_the_start_is_the_weights_themselves() -> None:
    net = MetaNet(MetaConfig(inner=INNER))
    inputs, _ = Sinusoids().sample(4, 2, split="train", seed=0)
    context = net.encode(inputs)
    state = net.initial_state(context, Own())
    expected = net.learner.module(context["query_inputs"])
    torch.testing.assert_close(net.decode(state, context), expected)


def test_weights_may_begin_lecun_normal_and_biases_at_zero() -> None:
    torch.manual_seed(0)
    module = MLPInner(inputs=50, widths=(400,), initialisation="lecun-normal").build()
    weight, bias = module[0].weight.detach(), module[0].bias.detach()  # type: ignore[index]
    assert float(weight.var()) == pytest.approx(1 / 50, rel=0.05)
    assert float(weight.abs().max()) <= 2 / math.sqrt(50) / 0.8796 + 1e-6
    assert not bias.any()


def test_an_audit_follows_the_loss_over_inner_steps(tmp_path: Path) -> None:
    net = MetaNet(MetaConfig(inner=INNER, regulariser=2.0), trained_steps=4)
    task = Sinusoids()
    batch = task.sample(5, 16, split="test", seed=0)
    found = hs.audit(net, [tuple(batch)], steps=[1, 4, 16], judge=task)
    found.save(tmp_path)
    assert (tmp_path / "report.html").exists()


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    model = MetaConfig(inner=INNER, step_size=1e30)
    recipe = MAML.changed(model=model)
    with pytest.raises(HomeostatError, match="training step 1 of 4 has loss"):
        train(recipe, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"regulariser": -1}, {"step_size": 0}, {"dtype": "float16"}, {"inner": {"kind": "mlp", "widths": (0,)}}],
)
def test_impossible_configurations_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        MetaConfig(**wrong)
