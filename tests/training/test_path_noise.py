"""Noise on the way: its size, whose it is, and where it is added."""

import torch

from homeostat import Carry
from homeostat.engine.problem import Problem
from homeostat.training.path_noise import PathNoise


def test_every_step_adds_independent_noise_of_the_given_size() -> None:
    problem = Problem.of(lambda z, _: z, torch.zeros(3, 20_000), None)
    walked = PathNoise(0.2, 0, (0, 1, 2)).walk(problem, free=6, graphed=3)[0]
    # Nine independent summands on a state that is kept: variance 9 * 0.04.
    assert torch.allclose(walked.var(1), torch.full((3,), 0.36), rtol=0.05)
    assert torch.corrcoef(walked).sub(torch.eye(3)).abs().max() < 5 / 20_000**0.5


def test_an_example_gets_the_same_noise_in_any_batch() -> None:
    start = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    whole = PathNoise(0.1, 5, (4, 9, 2, 7)).walk(Problem.of(lambda z, c: torch.tanh(z), start, None), free=2, graphed=2)
    part = PathNoise(0.1, 5, (2, 4)).walk(
        Problem.of(lambda z, c: torch.tanh(z), start[[2, 0]], None), free=1, graphed=3
    )
    assert torch.equal(part[0], whole[0][[2, 0]])
    other = PathNoise(0.1, 6, (2, 4)).walk(
        Problem.of(lambda z, c: torch.tanh(z), start[[2, 0]], None), free=1, graphed=3
    )
    assert not torch.equal(part[0], other[0])


def test_gradients_reach_the_graphed_steps_alone() -> None:
    gain = torch.tensor(0.5, requires_grad=True)
    problem = Problem.of(lambda z, _: gain * z, torch.ones(1, 1, dtype=torch.float64), None)
    walk = PathNoise(1e-9, 0, (0,)).walk(problem, free=2, graphed=3)[0]
    walk.sum().backward()
    # The start of the graphed steps is the constant 0.25: d(0.25 g^3) / dg at 0.5.
    assert abs(gain.grad.item() - 0.25 * 3 * 0.25) < 1e-6  # type: ignore[union-attr]


def test_carried_and_integer_leaves_stay_quiet() -> None:
    state = {"z": torch.zeros(2, 3), "n": torch.zeros(2, dtype=torch.int64), "c": Carry(torch.zeros(2))}
    problem = Problem.of(lambda s, _: {"z": s["z"], "n": s["n"] + 1, "c": s["c"] + 1}, state, None)
    leaves = PathNoise(1.0, 0, (0, 1)).walk(problem, free=1, graphed=2)
    after = problem.layout.build(leaves)
    assert torch.equal(after["n"], torch.full((2,), 3))
    assert torch.equal(after["c"], torch.full((2,), 3.0))
    assert (after["z"] != 0).all()
