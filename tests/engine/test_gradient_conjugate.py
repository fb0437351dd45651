"""`CG` against dense solves, what it says of systems that are not for it, and solves that are cut short on purpose."""

import warnings
from functools import partial

import pytest
import torch
from draws import random
from torch import Tensor

import homeostat as hs
from homeostat import CG, GMRES, Implicit, NormalCG, Status, Stop
from homeostat.engine import Obstacle
from homeostat.errors import ConvergenceError, ConvergenceWarning

F64 = torch.float64
solve = partial(hs.solve, method=hs.Picard())


def spd(seed: int, conditions: list[float], n: int) -> Tensor:
    """`I - J` for each row: symmetric, eigenvalues from 1 / condition to 1."""
    q = torch.linalg.qr(random(seed, len(conditions), n, n)).Q
    low = 1 / torch.tensor(conditions, dtype=F64)
    spectrum = low[:, None] ** torch.linspace(0, 1, n, dtype=F64)
    return q @ torch.diag_embed(spectrum) @ q.mT


SHORT = Stop(1e-4, 1e-30, 3)


def pulled(matrices: Tensor, g: Tensor, stop: Stop, method=CG(), on_failure="warn", forward=SHORT):  # noqa: B008
    """`u` of `A^T u = g` for one matrix `A = I - J` a row, by way of the context's gradient; how the solve went."""
    shift = torch.zeros_like(g, requires_grad=True)
    jacobian = torch.eye(g.shape[1], dtype=F64) - matrices
    solution = solve(
        lambda z, c: torch.einsum("bij,bj->bi", c[0], z) + c[1],
        torch.zeros_like(g),
        (jacobian.to(g.dtype), shift),
        stop=forward,
        gradient=Implicit(method, stop, on_failure),
    )
    solution.state.backward(g)
    assert shift.grad is not None
    assert solution.adjoint is not None
    return shift.grad, solution.adjoint


def dense(matrices: Tensor, g: Tensor) -> Tensor:
    return torch.linalg.solve(matrices.mT, g[:, :, None])[:, :, 0]


