"""The classifier: the recall cell, pooled."""

import pytest
import torch
from pydantic import ValidationError

from homeostat.models import ClassifierConfig, ClassifierNet, Own, RecallConfig, RecallNet, Zeros
from homeostat.tasks import BlurryDigits


@pytest.mark.parametrize(("dims", "space"), [(1, (9,)), (2, (5, 8))])
def test_it_is_the_recall_network_with_its_logits_averaged_over_space(dims, space):
    sizes = {"spatial_dims": dims, "in_channels": 2, "classes": 3, "width": 6}
    net, recall = ClassifierNet(ClassifierConfig(**sizes, grid=1)), RecallNet(RecallConfig(**sizes))
    weights = net.state_dict()
    recall.load_state_dict({k: v.reshape(recall.state_dict()[k].shape) for k, v in weights.items()})
    inputs, logits = torch.randn(4, 2, *space), []
    for model in (net, recall):
        context = model.encode(inputs)
        state = model.initial_state(context, Zeros())
        assert state.shape == (4, 6, *space)
        for _ in range(3):
            state = model.step(state, context)
        logits.append(model.decode(state, context))
    assert logits[0].shape == (4, 3)
    assert torch.allclose(logits[0], logits[1].flatten(2).mean(2), atol=1e-6)


def test_the_regions_of_a_picture_are_told_apart():
    net = ClassifierNet(ClassifierConfig(spatial_dims=2, in_channels=1, classes=4, width=1, grid=2))
    with torch.no_grad():
        net.decoder.weight.copy_(torch.eye(4))
        net.decoder.bias.zero_()
    state = torch.arange(24.0).reshape(1, 1, 4, 6)
    quarters = [state[..., y : y + 2, x : x + 3].mean() for y in (0, 2) for x in (0, 3)]
    assert torch.equal(net.decode(state, state), torch.stack(quarters)[None])


def test_before_the_first_step_nothing_is_known():
    net, inputs = ClassifierNet(ClassifierConfig.of(BlurryDigits())), torch.randn(2, 1, 8, 8)
    context = net.encode(inputs)
    logits = net.decode(net.initial_state(context, Own()), context)
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(
    "change", [{"spatial_dims": 3}, {"in_channels": 0}, {"classes": 1}, {"width": 0}, {"grid": 0}, {"depth": 2}]
)
def test_impossible_sizes(change):
    with pytest.raises(ValidationError):
        ClassifierConfig(**{"spatial_dims": 2, "in_channels": 1, "classes": 2, **change})
