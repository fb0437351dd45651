"""Several methods in turn for one adjoint: what they solve, what they cost, and what is said where they do not."""

import warnings

import pytest
import torch
from benchmarks.systems import FAMILIES, System, random_system
from draws import random
from torch import Tensor

import homeostat as hs
from homeostat import CG, GMRES, Anderson, Implicit, NormalCG, Picard, Status, Stop
from homeostat.engine import AdjointSolver, Obstacle
from homeostat.errors import ConvergenceError, ConvergenceWarning

F64 = torch.float64
STOP = Stop(1e-9, max_steps=500)


def pulled(matrices: Tensor, g: Tensor, gradient: Implicit):
    """`u` for one matrix `J` a row, by way of the context's gradient; how the solve went."""
    shift = torch.zeros_like(g, requires_grad=True)
    step = lambda z, c: torch.einsum("bij,bj->bi", c[0], z) + c[1]  # noqa: E731
    solution = hs.solve(step, torch.zeros_like(g), (matrices, shift), stop=Stop(0.5, 1e-30), gradient=gradient)
    solution.state.backward(g)
    assert shift.grad is not None
    assert solution.adjoint is not None
    return shift.grad, solution.adjoint


def dense(matrices: Tensor, g: Tensor) -> Tensor:
    return torch.linalg.solve((torch.eye(g.shape[1], dtype=F64) - matrices).mT, g[:, :, None])[:, :, 0]


def rotation(gain: float, n: int) -> Tensor:
    return gain * torch.linalg.qr(random(7, n, n)).Q


def cycle(n: int) -> Tensor:
    """`I - J` is a cyclic shift: nothing gets nearer in less than n products, but on the normal equations in one."""
    return torch.eye(n, dtype=F64) - torch.eye(n, dtype=F64).roll(1, 0)


def mixed() -> tuple[Tensor, Tensor]:
    """Rows that Anderson solves, that it does not, and one that is singular."""
    singular = torch.diag(torch.tensor([1.0] + [0.5] * 11, dtype=F64))
    matrices = torch.stack([rotation(0.3, 12), rotation(1.5, 12), rotation(0.5, 12), random(8, 12, 12), singular])
    return matrices, random(9, 5, 12)


# 10 families by 6 seeds; `python -m benchmarks --only adjoint` has 200.
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_random_systems_are_solved_or_it_is_said_why_and_never_worse_than_by_gmres(family: str) -> None:
    for seed in range(100, 106):
        system: System = random_system(family, seed)
        stop = Stop(system.rtol, max_steps=500)
        u, adjoint = system.solve(Implicit(stop=stop))
        alone, its = system.solve(Implicit(GMRES(), stop))
        if adjoint.status == Status.CONVERGED:
            assert system.residual(u) <= 1.01 * system.rtol + 1e-7 * (u.dtype == torch.float32)
            assert adjoint.residual <= system.rtol
        else:
            assert adjoint.status in (Status.STALLED, Status.MAX_STEPS)
            assert its.status != Status.CONVERGED
            assert adjoint.residual <= its.residual
            assert torch.isfinite(u).all()
        if adjoint.method == AdjointSolver.GMRES:
            assert torch.equal(u, alone)
        assert adjoint.row_evaluations <= its.row_evaluations + 500 or its.status != Status.CONVERGED


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_each_row_gets_the_method_that_it_needs_and_does_not_depend_on_its_batch() -> None:
    matrices, g = mixed()
    u, adjoint = pulled(matrices, g, Implicit(stop=STOP))
    torch.testing.assert_close(u[:4], dense(matrices[:4], g[:4]), rtol=1e-7, atol=1e-7)
    assert (adjoint.status[:4] == Status.CONVERGED).all()
    assert adjoint.method[:4].tolist() == [AdjointSolver.ANDERSON, AdjointSolver.GMRES] * 2
    assert adjoint.status[4] != Status.CONVERGED
    assert adjoint.obstacle.tolist() == [0, 0, 0, 0, Obstacle.SINGULAR]
    assert ", 2 by GMRES" in repr(adjoint)
    for row in range(5):
        alone, its = pulled(matrices[row : row + 1], g[row : row + 1], Implicit(stop=STOP))
        torch.testing.assert_close(alone[0], u[row], rtol=1e-9, atol=1e-11)
        assert (its.steps[0], its.method[0]) == (adjoint.steps[row], adjoint.method[row])