def test_rows_of_different_conditioning_against_dense_solves() -> None:
    matrices, g = spd(0, [1.0, 2.0, 30.0, 1e3, 1e5], 24), random(1, 5, 24)
    u, adjoint = pulled(matrices, g, Stop(1e-12))
    torch.testing.assert_close(u, dense(matrices, g), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(u[:3], dense(matrices, g)[:3], rtol=1e-10, atol=1e-10)
    assert (adjoint.status == Status.CONVERGED).all()
    assert (adjoint.obstacle == Obstacle.NONE).all()
    assert bool((adjoint.steps.diff() >= 0).all())
    assert adjoint.steps[0] == 0  # I - J is I: u = g is the solution already
    assert adjoint.steps[2] <= 26  # n, in exact arithmetic


def test_the_residual_that_is_told_is_the_true_one() -> None:
    matrices, g = spd(2, [10.0, 100.0], 60), random(3, 2, 60)
    u, adjoint = pulled(matrices, g, Stop(1e-3))
    wrong = torch.einsum("bij,bi->bj", matrices, u) - g
    torch.testing.assert_close(wrong.norm(dim=1) / (u - wrong).norm(dim=1), adjoint.residual, rtol=1e-6, atol=0)
    assert (adjoint.residual > 1e-9).all()  # and none was solved far beyond what was asked


def test_each_step_is_the_best_of_its_krylov_space() -> None:
    matrices, g = spd(4, [50.0], 12), random(5, 1, 12)
    exact = dense(matrices, g)[0]
    start = g[0]
    direction = g[0] - matrices[0] @ start
    for steps in range(1, 6):
        u, adjoint = pulled(matrices, g, Stop(rtol=0, max_steps=steps))
        assert adjoint.steps.tolist() == [steps]
        # Of start + span(r, A r, ...) the point nearest to the solution in the norm of A, by a dense least squares.
        basis = torch.stack([torch.linalg.matrix_power(matrices[0], i) @ direction for i in range(steps)], 1)
        root = torch.linalg.cholesky(matrices[0]).mT
        weights = torch.linalg.lstsq(root @ basis, (root @ (exact - start))[:, None]).solution[:, 0]
        torch.testing.assert_close(u[0], start + basis @ weights, rtol=1e-8, atol=1e-8)


def test_two_leaves_of_very_different_scale() -> None:
    # Symmetric across the leaves, which a scale of its own for each leaf would destroy.
    matrix = spd(6, [20.0], 7)[0]
    x = torch.zeros(2, 4, dtype=F64, requires_grad=True)
    y = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    jacobian = torch.eye(7, dtype=F64) - matrix

    def step(s, c):
        z = torch.cat(s, 1) @ jacobian
        return z[:, :4] + c[0], z[:, 4:] + c[1]

    start = (torch.zeros(2, 4, dtype=F64), torch.zeros(2, 3, dtype=F64))
    solution = solve(step, start, (x, y), stop=Stop(1e-4, 1e-30, 5), gradient=Implicit(CG(), Stop(1e-12)))
    g = torch.cat([random(7, 2, 4), 1e-5 * random(8, 2, 3)], 1)
    torch.autograd.backward(solution.state, (g[:, :4], g[:, 4:]))
    wanted = torch.linalg.solve(matrix, g.T).T
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(torch.cat([x.grad, y.grad], 1), wanted, rtol=1e-9, atol=1e-10)


def nonsymmetric(n: int = 6) -> Tensor:
    """Regular, with eigenvalues of positive real part: nothing but its asymmetry is against CG."""
    skew = random(9, n, n)
    return 0.7 * torch.eye(n, dtype=F64) + 0.2 * (skew - skew.T) / n**0.5


@pytest.mark.parametrize("stop", [Stop(1e-10), *(Stop(rtol=0, max_steps=k) for k in (1, 2, 5))], ids=str)
def test_a_system_that_is_not_symmetric_is_named_however_few_the_steps(stop: Stop) -> None:
    matrices = torch.stack([spd(10, [5.0], 6)[0], nonsymmetric(), spd(11, [9.0], 6)[0]])
    g = random(12, 3, 6)
    match = (
        r"adjoint solve left 1 of 3 rows unconverged \(1 STALLED\); 1 row: .* not symmetric, as CG needs it: use GMRES"
    )
    with pytest.warns(ConvergenceWarning, match=match):
        u, adjoint = pulled(matrices, g, stop)
    assert adjoint.obstacle.tolist() == [Obstacle.NONE, Obstacle.NOT_SYMMETRIC, Obstacle.NONE]
    assert adjoint.status[1] == Status.STALLED
    assert adjoint.residual[1] > 1e-2
    assert "not symmetric" in repr(adjoint)
    if stop.tests:
        torch.testing.assert_close(u[[0, 2]], dense(matrices, g)[[0, 2]], rtol=1e-8, atol=1e-8)
    with pytest.raises(ConvergenceError, match="not symmetric"):
        pulled(matrices, g, stop, on_failure="raise")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_what_is_called_converged_is_the_solution_of_any_random_system(seed: int) -> None:
    # From hardly asymmetric to entirely: whatever the test of symmetry sees, the true residual decides.
    n = 8
    base, noise = spd(seed, [20.0], n)[0], random(seed + 100, n, n)
    shares = torch.tensor([0.0, 1e-12, 1e-6, 1e-3, 1e-2, 0.1, 1.0], dtype=F64)
    matrices = base + shares[:, None, None] * noise / n**0.5
    g = random(seed + 200, len(shares), n)
    u, adjoint = pulled(matrices, g, Stop(1e-9))
    wrong = torch.einsum("bij,bi->bj", matrices, u) - g
    good = adjoint.status == Status.CONVERGED
    assert bool(good[:3].all())
    assert bool((wrong.norm(dim=1)[good] <= 1e-8 * u.norm(dim=1)[good]).all())
    assert bool((adjoint.obstacle[~good] != Obstacle.NONE).all())
    assert adjoint.obstacle[-1] == Obstacle.NOT_SYMMETRIC


def test_a_symmetric_system_is_never_called_anything_else() -> None:
    # Rounding in float32 and a step size so small that I - J is mostly cancellation.
    # And long after there is nothing left to solve.
    for scale in (1.0, 1e-2, 1e-3):
        matrices, g = scale * spd(13, [1.0, 10.0, 100.0], 40), random(14, 3, 40).float()
        _, adjoint = pulled(matrices, g, Stop(rtol=0, max_steps=20))
        assert (adjoint.obstacle == Obstacle.NONE).all()
        assert (adjoint.status[1:] == Status.MAX_STEPS).all()
        assert (adjoint.residual[:2] < 1e-6).all()


@pytest.mark.parametrize("eigenvalue", [-1.0, -0.05])
def test_an_indefinite_system_is_named_and_others_solve_it(eigenvalue: float) -> None:
    q = torch.linalg.qr(random(15, 6, 6)).Q
    bent = q @ torch.diag(torch.tensor([eigenvalue, 0.2, 0.4, 0.6, 0.8, 1.0], dtype=F64)) @ q.T
    matrices, g = torch.stack([bent, spd(16, [5.0], 6)[0]]), random(17, 2, 6)
    with pytest.warns(ConvergenceWarning, match=r"1 row: the system I - J is indefinite, and CG needs a positive"):
        _, adjoint = pulled(matrices, g, Stop(1e-10))
    assert adjoint.obstacle.tolist() == [Obstacle.INDEFINITE, Obstacle.NONE]
    assert adjoint.status.tolist() == [Status.STALLED, Status.CONVERGED]
    for method in (GMRES(), NormalCG()):
        u, adjoint = pulled(matrices, g, Stop(1e-12), method)
        torch.testing.assert_close(u, dense(matrices, g), rtol=1e-8, atol=1e-8)
        assert (adjoint.obstacle == Obstacle.NONE).all()


@pytest.mark.parametrize("method", [CG(), GMRES(), NormalCG()])
def test_a_singular_system_is_named(method) -> None:
    matrices = torch.diag_embed(torch.tensor([[0.0, 0.5], [0.5, 0.5]], dtype=F64))
    with pytest.warns(ConvergenceWarning, match=r"1 row: the system I - J is singular to rounding"):
        u, adjoint = pulled(matrices, torch.ones(2, 2, dtype=F64), Stop(1e-8), method)
    assert adjoint.status.tolist() == [Status.STALLED, Status.CONVERGED]
    assert adjoint.obstacle.tolist() == [Obstacle.SINGULAR, Obstacle.NONE]
    assert torch.isfinite(u).all()


@pytest.mark.parametrize("stop", [Stop(1e-6), Stop(rtol=0, max_steps=4)], ids=str)
def test_a_row_does_not_depend_on_its_batch(stop: Stop) -> None:
    matrices, g = spd(18, [1.5, 3.0, 10.0, 30.0, 100.0, 300.0], 16), random(19, 6, 16)
    matrices[2] = torch.eye(16, dtype=F64) * 0.5 + 0.1 * random(20, 16, 16)  # a neighbour that fails
    with pytest.warns(ConvergenceWarning, match="1 row: .* not symmetric"):
        together, adjoint = pulled(matrices, g, stop)
    for row in (0, 1, 3, 4, 5):
        alone, its = pulled(matrices[[row]], g[[row]], stop)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-10, atol=1e-12)
        assert its.steps[0] == adjoint.steps[row]


