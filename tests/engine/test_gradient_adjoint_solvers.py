"""The solvers of `u = J^T u + g`, against dense solves, and what they say about rows that they cannot solve."""

import warnings
from functools import partial

import pytest
import torch
from draws import random
from torch import Tensor

import homeostat as hs
from homeostat import Implicit, Status, Stop
from homeostat.engine import GMRES, Anderson, NormalCG, Picard
from homeostat.errors import ConvergenceWarning

# The plain loop: what these tests say about steps and states is said of its sequence.
solve = partial(hs.solve, method=hs.Picard())

F64 = torch.float64
METHODS = [Picard(), Picard(damping=0.7), Anderson(), GMRES(), GMRES(restart=3), NormalCG()]
KRYLOV = [GMRES(), NormalCG()]


def pulled(matrices: Tensor, g: Tensor, method, stop: Stop, on_failure="warn"):
    """`u` for one matrix `J` a row, by way of the context's gradient; the adjoint's log."""
    shift = torch.zeros_like(g, requires_grad=True)
    solution = solve(
        lambda z, c: torch.einsum("bij,bj->bi", c[0], z) + c[1],
        torch.zeros_like(g),
        (matrices.to(g.dtype), shift),
        stop=Stop(1e-4, 1e-30, 3),
        gradient=Implicit(method=method, stop=stop, on_failure=on_failure),
    )
    solution.state.backward(g)
    assert shift.grad is not None
    assert solution.adjoint is not None
    return shift.grad, solution.adjoint


def dense(matrices: Tensor, g: Tensor) -> Tensor:
    eye = torch.eye(g.shape[1], dtype=F64)
    return torch.linalg.solve((eye - matrices.double()).mT, g.double()[:, :, None])[:, :, 0]


def orthogonal(seed: int, gains: list[float], n: int) -> Tensor:
    return torch.linalg.qr(random(seed, n, n)).Q * torch.tensor(gains, dtype=F64)[:, None, None]


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_different_conditioning(method):
    matrices, g = orthogonal(0, [0.0, 0.1, 0.5, 0.9], 8), random(1, 4, 8)
    u, adjoint = pulled(matrices, g, method, Stop(1e-11, 0.0, 2000))
    torch.testing.assert_close(u, dense(matrices, g), rtol=1e-9, atol=1e-9)
    assert (adjoint.status == Status.CONVERGED).all()
    assert (adjoint.residual <= 1e-11).all()
    assert adjoint.steps[0] < adjoint.steps[-1]


@pytest.mark.parametrize("method", [*KRYLOV, Picard(), Picard(damping=0.7), Anderson()])
def test_the_residual_that_is_told_is_the_true_one(method):
    matrices, g = orthogonal(2, [0.5, 0.8], 60), random(3, 2, 60)
    u, adjoint = pulled(matrices, g, method, Stop(1e-3, 0.0, 100))
    after = torch.einsum("bij,bi->bj", matrices, u) + g
    true = (after - u).norm(dim=1) / after.norm(dim=1)
    torch.testing.assert_close(true, adjoint.residual, rtol=1e-6, atol=0)
    assert (adjoint.residual > 1e-9).all()  # and none was solved far beyond what was asked


def test_krylov_methods_need_no_contraction():
    # Spectral radius 3, indefinite and non-normal: plain iteration explodes.
    matrices = torch.stack([3 * random(4, 10, 10) / 10**0.5, 0.5 * random(5, 10, 10) / 10**0.5])
    assert torch.linalg.eigvals(matrices[0]).abs().max() > 2
    g = random(6, 2, 10)
    for method in KRYLOV:
        u, adjoint = pulled(matrices, g, method, Stop(1e-12))
        torch.testing.assert_close(u, dense(matrices, g), rtol=1e-7, atol=1e-8)
        assert (adjoint.status == Status.CONVERGED).all()


