"""The steps of inner optimisers, against closed forms and dense solves."""

import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.bilevel import (
    Ball,
    Box,
    GradientDescent,
    InnerStep,
    KnownGradient,
    Momentum,
    Newton,
    NonlinearCG,
    ProximalGradient,
    SoftThreshold,
    row_gradients,
)

F64 = torch.float64


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def quadratics(rows: int = 3, n: int = 4, condition: float = 10.0) -> tuple[Tensor, Tensor]:
    """Hessians with eigenvalues from 1 / condition to 1, and minima."""
    q = torch.linalg.qr(random(0, rows, n, n)).Q
    spectrum = torch.logspace(-torch.log10(torch.tensor(condition)), 0, n, dtype=F64)
    return q @ torch.diag(spectrum) @ q.mT, random(1, rows, n)


def quadratic(p: Tensor, context: tuple[Tensor, Tensor]) -> Tensor:
    hessian, centre = context
    return 0.5 * torch.einsum("bi,bij,bj->b", p - centre, hessian, p - centre)


def bowl(p: Tensor, centre: Tensor) -> Tensor:
    """Convex, not quadratic, with its minimum at `centre`."""
    return ((p - centre).exp() - (p - centre)).sum(1)


def run(inner: InnerStep, objective, start, context, **options):
    """The solution, and the parameters in it."""
    options.setdefault("method", hs.Picard())
    found = hs.solve(lambda s, c: inner.step(objective, s, c), inner.start(start), context, **options)
    return found, inner.parameters(found.state)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_momentum_is_its_recursion(nesterov: bool, steps: int) -> None:
    hessian, centre = quadratics()
    inner = Momentum(0.4, 0.7, nesterov)
    _, found = run(inner, quadratic, torch.zeros_like(centre), (hessian, centre), stop=hs.Stop(rtol=0, max_steps=steps))
    p = v = torch.zeros_like(centre)
    for _ in range(steps):  # in velocities, as textbooks have it
        at = p + 0.7 * v if nesterov else p
        v = 0.7 * v - 0.4 * torch.einsum("bij,bj->bi", hessian, at - centre)
        p = p + v
    torch.testing.assert_close(found, p)


def test_momentum_needs_fewer_steps_and_ends_at_the_minimum() -> None:
    hessian, centre = quadratics(condition=30.0)
    stop = hs.Stop(rtol=1e-8, max_steps=3000)
    plain, _ = run(GradientDescent(1.0), quadratic, torch.zeros_like(centre), (hessian, centre), stop=stop)
    for nesterov in (False, True):
        fast, found = run(Momentum(1.0, 0.6, nesterov), quadratic, 0 * centre, (hessian, centre), stop=stop)
        torch.testing.assert_close(found, centre, rtol=1e-6, atol=1e-6)
        assert bool((fast.steps * 2 < plain.steps).all())
        assert bool(fast.converged.all())


def test_newton_solves_a_quadratic_in_one_step() -> None:
    hessian, centre = quadratics(condition=1e4)
    _, found = run(Newton(), quadratic, 5 * random(2, 3, 4), (hessian, centre), stop=hs.Stop(rtol=0, max_steps=1))
    torch.testing.assert_close(found, centre, rtol=1e-9, atol=1e-9)


def test_a_damped_newton_step_is_the_dense_solve_over_a_nest() -> None:
    hessian, centre = quadratics()
    start = {"a": random(3, 3, 1, 2), "b": random(4, 3, 2)}

    def objective(p, context):
        return quadratic(torch.cat([p["a"].flatten(1), p["b"]], 1), context)

    _, found = run(Newton(0.3, 0.6), objective, start, (hessian, centre), stop=hs.Stop(rtol=0, max_steps=1))
    flat = torch.cat([start["a"].flatten(1), start["b"]], 1)
    gradient = torch.einsum("bij,bj->bi", hessian, flat - centre)
    wanted = flat - 0.6 * torch.linalg.solve(hessian + 0.3 * torch.eye(4, dtype=F64), gradient)
    torch.testing.assert_close(torch.cat([found["a"].flatten(1), found["b"]], 1), wanted)


def test_newton_converges_quadratically_and_rows_do_not_mix() -> None:
    centre = random(5, 3, 4)
    found, p = run(Newton(), bowl, centre + 1, centre, stop=hs.Stop(rtol=1e-10), trace=True)
    torch.testing.assert_close(p, centre, rtol=1e-12, atol=1e-12)
    assert int(found.steps.max()) <= 8
    alone, q = run(Newton(), bowl, centre[1:2] + 1, centre[1:2], stop=hs.Stop(rtol=1e-10))
    torch.testing.assert_close(q[0], p[1], rtol=1e-14, atol=0)
    assert alone.steps[0] == found.steps[1]