def test_a_row_that_is_finished_costs_nothing_in_later_methods() -> None:
    easy, hard = rotation(0.3, 12), rotation(1.5, 12)
    matrices, g = torch.stack([easy] * 15 + [hard]), random(10, 16, 12)
    _, adjoint = pulled(matrices, g, Implicit(stop=STOP))
    assert (adjoint.status == Status.CONVERGED).all()
    assert (adjoint.steps[:15] < 30).all()
    assert adjoint.row_evaluations <= int(adjoint.steps.sum()) + 40  # a few more: rows leave in groups


def test_what_anderson_does_not_bring_nearer_is_soon_left_to_gmres() -> None:
    matrices, g = rotation(1.5, 30)[None], random(11, 1, 30)
    _, alone = pulled(matrices, g, Implicit(GMRES(), STOP))
    u, adjoint = pulled(matrices, g, Implicit(stop=STOP))
    assert (adjoint.status == Status.CONVERGED).all()
    assert int(adjoint.steps) <= int(alone.steps) + 48
    torch.testing.assert_close(u, dense(matrices, g), rtol=1e-7, atol=1e-7)


def test_anderson_is_left_alone_where_it_gets_nearer() -> None:
    matrices, g = rotation(0.75, 12)[None], random(13, 1, 12)
    _, adjoint = pulled(matrices, g, Implicit(stop=STOP))
    _, alone = pulled(matrices, g, Implicit(Anderson(), STOP))
    assert int(adjoint.steps) == int(alone.steps)
    assert adjoint.method.tolist() == [AdjointSolver.ANDERSON]


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_a_method_that_is_named_is_all_that_is_tried() -> None:
    matrices, g = rotation(1.5, 12)[None], random(14, 1, 12)
    for method, solver in ((Picard(), AdjointSolver.PICARD), (Anderson(), AdjointSolver.ANDERSON)):
        _, adjoint = pulled(matrices, g, Implicit(method, STOP))
        assert (adjoint.status != Status.CONVERGED).all()
        assert adjoint.method.tolist() == [solver]
    for method, solver in ((GMRES(), AdjointSolver.GMRES), (NormalCG(), AdjointSolver.NORMAL_CG)):
        u, adjoint = pulled(matrices, g, Implicit(method, STOP))
        assert adjoint.method.tolist() == [solver]
        torch.testing.assert_close(u, dense(matrices, g), rtol=1e-6, atol=1e-6)
    # And a tuple is a choice as well.
    _, adjoint = pulled(matrices, g, Implicit((CG(), NormalCG()), STOP))
    assert adjoint.method.tolist() == [AdjointSolver.NORMAL_CG]
    assert adjoint.obstacle.tolist() == [0]


def test_without_a_tolerance_the_first_method_takes_its_steps() -> None:
    matrices, g = rotation(1.1, 12)[None], random(15, 1, 12)
    stop = Stop(rtol=0, max_steps=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        u, adjoint = pulled(matrices, g, Implicit(stop=stop))
        wanted, _ = pulled(matrices, g, Implicit(Anderson(), stop))
    assert torch.equal(u, wanted)
    assert (adjoint.steps.tolist(), adjoint.row_evaluations) == ([60], 60)
    assert adjoint.method.tolist() == [AdjointSolver.ANDERSON]


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_a_later_method_that_does_worse_changes_nothing() -> None:
    matrices, g = rotation(1.5, 12)[None], random(16, 1, 12)
    stop = Stop(1e-9, max_steps=8)
    u, adjoint = pulled(matrices, g, Implicit((GMRES(), Picard()), stop))
    alone, its = pulled(matrices, g, Implicit(GMRES(), stop))
    _, worse = pulled(matrices, g, Implicit(Picard(), stop))
    assert worse.residual > its.residual
    assert torch.equal(u, alone)
    assert adjoint.residual == its.residual
    assert adjoint.steps.tolist() == [16]
    assert adjoint.method.tolist() == [AdjointSolver.GMRES]


def test_normal_equations_take_over_where_gmres_gets_nowhere() -> None:
    matrices, g = cycle(40)[None], torch.eye(40, dtype=F64)[:1]
    u, adjoint = pulled(matrices, g, Implicit((GMRES(restart=5), NormalCG()), STOP))
    assert adjoint.method.tolist() == [AdjointSolver.NORMAL_CG]
    torch.testing.assert_close(u, dense(matrices, g))


class _OnceOnly(torch.autograd.Function):
    """A product whose derivative has none: fused attention is like that on some devices."""

    @staticmethod
    def forward(ctx, z: Tensor, matrix: Tensor) -> Tensor:
        ctx.matrix = matrix
        return z @ matrix.T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor):
        return g @ ctx.matrix, None