def test_gmres_ends_when_the_space_holds_the_solution():
    # I - J with two distinct eigenvalues: two products solve it exactly, a third one has nothing left to do.
    matrices = torch.diag_embed(torch.tensor([[0.5] * 3 + [-3.0] * 3, [0.25] * 6], dtype=F64))
    u, adjoint = pulled(matrices, random(7, 2, 6), GMRES(), Stop(1e-13))
    torch.testing.assert_close(u, dense(matrices, random(7, 2, 6)), rtol=1e-12, atol=1e-12)
    assert adjoint.steps.tolist() == [4, 3]  # with the residual before and after


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_gmres_says_that_it_gets_nowhere():
    # I - J is a cyclic shift: until its space is the whole one, GMRES gains little, and a restart forgets all.
    shift = torch.eye(8, dtype=F64).roll(1, 0)
    matrices = torch.stack([torch.eye(8, dtype=F64) - shift, torch.zeros(8, 8, dtype=F64)])
    g = torch.zeros(2, 8, dtype=F64)
    g[:, 0] = 1
    u, adjoint = pulled(matrices, g, GMRES(restart=4), Stop(1e-8))
    assert adjoint.status[0] in (Status.STALLED, Status.MAX_STEPS)
    assert adjoint.status[1] == Status.CONVERGED
    assert torch.equal(u[1], g[1])
    u, adjoint = pulled(matrices, g, GMRES(restart=8), Stop(1e-8))
    assert (adjoint.status == Status.CONVERGED).all()
    torch.testing.assert_close(u, dense(matrices, g))


@pytest.mark.parametrize("method", KRYLOV)
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_a_singular_system_is_no_success(method):
    matrices = torch.diag_embed(torch.tensor([[1.0, 0.5], [0.5, 0.5]], dtype=F64))
    u, adjoint = pulled(matrices, torch.ones(2, 2, dtype=F64), method, Stop(1e-8))
    assert adjoint.status.tolist() == [Status.STALLED, Status.CONVERGED]
    assert (u.abs() < 10).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [0, 1, 2, 7])
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_steps_are_limited(method, limit):
    u, adjoint = pulled(orthogonal(8, [0.99, 0.98], 30), random(9, 2, 30), method, Stop(1e-12, 0.0, limit))
    assert (adjoint.status == Status.MAX_STEPS).all()
    assert (adjoint.steps <= limit).all()
    assert torch.isfinite(u).all()
    if limit == 0:
        assert torch.equal(u, random(9, 2, 30))
        assert adjoint.residual.isnan().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_a_gradient_that_is_nan_stays_in_its_row(method):
    matrices, g = orthogonal(10, [0.3, 0.5, 0.7], 6), random(11, 3, 6)
    alone, _ = pulled(matrices[[0, 2]], g[[0, 2]], method, Stop(1e-10))
    g[1, 3] = torch.nan
    u, adjoint = pulled(matrices, g, method, Stop(1e-10))
    assert adjoint.status.tolist() == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    assert torch.equal(u[1].isnan(), g[1].isnan())  # and is passed on, as a plain loop would: a scaler looks for it
    torch.testing.assert_close(u[[0, 2]], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_rows_without_a_gradient_cost_next_to_nothing(method):
    matrices, g = orthogonal(12, [0.9, 0.9], 6), random(13, 2, 6)
    g[0] = 0
    u, adjoint = pulled(matrices, g, method, Stop(1e-8, 0.0, 500))
    assert adjoint.steps[0] == 1
    assert (u[0] == 0).all()
    assert adjoint.status[0] == Status.CONVERGED


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_the_scale_of_the_gradient_does_not_matter(method, scale):
    matrices, g = orthogonal(14, [0.5, 0.8], 6), random(15, 2, 6).float()
    plain, one = pulled(matrices, g, method, Stop(1e-5))
    scaled, other = pulled(matrices, g * scale, method, Stop(1e-5))
    torch.testing.assert_close(scaled / scale, plain, rtol=1e-4, atol=1e-5)
    assert (one.steps - other.steps).abs().max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_rows_gradient_does_not_depend_on_who_shares_its_batch(method):
    gains = [0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95]
    matrices, g = orthogonal(16, gains, 10), random(17, 8, 10)
    together, adjoint = pulled(matrices, g, method, Stop(1e-6, 0.0, 1000))
    for row in (0, 4, 7):
        alone, its = pulled(matrices[row : row + 1], g[row : row + 1], method, Stop(1e-6, 0.0, 1000))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-9, atol=1e-11)
        assert its.steps[0] == adjoint.steps[row]


