"""The reference model: its light cone is a theorem, so that autograd must agree with it."""

import pytest
import torch
from pydantic import ValidationError

from homeostat.models import IteratedModel, Own, RecallConfig, RecallNet, Zeros


def net(dims: int) -> RecallNet:
    torch.manual_seed(0)
    return RecallNet(RecallConfig(spatial_dims=dims, in_channels=2, classes=3, width=6)).double()


def reach(model: RecallNet, inputs: torch.Tensor, target: tuple[int, ...], steps: int) -> torch.Tensor:
    """How much the answer at `target` depends on each position of the input after `steps` steps."""
    inputs = inputs.clone().requires_grad_()
    context = model.encode(inputs)
    state = model.initial_state(context, Own())
    for _ in range(steps):
        state = model.step(state, context)
    total = torch.zeros(inputs.shape[2:], dtype=inputs.dtype)
    answer = model.decode(state, context)[(0, slice(None), *target)]
    for value in answer:
        (gradient,) = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
        if gradient is not None:  # before the first step nothing has been seen
            total += gradient[0].abs().sum(0)
    return total


@pytest.mark.parametrize("span", [1, 2, 3, 4, 7, 8, 11])
def test_the_light_cone_in_one_dimension(span):
    model, inputs = net(1), torch.randn(1, 2, 12, dtype=torch.float64)
    bound = model.light_cone(span)
    before, at = reach(model, inputs, (span,), bound - 1), reach(model, inputs, (span,), bound)
    assert before[0] == 0
    assert at[0] != 0


@pytest.mark.parametrize("target", [(0, 5), (5, 0), (5, 5), (2, 4), (6, 3)])
def test_the_light_cone_in_two_dimensions(target):
    # A 3x3 convolution reaches diagonally too: distance is the larger of the two.
    model, inputs = net(2), torch.randn(1, 2, 7, 7, dtype=torch.float64)
    bound = model.light_cone(max(target))
    before, at = reach(model, inputs, target, bound - 1), reach(model, inputs, target, bound)
    assert before[0, 0] == 0
    assert at[0, 0] != 0


def test_the_whole_cone_and_nothing_else():
    found = reach(net(1), torch.randn(1, 2, 31, dtype=torch.float64), (15,), 3)
    inside = (torch.arange(31) - 15).abs() <= 6
    assert torch.equal(found != 0, inside)


@pytest.mark.parametrize(("dims", "space"), [(1, (9,)), (2, (5, 8))])
def test_shapes_at_any_size(dims, space):
    model = net(dims).float()
    context = model.encode(torch.randn(4, 2, *space))
    state = model.initial_state(context, Zeros())
    assert state.shape == context.shape == (4, 6, *space)
    assert (state == 0).all()
    after = model.step(state, context)
    assert after.shape == state.shape
    assert after.abs().max() <= 1  # the outer tanh
    assert model.decode(after, context).shape == (4, 3, *space)
    assert isinstance(model, IteratedModel)


@pytest.mark.parametrize(
    "change", [{"spatial_dims": 3}, {"in_channels": 0}, {"classes": 1}, {"width": 0}, {"width": 10**6}, {"depth": 2}]
)
def test_impossible_sizes(change):
    with pytest.raises(ValidationError):
        RecallConfig(**{"spatial_dims": 1, "in_channels": 1, "classes": 2, **change})