def test_finished_rows_leave() -> None:
    matrices, g = spd(21, [1.01] * 15 + [1e4], 60), random(22, 16, 60)
    _, adjoint = pulled(matrices, g, Stop(1e-8))
    assert adjoint.row_evaluations < int(adjoint.steps.sum()) + 2 * 16 + 100
    assert int(adjoint.steps.sum()) + 132 < 0.5 * 16 * int(adjoint.steps.max())


def test_no_gradient_and_no_steps() -> None:
    matrices, g = spd(23, [5.0, 5.0], 6), random(24, 2, 6)
    g[0] = 0
    u, adjoint = pulled(matrices, g, Stop(1e-8))
    assert adjoint.steps[0] == 0
    assert (u[0] == 0).all()
    u, adjoint = pulled(matrices, g, Stop(rtol=0, max_steps=0))
    assert torch.equal(u, g)
    assert (adjoint.status == Status.MAX_STEPS).all()


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_a_gradient_that_is_nan_stays_in_its_row() -> None:
    matrices, g = spd(25, [5.0, 5.0, 9.0], 6), random(26, 3, 6)
    g[1, 2] = torch.nan
    u, adjoint = pulled(matrices, g, Stop(1e-10))
    assert adjoint.status.tolist() == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    assert torch.equal(u[1].isnan(), g[1].isnan())  # and is passed on, as a plain loop would: a scaler looks for it
    torch.testing.assert_close(u[[0, 2]], dense(matrices, g)[[0, 2]], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    matrices, g = spd(27, [2.0, 5.0], 16), random(28, 2, 16).to(dtype)
    u, adjoint = pulled(matrices, g, Stop(4 * torch.finfo(dtype).eps), forward=Stop(1e-2, 1e-5))
    rounded = torch.eye(16, dtype=F64) - (torch.eye(16, dtype=F64) - matrices).to(dtype).double()
    wanted = dense(rounded, g.double())
    assert (adjoint.status == Status.CONVERGED).all()
    assert (u.double() - wanted).norm() < 40 * torch.finfo(dtype).eps * wanted.norm()


# Cut short on purpose.


@pytest.mark.parametrize("on_failure", ["warn", "raise", "mask", "fallback"])
@pytest.mark.parametrize("method", [CG(), hs.Picard(), GMRES(), NormalCG()])
def test_without_a_tolerance_taking_all_steps_is_no_failure(method, on_failure) -> None:
    rate = torch.full((2, 3), 0.99, dtype=F64)
    shift = torch.ones(2, 3, dtype=F64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solve(
            lambda z, c: c[0] * z + c[1] + 0.001 * torch.roll(z, 1, 1) + 0.001 * torch.roll(z, -1, 1),
            torch.zeros(2, 3, dtype=F64),
            (rate, shift),
            stop=Stop(rtol=0, max_steps=4),
            gradient=Implicit(method, Stop(rtol=0, max_steps=2), on_failure),
        )
        solution.state.square().sum().backward()
    assert (solution.status == Status.MAX_STEPS).all()
    assert (solution.residual > 0.1).all()  # both solves say how far they got
    assert solution.adjoint is not None
    assert (solution.adjoint.status == Status.MAX_STEPS).all() or isinstance(method, GMRES | NormalCG | CG)
    assert shift.grad is not None
    assert (shift.grad != 0).all()


def test_a_row_with_a_tolerance_beside_rows_without_one_is_warned_of() -> None:
    weight = torch.tensor(0.99, dtype=F64, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match=r"forward solve left 1 of 2 rows unconverged \(1 MAX_STEPS\)"):
        solve(lambda z, _: weight * z + 1, torch.zeros(2, 3, dtype=F64), stop=Stop(torch.tensor([0.0, 1e-6]), 0.0, 9))


def test_what_diverged_without_a_tolerance_is_a_failure() -> None:
    weight = torch.tensor(1e40, dtype=F64, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match=r"forward solve left 2 of 2 rows unconverged \(2 DIVERGED\)"):
        solve(lambda z, _: weight * z + 1, torch.zeros(2, 3, dtype=F64), stop=Stop(0, 0.0, 9))


@pytest.mark.parametrize("method", [CG(), GMRES(), NormalCG()])
def test_a_jacobian_that_turns_the_gradient_round_is_solved(method) -> None:
    # J = -I: the first J^T u + g is exactly 0, and u is not.
    matrices, g = 2 * torch.eye(3, dtype=F64).expand(2, 3, 3), random(5, 2, 3)
    stop = Stop(1e-10, max_steps=20)
    shift = torch.zeros_like(g, requires_grad=True)
    solution = solve(lambda z, c: c - z, 0 * g, shift, stop=Stop(atol=1e-9), gradient=Implicit(method, stop))
    (u,) = torch.autograd.grad(solution.state, shift, g)
    torch.testing.assert_close(u, torch.linalg.solve(matrices.mT, g))
    assert solution.adjoint is not None
    assert (solution.adjoint.status == Status.CONVERGED).all()