@pytest.mark.parametrize("method", [Picard(), *KRYLOV])
def test_finished_rows_leave(method):
    matrices, g = orthogonal(18, [0.1] * 15 + [0.9], 60), random(19, 16, 60)
    _, adjoint = pulled(matrices, g, method, Stop(1e-6, 0.0, 1000))
    products = 2 if method == NormalCG() else 1
    assert adjoint.row_evaluations < products * (int(adjoint.steps.sum()) + 40)  # a few more: rows leave in groups
    assert int(adjoint.steps.sum()) + 40 < 0.5 * 16 * int(adjoint.steps.max())


@pytest.mark.parametrize("method", METHODS)
def test_two_leaves_of_very_different_scale(method):
    # The second leaf's gradient is 0 at the start, and its share of u is 1e6 times smaller.
    a, b = random(20, 4, 4) * 0.2, random(21, 3, 4) * 1e-6
    x = torch.zeros(2, 4, dtype=F64, requires_grad=True)
    y = torch.zeros(2, 3, dtype=F64, requires_grad=True)

    def step(s, c):
        return s[0] @ a.T + s[1] @ b + c[0], 0.5 * s[1] + 0.3 * s[0][:, :3] * 1e-3 + c[1]

    start = (torch.zeros(2, 4, dtype=F64), torch.zeros(2, 3, dtype=F64))
    gradient = Implicit(method=method, stop=Stop(1e-9, 0.0, 1000))
    solution = solve(step, start, (x, y), stop=Stop(1e-4, 1e-30, 5), gradient=gradient)
    g = random(22, 2, 4)
    solution.state[0].backward(g)
    top = torch.cat([a, b.T], 1)
    pick = torch.eye(4, dtype=F64)[:3] * 0.3e-3
    matrix = torch.cat([top, torch.cat([pick, 0.5 * torch.eye(3, dtype=F64)], 1)], 0)
    wanted = dense(matrix.expand(2, 7, 7), torch.cat([g, torch.zeros(2, 3, dtype=F64)], 1))
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad, wanted[:, :4], rtol=1e-7, atol=0)
    torch.testing.assert_close(y.grad, wanted[:, 4:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_converges_without_a_warning(method, dtype):
    matrices, g = orthogonal(23, [0.3, 0.6, 0.9], 16), random(24, 3, 16).to(dtype)
    shift = torch.zeros_like(g, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        solution = solve(
            lambda z, c: torch.einsum("bij,bj->bi", c[0], z) + c[1], torch.zeros_like(g), (matrices.to(dtype), shift),
            stop=Stop(1e-2, 1e-5), gradient=Implicit(method=method),
        )  # fmt: skip
        solution.state.backward(g)
    assert shift.grad is not None
    assert solution.adjoint is not None
    wanted = dense(matrices.to(dtype).double(), g.double())
    assert (shift.grad.double() - wanted).norm() < 40 * torch.finfo(dtype).eps * wanted.norm()


def test_the_adjoint_is_as_tight_as_the_forward_solve():
    weight = torch.tensor(0.9, dtype=F64, requires_grad=True)
    for rtol, wanted in ((1e-2, 1e-5), (1e-4, 1e-5), (1e-10, 1e-10), (torch.tensor([1e-3, 1e-8]), 1e-8)):
        solution = solve(
            lambda z, _: weight * z + 1, torch.zeros(2, 3, dtype=F64), stop=Stop(rtol, 0.0, 1000),
            gradient=Implicit(hs.Picard()),
        )  # fmt: skip
        solution.state.sum().backward()
        assert solution.adjoint is not None
        assert wanted / 20 < solution.adjoint.residual.max() <= wanted