def test_a_step_that_cannot_be_differentiated_twice_keeps_what_gmres_found() -> None:
    matrix, shift = cycle(40), torch.zeros(2, 40, dtype=F64, requires_grad=True)

    def solve(method):
        step = lambda z, c: _OnceOnly.apply(z, matrix) + c  # noqa: E731
        gradient = Implicit(method, STOP)
        return hs.solve(step, torch.zeros(2, 40, dtype=F64), shift, stop=Stop(0.5, 1e-30), gradient=gradient)

    g = torch.eye(40, dtype=F64)[:2]
    solution = solve((GMRES(restart=5), NormalCG()))
    with pytest.warns(ConvergenceWarning, match=r"tried GMRES, then NormalCG.*NormalCG, .* could not be tried"):
        (found,) = torch.autograd.grad(solution.state, shift, g)
    with pytest.warns(ConvergenceWarning):
        (wanted,) = torch.autograd.grad(solve(GMRES(restart=5)).state, shift, g)
    assert torch.equal(found, wanted)
    assert solution.adjoint is not None
    assert solution.adjoint.method.tolist() == [AdjointSolver.GMRES] * 2
    assert "could not be tried" in repr(solution.adjoint)
    with pytest.raises(RuntimeError):  # asked for alone there is nothing to fall back to
        torch.autograd.grad(solve(NormalCG()).state, shift, g)


def test_what_happens_to_rows_that_no_method_solves_is_as_it_was_asked() -> None:
    matrices, g = mixed()
    good = [0, 1, 2, 3]
    with pytest.warns(ConvergenceWarning, match=r"left 1 of 5 rows .*Anderson, then GMRES, then NormalCG.*singular"):
        u, _ = pulled(matrices, g, Implicit(stop=STOP))
    assert torch.isfinite(u).all()
    with pytest.raises(ConvergenceError, match="1 of 5 rows"):
        pulled(matrices, g, Implicit(stop=STOP, on_failure="raise"))
    for mode, wanted in (("mask", torch.zeros_like(g[4])), ("fallback", g[4])):
        with pytest.warns(ConvergenceWarning):
            found, _ = pulled(matrices, g, Implicit(stop=STOP, on_failure=mode))
        assert torch.equal(found[4], wanted)
        torch.testing.assert_close(found[good], u[good])


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one(rows: int) -> None:
    weight = torch.tensor(-3.0, dtype=F64, requires_grad=True)
    solution = hs.solve(lambda z, _: weight * z, torch.zeros(rows, 2, dtype=F64), stop=Stop(0.5, 1e-30))
    solution.state.sum().backward()
    if rows:
        assert solution.adjoint is not None
        assert solution.adjoint.method.tolist() == [AdjointSolver.GMRES]


@pytest.mark.parametrize("method", [(), [GMRES()], (GMRES,), (GMRES(), "CG"), hs.Broyden()])
def test_methods_that_are_none_are_refused(method) -> None:
    with pytest.raises(ValueError, match="method must be"):
        Implicit(method)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("gradient", [Implicit(), Implicit(GMRES())], ids=str)
def test_where_nothing_is_left_of_the_system_no_solution_is_claimed(gradient, dtype) -> None:
    # J = I: every state is a fixed point, and no gradient exists.
    weight = torch.ones(8, dtype=dtype, requires_grad=True)
    solution = hs.solve(lambda z: z + (weight - 1), torch.zeros(8, dtype=dtype), batched=False, gradient=gradient)
    with pytest.warns(ConvergenceWarning, match="singular"):
        solution.state.sum().backward()
    assert solution.adjoint is not None
    assert solution.adjoint.status == Status.STALLED
    assert weight.grad is not None
    assert weight.grad.abs().max() < 100
