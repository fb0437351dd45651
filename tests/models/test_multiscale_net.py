"""The multiscale net: the shapes of its scales, what reaches what, and rows that do not hear of each other."""

import pytest
import torch
from pydantic import ValidationError

from homeostat.models import MultiscaleConfig, MultiscaleNet, Noise, Own


def net_of(widths: tuple[int, ...] = (4, 6), **changes: object) -> MultiscaleNet:
    torch.manual_seed(0)
    return MultiscaleNet(MultiscaleConfig(**{"in_channels": 2, "classes": 3, "widths": widths, **changes}))


@pytest.mark.parametrize("space", [(8, 8), (5, 7), (1, 1), (9, 2)])
@pytest.mark.parametrize("widths", [(4,), (4, 6), (4, 6, 8)])
def test_any_picture_will_do(space: tuple[int, int], widths: tuple[int, ...]):
    net = net_of(widths)
    context = net.encode(torch.randn(3, 2, *space))
    state = net.initial_state(context, Own())
    halves = [space]
    while len(halves) < len(widths):
        halves.append(tuple((side + 1) // 2 for side in halves[-1]))
    for _ in range(3):
        assert [tuple(scale.shape) for scale in state] == [(3, w, *h) for w, h in zip(widths, halves, strict=True)]
        state = net.step(state, context)
    assert net.decode(state, context).shape == (3, 3)
    # A group norm of gain 1 and offset 0 ends every step, so that no state can grow.
    assert all(float(scale.detach().square().mean().sqrt()) <= 1.01 for scale in state)


def test_every_scale_hears_of_every_other_and_of_the_picture():
    net = net_of((4, 4, 4)).double()
    context = net.encode(torch.randn(1, 2, 8, 8, dtype=torch.float64))
    state = net.initial_state(context, Noise(seed=3))
    for target in range(3):
        leaves = [scale.detach().clone().requires_grad_() for scale in (*state, context)]
        new = net.step(tuple(leaves[:3]), leaves[3])
        weights = torch.randn(new[target].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        gradients = torch.autograd.grad((new[target] * weights).sum(), leaves)
        assert all(float(gradient.abs().max()) > 1e-6 for gradient in gradients)


def test_the_answer_is_a_map_of_the_means_of_every_scale():
    net = net_of((1, 1), grid=1, groups=1)
    with torch.no_grad():
        net.decoder.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        net.decoder.bias.zero_()
    fine, coarse = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 2, 2)
    means = fine.mean((1, 2, 3)), coarse.mean((1, 2, 3))
    expected = torch.stack([*means, means[0] + means[1]], dim=1)
    assert torch.allclose(net.decode((fine, coarse), fine), expected, atol=1e-6)


def test_a_row_is_the_same_alone():
    net = net_of()
    pictures = torch.randn(5, 2, 6, 6)

    def answers(inputs: torch.Tensor) -> torch.Tensor:
        context = net.encode(inputs)
        state = net.initial_state(context, Own())
        for _ in range(4):
            state = net.step(state, context)
        return net.decode(state, context)

    assert torch.allclose(answers(pictures)[2:3], answers(pictures[2:3]), atol=1e-5)


def test_with_one_scale_there_is_nothing_to_fuse():
    net = net_of((4,))
    assert not list(net.fusion.ways.parameters())


@pytest.mark.parametrize(
    "change", [{"widths": ()}, {"widths": (4, 0)}, {"widths": (1,) * 7}, {"groups": 0}, {"grid": 0}, {"width": 3}]
)
def test_impossible_sizes(change: dict):
    with pytest.raises(ValidationError):
        net_of(**change)
