"""What is trained by steps is run by steps: where no method is named, `Unrolled` takes those of the plain loop."""

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat import Anderson, Broyden, Implicit, OneStep, Picard, Stop, Unrolled

F64 = torch.float64
STEPS = Stop(rtol=0, max_steps=12)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(0.9 * torch.linalg.qr(torch.randn(5, 5, dtype=F64))[0] + 0.05)

    def forward(self, z, x):
        return torch.tanh(z @ self.weight + x)


def inputs():
    return 0.3 * torch.linspace(-1, 1, 15, dtype=F64).view(3, 5) ** 3


def by_hand(cell, steps=12):
    z = torch.zeros(3, 5, dtype=F64)
    for _ in range(steps):
        z = cell(z, inputs())
    return z


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("gradient", [Unrolled(), Unrolled(last=12), Unrolled(checkpoint=True)], ids=str)
def test_unrolled_steps_are_those_of_a_loop(gradient, grad):
    cell = Cell()
    with torch.set_grad_enabled(grad):
        state = hs.solve(cell, torch.zeros(3, 5, dtype=F64), inputs(), stop=STEPS, gradient=gradient).state
        layer = hs.nn.Equilibrium(cell, stop=STEPS, gradient=gradient)
        wanted = by_hand(cell)
        assert torch.equal(state, wanted)
        assert torch.equal(layer(inputs()), wanted)
    if grad:
        (found,) = torch.autograd.grad(state.square().sum(), cell.weight)
        (right,) = torch.autograd.grad(wanted.square().sum(), cell.weight)
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", [Anderson(), Broyden(), Picard(0.5)], ids=str)
def test_a_method_that_is_named_stays(method):
    cell = Cell()
    named = hs.solve(cell, torch.zeros(3, 5, dtype=F64), inputs(), method=method, stop=STEPS, gradient=Unrolled())
    layer = hs.nn.Equilibrium(cell, method=method, stop=STEPS, gradient=Unrolled())
    with torch.no_grad():
        same = hs.solve(cell, torch.zeros(3, 5, dtype=F64), inputs(), method=method, stop=STEPS, gradient=OneStep())
    assert torch.equal(named.state, same.state)
    assert torch.equal(layer(inputs()), same.state)
    assert not torch.equal(named.state, by_hand(cell))


@pytest.mark.parametrize("gradient", [Implicit(), OneStep()], ids=str)
def test_other_gradients_accelerate(gradient):
    cell = Cell()
    options = {"stop": Stop(1e-8, max_steps=500), "gradient": gradient}
    unnamed = hs.solve(cell, torch.zeros(3, 5, dtype=F64), inputs(), **options)
    named = hs.solve(cell, torch.zeros(3, 5, dtype=F64), inputs(), method=Anderson(), **options)
    assert torch.equal(unnamed.state, named.state)


def test_a_layer_says_how_it_iterates():
    layer = hs.nn.Equilibrium(Cell(), gradient=Unrolled())
    assert "Picard" in repr(layer)
    layer.gradient = Implicit()
    assert "Anderson" in repr(layer)
    assert "Picard" not in repr(layer)