@pytest.mark.parametrize("lowest", [0.0, 1e-18, -0.5])
def test_a_hessian_that_is_not_positive_definite_ends_its_row_and_damping_helps(lowest: float) -> None:
    hessian = torch.diag_embed(torch.tensor([[1.0, lowest], [1.0, 0.5]], dtype=F64))
    centre, start = random(6, 2, 2), torch.zeros(2, 2, dtype=F64)
    found, p = run(Newton(), quadratic, start, (hessian, centre))
    assert found.status.tolist() == [hs.Status.DIVERGED, hs.Status.CONVERGED]
    assert torch.equal(p[0], start[0])
    torch.testing.assert_close(p[1], centre[1])
    if lowest >= 0:
        found, p = run(Newton(damping=0.1), quadratic, start, (hessian, centre), stop=hs.Stop(1e-8))
        assert bool(found.converged.all())
        assert p[0, 0].item() == pytest.approx(centre[0, 0].item(), rel=1e-6)


def test_soft_thresholding_solves_the_lasso() -> None:
    # Against its optimality conditions: g = -w sign(p) where p is not 0, |g| <= w where it is.
    hessian, centre = quadratics(rows=5, n=6)
    weight = 0.15
    inner = ProximalGradient(1.0, SoftThreshold(weight))
    found, p = run(inner, quadratic, torch.zeros_like(centre), (hessian, centre), stop=hs.Stop(1e-13, 0.0, 5000))
    assert bool(found.converged.all())
    gradient = torch.einsum("bij,bj->bi", hessian, p - centre)
    active = p != 0
    assert 5 < int(active.sum()) < 25
    torch.testing.assert_close(gradient[active], -weight * p.sign()[active], rtol=1e-8, atol=1e-10)
    assert bool((gradient[~active].abs() <= weight * (1 + 1e-9)).all())


def test_the_derivative_of_the_lasso_with_respect_to_its_weight() -> None:
    # On the active set, dp/dw = -H_AA^-1 sign(p_A), exactly; elsewhere 0. One weight a row, from the context.
    hessian, centre = quadratics(rows=3, n=6)
    weight = torch.tensor([0.05, 0.15, 0.3], dtype=F64, requires_grad=True)
    inner = ProximalGradient(1.0, SoftThreshold(lambda c: c[2]))
    g = random(7, 3, 6)
    _, p = run(
        inner, lambda p, c: quadratic(p, c[:2]), torch.zeros_like(centre), (hessian, centre, weight),
        stop=hs.Stop(1e-13, 0.0, 5000), gradient=hs.Implicit(hs.GMRES(), hs.Stop(1e-13)),
    )  # fmt: skip
    p.backward(g)
    assert weight.grad is not None
    for row in range(3):
        on = (p[row] != 0).nonzero().squeeze(1)
        moved = -torch.linalg.solve(hessian[row][on][:, on], p[row, on].detach().sign())
        assert weight.grad[row].item() == pytest.approx(float(g[row, on] @ moved), rel=1e-8)


def test_projections_find_the_nearest_feasible_minimum() -> None:
    centre = torch.tensor([[3.0, 4.0, 0.0], [0.1, 0.2, 0.2]], dtype=F64)
    sphere = lambda p, c: 0.5 * (p - c).square().sum(1)  # noqa: E731
    _, p = run(ProximalGradient(0.7, Ball(1.0)), sphere, torch.zeros_like(centre), centre, stop=hs.Stop(1e-12))
    torch.testing.assert_close(p, torch.stack([centre[0] / 5, centre[1]]))
    _, p = run(ProximalGradient(0.7, Box(-1.0, 0.15)), sphere, torch.zeros_like(centre), centre, stop=hs.Stop(1e-12))
    torch.testing.assert_close(p, centre.clamp(-1, 0.15))
    nest = {"a": torch.tensor([[3.0]]), "b": torch.tensor([[0.0, 4.0]])}
    assert Ball(5.0)(nest, 1.0, None)["a"].item() == 3.0
    assert Ball(1.0)(nest, 1.0, None)["b"].tolist() == [[0.0, pytest.approx(0.8)]]


def test_any_function_is_a_proximal_operator() -> None:
    ridge = lambda p, step_size, context: p / (1 + step_size * 2.0)  # noqa: E731 - of |p|^2
    centre = random(8, 2, 3)
    _, p = run(
        ProximalGradient(0.3, ridge), lambda p, c: 0.5 * (p - c).square().sum(1), 0 * centre, centre,
        stop=hs.Stop(1e-12),
    )  # fmt: skip
    torch.testing.assert_close(p, centre / 3)


def test_nonlinear_cg_is_linear_cg_on_a_quadratic() -> None:
    hessian, centre = quadratics(rows=2, n=6, condition=1e3)
    inner = NonlinearCG()
    x = torch.zeros_like(centre)
    r = torch.einsum("bij,bj->bi", hessian, centre - x)
    d = r
    for steps in range(1, 6):
        q = torch.einsum("bij,bj->bi", hessian, d)
        length = (r * r).sum(1) / (d * q).sum(1)
        x, former, r = x + length[:, None] * d, r, r - length[:, None] * q
        d = r + ((r * r).sum(1) / (former * former).sum(1))[:, None] * d
        _, p = run(inner, quadratic, 0 * centre, (hessian, centre), stop=hs.Stop(rtol=0, max_steps=steps))
        torch.testing.assert_close(p, x, rtol=1e-7, atol=1e-9)
    found, p = run(inner, quadratic, 0 * centre, (hessian, centre), stop=hs.Stop(1e-8))
    torch.testing.assert_close(p, centre, rtol=1e-7, atol=1e-7)
    assert int(found.steps.max()) <= 9


