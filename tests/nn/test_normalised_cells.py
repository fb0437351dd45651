"""Parametrised weights stand still during a solve, and their own parameters learn."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import homeostat as hs
from homeostat.errors import ContractError
from homeostat.nn import Equilibrium, evaluate_once, normalise

F64 = torch.float64
TIGHT = hs.Stop(rtol=1e-13, max_steps=2000)


class Cell(nn.Module):
    """Notes the weight it was evaluated with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.seen: list[torch.Tensor] = []

    def forward(self, z, c):
        self.seen.append(self.linear.weight.detach())
        return torch.tanh(c["gain"] * self.linear(z) + c["x"])


def batch(rows: int = 4) -> dict[str, torch.Tensor]:
    # Gains apart from each other, so that the adjoint loses rows and has to record the cell again in `backward`.
    gain = torch.logspace(-3, -0.02, rows, dtype=F64)[:, None]
    return {"x": torch.randn(rows, 6, dtype=F64), "gain": gain}


def start(context):
    return torch.zeros_like(context["x"])


def module(kind, gradient):
    torch.manual_seed(0)
    cell = Cell().double()
    with torch.no_grad():
        cell.linear.weight.mul_(3)  # so that dividing by the largest singular value matters
    return Equilibrium(normalise(cell, kind), start=start, stop=TIGHT, gradient=gradient)


@pytest.mark.parametrize("gradient", [hs.Implicit(stop=TIGHT), hs.Unrolled()])
@pytest.mark.parametrize("kind", ["spectral", "weight"])
def test_the_map_is_the_same_in_every_step_and_in_backward(kind, gradient):
    layer = module(kind, gradient)
    if kind == "weight":
        with torch.no_grad():  # it need not contract; make sure that it does
            layer.cell.linear.parametrizations.weight.original0.mul_(0.3)
    solution = layer.solve(batch())
    forward = len(layer.cell.seen)
    solution.state.square().sum().backward()
    seen = layer.cell.seen
    assert forward > 5
    if isinstance(gradient, hs.Implicit):
        assert len(seen) > forward  # recorded again without the rows that were finished
    assert all(torch.equal(weight, seen[0]) for weight in seen)


def test_spectral_norm_goes_on_once_a_solve_in_training_and_never_in_evaluation():
    layer = module("spectral", hs.Implicit())
    x = batch()
    layer(x)
    layer(x)
    first, last = layer.cell.seen[0], layer.cell.seen[-1]
    assert not torch.equal(first, last)
    layer.eval()
    layer.cell.seen.clear()
    layer(x)
    layer(x)
    assert all(torch.equal(weight, layer.cell.seen[0]) for weight in layer.cell.seen)


def test_gradients_reach_the_original_parameters():
    layer, x = module("spectral", hs.Implicit(stop=TIGHT)).eval(), batch()
    layer(x).square().sum().backward()
    own = layer.cell.linear.parametrizations.weight
    original, u, v = own.original, own[0]._u, own[0]._v
    other = original.detach().clone().requires_grad_()

    z = torch.zeros(4, 6, dtype=F64)
    weight = other / (u @ other @ v)
    for _ in range(800):
        z = torch.tanh(x["gain"] * (z @ weight.T + layer.cell.linear.bias.detach()) + x["x"])
    z.square().sum().backward()
    torch.testing.assert_close(original.grad, other.grad, rtol=1e-8, atol=1e-11)


def test_two_solves_in_training_before_one_backward():
    layer, x = module("spectral", hs.Implicit(stop=TIGHT)), batch()
    # The buffers of spectral norm change between the two; what the first one needs must survive.
    (layer(x).sum() + layer(x).square().sum()).backward()
    assert torch.isfinite(layer.cell.linear.parametrizations.weight.original.grad).all()


def test_no_gradients_no_graph_and_then_gradients_again():
    layer, x = module("spectral", hs.Implicit()), batch()
    with torch.no_grad():
        layer(x)
    layer(x).sum().backward()
    assert (layer.cell.linear.parametrizations.weight.original.grad != 0).any()


def test_spectral_norm_bounds_the_gain():
    torch.manual_seed(0)
    layer = normalise(nn.Linear(32, 48).double(), "spectral")
    for _ in range(50):
        layer.weight  # noqa: B018 - each access goes on with the power iteration
    assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=1e-3)


def test_weight_norm_changes_no_function_at_first_and_splits_by_output():
    for make, lengths in (
        (nn.Linear(3, 5), (5, 1)),
        (nn.Conv2d(3, 5, 3), (5, 1, 1, 1)),
        (nn.ConvTranspose2d(3, 5, 3), (1, 5, 1, 1)),
    ):
        weight = make.weight.detach().clone()
        normalise(make)
        torch.testing.assert_close(make.weight, weight)
        assert make.parametrizations.weight.original0.shape == lengths


def test_layers_can_be_chosen_by_name():
    cell = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Sequential(nn.Linear(3, 3)))
    assert normalise(cell, names=["2.0"]) is cell
    assert not parametrize.is_parametrized(cell[0])
    assert parametrize.is_parametrized(cell[2][0])
    with pytest.raises(ContractError, match=r"no linear or convolutional layer '1'; there are \['0', '2\.0'\]"):
        normalise(cell, names=["1"])
    with pytest.raises(ContractError, match=r"layer '2\.0' is parametrised already"):
        normalise(cell)
    assert not parametrize.is_parametrized(cell[0])  # nothing was done by halves
    with pytest.raises(ContractError, match="Tanh has no linear"):
        normalise(nn.Tanh())
    with pytest.raises(ValueError, match="kind must be"):
        normalise(cell, "layer")  # type: ignore[arg-type]


def test_a_view_shares_everything_but_what_was_evaluated():
    plain = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    assert evaluate_once(plain) is plain
    shared = normalise(nn.Linear(3, 3))
    cell = nn.Sequential(shared, nn.BatchNorm1d(3), shared)
    view = evaluate_once(cell)
    assert view[0] is view[2] is not shared
    assert view[1] is cell[1]
    assert type(view[0]) is nn.Linear
    assert view[0].bias is shared.bias
    assert parametrize.is_parametrized(cell[0])
    x = torch.randn(4, 3)
    torch.testing.assert_close(view.eval()(x), cell.eval()(x))
