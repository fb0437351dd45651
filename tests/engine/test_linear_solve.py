"""`solve_adjoint` and its twin, `x = J x + b`, against dense solves."""

import pytest
import torch
from draws import random
from torch import Tensor

from homeostat import CG, GMRES, Anderson, NormalCG, Picard, Status, Stop
from homeostat.engine.backward.adjoint import JacobianRows
from homeostat.engine.backward.linear_solve import solve_adjoint
from homeostat.engine.backward.tape import present_autocast, record
from homeostat.engine.problem import Problem

F64 = torch.float64


def products(matrices: Tensor) -> JacobianRows:
    """Of `z <- J z` in two leaves, one matrix `J` a row."""
    rows, n = matrices.shape[:2]

    def step(state, matrix):
        z = torch.einsum("bij,bj->bi", matrix, torch.cat(state, 1))
        return z[:, :2], z[:, 2:]

    problem = Problem.of(step, (torch.zeros(rows, 2, dtype=F64), torch.zeros(rows, n - 2, dtype=F64)), matrices)
    return JacobianRows(problem, record(problem), present_autocast(torch.device("cpu")))


def contractions(seed: int, rows: int, n: int) -> Tensor:
    """Not symmetric, and not normal: `J` and its transpose are different systems."""
    gains = torch.linspace(0.2, 0.7, rows, dtype=F64)[:, None, None]
    return gains * torch.linalg.qr(random(seed, rows, n, n)).Q + 0.1 * random(seed + 1, rows, n, n).triu(1)


def symmetric(seed: int, rows: int, n: int) -> Tensor:
    q = torch.linalg.qr(random(seed, rows, n, n)).Q
    return q @ torch.diag_embed(torch.linspace(-0.9, 0.8, n, dtype=F64).expand(rows, n)) @ q.mT


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("method", [Picard(), Anderson(), CG(), GMRES(), GMRES(restart=3), NormalCG()])
def test_the_system_and_its_twin_against_dense_solves(method, transposed: bool) -> None:
    make = symmetric if isinstance(method, CG) else contractions
    matrices, b = make(0, 5, 7), random(2, 5, 7)
    if isinstance(method, CG):  # the twin of a symmetric system is the system: here it must be right all the same
        assert torch.allclose(matrices, matrices.mT)
    rows = torch.tensor([4, 0, 3])  # some of the rows, in an order of their own
    jacobian = products(matrices)
    source, stop = [b[rows, :2], b[rows, 2:]], Stop(1e-11, 0.0, 2000)
    with torch.no_grad():
        x, adjoint = solve_adjoint(jacobian, rows, source, method, stop, transposed=transposed)
    matrix = torch.eye(7, dtype=F64) - matrices[rows]
    wanted = torch.linalg.solve(matrix.mT if transposed else matrix, b[rows, :, None])[:, :, 0]
    assert (adjoint.status == Status.CONVERGED).all()
    torch.testing.assert_close(torch.cat(x, 1), wanted, rtol=1e-8, atol=1e-8)
    assert jacobian.evaluations == adjoint.row_evaluations > 0
