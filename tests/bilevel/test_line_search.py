"""Backtracking against trying one step size after the other, row by row."""

import pytest
import torch
from torch import Tensor

from homeostat.bilevel import line_search
from homeostat.bilevel.line_search import backtrack
from homeostat.bilevel.objective import RowObjective


def loss(p: Tensor, scale: Tensor) -> Tensor:
    return (scale * p.square().sum(1)).sin() + scale * p.square().sum(1)


class ByRow(RowObjective):
    """The same, which can be had for some rows; it notes how many it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, parameters: Tensor, context: Tensor) -> Tensor:
        self.asked.append(len(parameters))
        return loss(parameters, context)

    def rows(self, context: Tensor, index: Tensor) -> Tensor:
        return context.index_select(0, index)


def problem(rows: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    scale = 10 ** (4 * torch.rand(rows, generator=generator, dtype=torch.float64) - 2)
    square = p.square().sum(1)
    gradient = (2 * scale * ((scale * square).cos() + 1))[:, None] * p
    return p, scale, gradient, loss(p, scale)


def one_by_one(p: Tensor, scale: Tensor, gradient: Tensor, values: Tensor, size: Tensor, most: int) -> Tensor:
    """The rule in plain words."""
    found = []
    for row in range(len(p)):
        s = float(size[row])
        for _ in range(most):
            after = loss(p[row : row + 1] - s * gradient[row], scale[row : row + 1])[0]
            if after <= values[row] - 0.5 * s * gradient[row].square().sum():
                break
            s /= 2
        found.append(s)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("most", [1, 3, 15])
@pytest.mark.parametrize("at_once", [1, 500, 1 << 17])
def test_every_way_to_search_finds_what_trying_one_by_one_finds(
    most: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_search, "_AT_ONCE", at_once)
    p, scale, gradient, values = problem()
    size = torch.linspace(0.1, 2, len(p), dtype=torch.float64)
    expected = one_by_one(p, scale, gradient, values, size, most)
    assert len(set(expected.tolist())) > 1
    for objective in (loss, ByRow()):
        assert torch.equal(backtrack(objective, p, values, gradient, scale, size, most), expected)


def test_rows_that_have_found_their_step_are_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_search, "_AT_ONCE", 1)
    p, scale, gradient, values = problem()
    objective = ByRow()
    backtrack(objective, p, values, gradient, scale, torch.ones(len(p), dtype=torch.float64), 15)
    assert objective.asked[0] == 40
    assert objective.asked[-1] < 10


def test_a_row_that_is_too_flat_to_tell_goes_by_the_slope_and_changes_nothing_for_the_others() -> None:
    p, scale, gradient, values = problem(4)
    size = torch.ones(4, dtype=torch.float64)
    alone = backtrack(loss, p, values, gradient, scale, size, 15)
    p, gradient = p.clone(), gradient.clone()
    p[2] = 1e-12  # its loss is of 1e-24 scale and exact; made flat by a constant
    gradient[2] = 4 * scale[2] * p[2]

    def lifted(parameters: Tensor, at: Tensor) -> Tensor:
        return loss(parameters, at) + 1

    class Lifted(ByRow):
        def __call__(self, parameters: Tensor, context: Tensor) -> Tensor:
            return lifted(parameters, context)

    for objective in (lifted, Lifted()):
        found = backtrack(objective, p, lifted(p, scale), gradient, scale, size, 15)
        assert torch.equal(found[[0, 1, 3]], alone[[0, 1, 3]])
        # Curvature 4 * scale: halved until the gradient after the step does not point back.
        assert found[2] <= 1 / (4 * scale[2]) < 2 * found[2]


def test_a_loss_that_is_not_a_number_takes_the_smallest_step() -> None:
    p, scale, gradient, values = problem(2)
    found = backtrack(lambda p, c: p[:, 0] * torch.nan, p, values, gradient, scale, torch.ones(2).double(), 4)
    assert found.tolist() == [2**-4, 2**-4]