def test_nonlinear_cg_on_losses_that_are_not_quadratic_nor_convex() -> None:
    def rosenbrock(p: Tensor, context: None) -> Tensor:
        return (1 - p[:, 0]) ** 2 + 100 * (p[:, 1] - p[:, 0] ** 2) ** 2

    start = torch.tensor([[-1.2, 1.0], [2.0, 2.0], [0.0, 1.5]], dtype=F64)  # the last where the Hessian is indefinite
    found, p = run(NonlinearCG(), rosenbrock, start, None, stop=hs.Stop(1e-9, 0.0, 3000))
    assert bool(found.converged.all())
    torch.testing.assert_close(p, torch.ones(3, 2, dtype=F64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("inner", "adjoint"),
    [
        (GradientDescent(0.5), hs.CG()),
        (GradientDescent(), hs.CG()),
        (NonlinearCG(), hs.CG()),
        (Newton(), hs.CG()),
        (Newton(0.2), hs.CG()),
        (Momentum(0.5, 0.3), hs.GMRES()),
        (Momentum(0.5, 0.3, nesterov=True), hs.NormalCG()),
        (ProximalGradient(0.5, Box(-100.0, 100.0)), hs.CG()),
    ],
    ids=str,
)
def test_every_step_gives_the_derivative_of_the_minimum(inner: InnerStep, adjoint) -> None:
    # d centre-of-the-loss / d centre is 1: of a loss with curvature, whichever optimiser has found its minimum.
    centre = random(9, 3, 4).requires_grad_()
    g = random(10, 3, 4)
    gradient = hs.Implicit(adjoint, hs.Stop(1e-12), on_failure="raise")
    # Where the search looks at losses, moves below their rounding are noise.
    rtol = 1e-7 if inner == GradientDescent() else 1e-12
    _, p = run(inner, bowl, torch.zeros(3, 4, dtype=F64), centre, stop=hs.Stop(rtol, 0.0, 3000), gradient=gradient)
    p.backward(g)
    assert centre.grad is not None
    torch.testing.assert_close(centre.grad, g, rtol=max(1e-9, 30 * rtol), atol=0)


def test_momentum_is_no_system_for_cg_and_says_so() -> None:
    hessian, centre = quadratics()
    centre = centre.requires_grad_()
    gradient = hs.Implicit(hs.CG(), hs.Stop(rtol=0, max_steps=5), on_failure="raise")
    _, p = run(Momentum(0.5, 0.6), quadratic, torch.zeros(3, 4, dtype=F64), (hessian, centre), gradient=gradient)
    with pytest.raises(hs.errors.ConvergenceError, match=r"3 rows: .* not symmetric, as CG needs it: use GMRES"):
        p.sum().backward()


def test_a_known_gradient_is_used() -> None:
    asked = []

    def written(p: Tensor, centre: Tensor) -> Tensor:
        asked.append(len(p))
        return (p - centre).exp() - 1

    centre = random(11, 2, 3)
    objective = KnownGradient(bowl, written)
    torch.testing.assert_close(row_gradients(objective, 0 * centre, centre), row_gradients(bowl, 0 * centre, centre))
    _, p = run(GradientDescent(0.5), objective, 0 * centre, centre, stop=hs.Stop(1e-10))
    torch.testing.assert_close(p, centre, rtol=1e-8, atol=1e-8)
    assert len(asked) > 5


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Momentum(0.0),
        lambda: Momentum(0.1, 1.0),
        lambda: Momentum(0.1, nesterov=1),  # type: ignore[arg-type]
        lambda: Newton(-1.0),
        lambda: Newton(step_size=1.5),
        lambda: ProximalGradient(0.1, "l1"),  # type: ignore[arg-type]
        lambda: ProximalGradient(-0.1, Box()),
        lambda: SoftThreshold(-1.0),
        lambda: SoftThreshold(torch.tensor([1.0, -1.0])),
        lambda: SoftThreshold(torch.tensor([1.0, float("nan")])),
        lambda: SoftThreshold("much"),  # type: ignore[arg-type]
        lambda: Ball(0.0),
        lambda: Box(1.0, 1.0),
        lambda: NonlinearCG(0),
    ],
)
def test_impossible_settings_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="must be"):
        wrong()


def test_the_projection_of_what_is_far_outside_a_ball() -> None:
    far = torch.tensor([[1e30, 1.0], [3e30, 4e30]])
    assert torch.allclose(Ball(1.0)(far, 1.0, None), torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    point = torch.tensor([[3000.0, 4000.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: Ball(1.0)(p, 1.0, None), (point,))
