"""The matrix network: what it can express, what it cannot, and that it stays finite."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from homeostat.models import IteratedModel, MatrixConfig, MatrixNet, Noise, Own
from homeostat.tasks import MatrixInversion


def heavy_ball(rate: float, momentum: float) -> MatrixNet:
    """One channel: v <- momentum v + rate (I - u z), z <- z + v, which ends at the inverse of u = M / norm(M)."""
    net = MatrixNet(MatrixConfig(channels=1)).double()
    with torch.no_grad():
        net.momentum.fill_(momentum)
        net.left.fill_(-rate)
        net.right.zero_()
        net.drive.fill_(rate)
        net.readout.fill_(1)
    return net


def run(net: MatrixNet, inputs: torch.Tensor, steps: int, start: Own | Noise) -> torch.Tensor:
    context = net.encode(inputs)
    state = net.initial_state(context, start)
    with torch.no_grad():
        for _ in range(steps):
            state = net.step(state, context)
        return net.decode(state, context)


@pytest.mark.parametrize("start", [Own(), Noise(scale=3.0)])
@pytest.mark.parametrize("size", [2, 10])
def test_heavy_ball_momentum_is_expressed_and_ends_at_the_inverse(size, start):
    inputs = MatrixInversion().sample(size, 8, split="train", seed=0).inputs.double()
    answer = run(heavy_ball(1.0, 0.8), inputs, 2_000, start) / 10  # decode counts in n / norm(M)
    assert np.allclose(answer, torch.linalg.inv(inputs), rtol=1e-6, atol=1e-9)


def test_against_the_recursion_on_eigenvalues():
    # From zeros everything commutes with the input, so that each eigenvalue follows a recursion of numbers.
    net, side, steps = MatrixNet(MatrixConfig(channels=3)).double(), 5, 7
    inputs = MatrixInversion(side=side).sample(2, 1, split="train", seed=1).inputs.double()
    values, vectors = np.linalg.eigh(inputs[0].numpy())
    momentum, left, right, drive, readout = (p.detach().numpy() for p in net.parameters())
    norm, expected = np.linalg.norm(values), []
    for value in values / norm:
        z, v = np.zeros(3), np.zeros(3)
        for _ in range(steps):
            v = momentum @ v + value * (left + right) @ z + drive
            z = z + v
        expected.append(readout @ z * side / norm)
    assert np.allclose(run(net, inputs, steps, Own())[0], vectors * expected @ vectors.T, atol=1e-12)


def test_left_and_right_products_differ():
    net = MatrixNet(MatrixConfig(channels=2)).double()
    matrix, state = torch.randn(1, 3, 3, dtype=torch.float64), torch.randn(1, 4, 3, 3, dtype=torch.float64)
    context = net.encode(matrix)
    velocity = net.step(state, context)[0, 2:]
    u, z, v = matrix[0] / matrix.norm(), state[0, :2], state[0, 2:]
    for row in range(2):
        expected = net.drive[row] * torch.eye(3)
        for k in range(2):
            expected = expected + net.momentum[row, k] * v[k]
            expected = expected + net.left[row, k] * u @ z[k] + net.right[row, k] * z[k] @ u
        assert torch.allclose(velocity[row], expected)


def test_an_unstable_cell_stays_finite_and_each_row_is_bounded_by_itself():
    net = heavy_ball(9.0, 0.8).float()
    inputs = MatrixInversion().sample(2, 3, split="train", seed=0).inputs
    together = run(net, inputs, 400, Noise(scale=1.0).seeded(0, range(3)))
    alone = run(net, inputs[1:2], 400, Noise(scale=1.0).seeded(0, [1]))
    assert torch.isfinite(together).all()
    assert torch.allclose(together[1:2], alone, rtol=1e-3)


def test_the_answer_is_in_the_scale_of_the_input():
    net, inputs = MatrixNet(MatrixConfig()), torch.randn(2, 4, 4)
    one, other = run(net, inputs, 5, Own()), run(net, 8 * inputs, 5, Own())
    assert torch.allclose(one, 8 * other)
    assert isinstance(net, IteratedModel)
    assert net.light_cone(3) is None


@pytest.mark.parametrize("change", [{"channels": 0}, {"channels": 257}, {"width": 3}])
def test_impossible_sizes(change):
    with pytest.raises(ValidationError):
        MatrixConfig(**change)
