"""The convolutional inner network: answers that stand alone, and inner steps against plain autograd, task by task."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from homeostat.errors import ContractError
from homeostat.models import ConvInner, MetaConfig, MetaNet, Own
from homeostat.tasks import FewShotCharacters

TASK = FewShotCharacters(ways=3, queries=2, side=9)


@pytest.fixture
def net() -> MetaNet:
    torch.manual_seed(0)
    inner = ConvInner.of(TASK, width=4, blocks=2)
    net = MetaNet(MetaConfig(inner=inner, regulariser=0.5, step_size=0.2, dtype="float64"))
    for parameter in net.parameters():  # the head too, which begins at 0
        torch.nn.init.normal_(parameter, std=0.3)
    return net


@pytest.mark.parametrize(("side", "blocks", "left"), [(20, 3, 3), (20, 4, 2), (8, 2, 2), (28, 4, 2), (9, 1, 5)])
def test_sizes(side, blocks, left):
    module = ConvInner(side=side, ways=5, channels=3, width=6, blocks=blocks, groups=2).build()
    assert module[-1].in_features == 6 * left**2
    assert module(torch.rand(2, 3, side, side)).shape == (2, 5)
    assert not module(torch.rand(2, 3, side, side)).any()


def test_without_normalisation():
    module = ConvInner(side=8, ways=2, width=6, blocks=2, groups=0).build()
    assert not any(isinstance(part, torch.nn.GroupNorm) for part in module)


def test_groups_must_divide_the_width():
    with pytest.raises(ValidationError, match="width 32 is not a multiple of groups 5"):
        ConvInner(side=8, ways=2, groups=5)


def test_pictures_of_another_size_are_refused(net):
    inputs, _ = FewShotCharacters(ways=3, side=12).sample(1, 2, split="test", seed=0)
    with pytest.raises(ContractError) as caught:
        net.encode(inputs)
    assert str(caught.value) == "the network takes pictures of 1 x 9 x 9, channels first, and was given 1 x 12 x 12"


def test_a_step_is_that_of_plain_autograd_on_each_task(net):
    context = net.encode(TASK.sample(2, 3, split="train", seed=0).inputs)
    state = net.initial_state(context, Own())
    for _ in range(3):
        state = net.step(state, context)
    found = net.decode(state, context)
    assert found.shape == (3, 3, 6)
    start = {name: p.detach() for name, p in net.learner.module.named_parameters()}
    for task in range(3):
        own = {name: value.clone().requires_grad_() for name, value in start.items()}
        for _ in range(3):
            logits = torch.func.functional_call(net.learner.module, own, (context["support_inputs"][task],))
            pull = sum((own[name] - start[name]).square().sum() for name in own)
            loss = F.cross_entropy(logits, context["support_targets"][task]) + 0.25 * pull
            gradients = torch.autograd.grad(loss, list(own.values()))
            own = {
                name: (value - 0.2 * gradient).detach().requires_grad_()
                for (name, value), gradient in zip(own.items(), gradients, strict=True)
            }
        expected = torch.func.functional_call(net.learner.module, own, (context["query_inputs"][task],))
        torch.testing.assert_close(found[task].T, expected, rtol=1e-9, atol=1e-11)


def test_an_answer_does_not_depend_on_the_other_queries(net):
    inputs, _ = TASK.sample(1, 2, split="test", seed=0)
    context = net.encode(inputs)
    state = net.step(net.initial_state(context, Own()), context)
    alone = context | {"query_inputs": context["query_inputs"][:, 2:3]}
    torch.testing.assert_close(net.decode(state, alone), net.decode(state, context)[:, :, 2:3])
