"""The recursive net against its definition written out cell by cell, its symmetries, bounds and score."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from homeostat.engine import Picard, Stop, Unrolled, solve
from homeostat.models import Noise, Own, RecursiveConfig, RecursiveNet
from homeostat.models.registry import build_net
from homeostat.models.starts import Mixed
from homeostat.tasks import Sudoku
from homeostat.tasks.sudoku_geometry import BOXES


def net(**sizes: int) -> RecursiveNet:
    torch.manual_seed(0)
    return RecursiveNet(
        RecursiveConfig(**{"in_channels": 10, "classes": 9, "width": 6, "hidden": 10, **sizes})
    ).double()


def questions(side: int, count: int = 2) -> torch.Tensor:
    return Sudoku().sample(side, count, split="train", seed=0).inputs.double()


@pytest.mark.parametrize("side", [4, 6])
def test_a_layer_cell_by_cell(side):
    layer = net().layers[0]
    grid = torch.randn(1, side, side, 6, dtype=torch.float64)
    height, width = BOXES[side]
    found = layer(grid)
    for row in range(side):
        for column in range(side):
            top, left = row - row % height, column - column % width
            box = grid[0, top : top + height, left : left + width].reshape(-1, 6).mean(0)
            inner = layer.cell(grid[0, row, column]) + layer.row(grid[0, row].mean(0))
            inner = inner + layer.column(grid[0, :, column].mean(0)) + layer.box(box)
            new = grid[0, row, column] + layer.outer(inner / (1 + torch.exp(-inner)))
            expected = new / (new.square().mean() + torch.finfo(torch.float64).eps).sqrt()
            torch.testing.assert_close(found[0, row, column], expected)


def test_a_step_is_refinements_of_the_latent_and_then_one_of_the_answer():
    model = net(refinements=3, layers=2)
    context = model.encode(questions(4))
    answer, latent = (torch.randn_like(context) for _ in range(2))
    found = model.step((answer, latent), context)
    for _ in range(3):
        latent = model.layers[1](model.layers[0](latent + answer + context))
    torch.testing.assert_close(found, (model.layers[1](model.layers[0](answer + latent)), latent))
    assert model.unit_cost == 8


@pytest.mark.parametrize("side", [4, 6, 9])
def test_shapes_and_bounds_at_every_side(side):
    model = net()
    context = model.encode(questions(side))
    state = model.initial_state(context, Noise(scale=100.0))
    for _ in range(3):
        state = model.step(state, context)
        for leaf in state:
            assert leaf.shape == (2, side, side, 6)
            torch.testing.assert_close(
                leaf.square().mean(3), torch.ones(2, side, side, dtype=torch.float64), rtol=1e-6, atol=0
            )
    assert model.decode(state, context).shape == (2, 9, side, side)
    assert all((leaf == 0).all() for leaf in model.initial_state(context, Own()))


def test_moved_cells_move_the_answer():
    model, inputs = net(), questions(6)
    rows, columns = [3, 2, 0, 1, 4, 5], [4, 3, 5, 0, 2, 1]  # bands of 2 rows and stacks of 3 columns stay together

    def answer(x: torch.Tensor) -> torch.Tensor:
        context = model.encode(x)
        state = model.initial_state(context, Own())
        for _ in range(4):
            state = model.step(state, context)
        return model.decode(state, context)

    torch.testing.assert_close(answer(inputs[:, :, rows][..., columns]), answer(inputs)[:, :, rows][..., columns])
    broken = [1, 2, 0, 3, 4, 5]
    assert not torch.allclose(answer(inputs[:, :, broken]), answer(inputs)[:, :, broken])


def test_the_engine_iterates_the_pair():
    model = net()
    context = model.encode(questions(4, 3))
    start = model.initial_state(context, Mixed())
    stop = Stop(rtol=0, max_steps=5)
    solution = solve(model.step, start, context, method=Picard(), stop=stop, gradient=Unrolled())
    state = start
    for _ in range(5):
        state = model.step(state, context)
    torch.testing.assert_close(solution.state, state)


def test_the_score_is_the_confidence_in_the_least_certain_cell():
    model = net()
    context = model.encode(questions(4))
    state = model.step(model.initial_state(context, Own()), context)
    logits = model.decode(state, context)
    sure = F.softmax(logits, dim=1).max(1).values.flatten(1).min(1).values
    torch.testing.assert_close(model.score(state, context).exp(), sure)


def test_configuration():
    config = RecursiveConfig.of(Sudoku(side=6), width=8, layers=2)
    assert (config.in_channels, config.classes, config.width, config.layers) == (7, 6, 8, 2)
    assert isinstance(build_net(config, name="x", trained_steps=5), RecursiveNet)
    for change in ({"width": 0}, {"refinements": 0}, {"classes": 1}, {"side": 6}):
        with pytest.raises(ValidationError):
            RecursiveConfig(**{"in_channels": 5, "classes": 4, **change})
