"""Hypergradients against the exact ones of quadratics, and what is said where there is none."""

import warnings

import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.bilevel import Box, GradientDescent, Momentum, Newton, NonlinearCG, ProximalGradient, hypergradient
from homeostat.errors import ContractError, ConvergenceError, ConvergenceWarning

F64 = torch.float64
TIGHT = hs.Stop(1e-15, 1e-15, 20000)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def matrix(n: int = 6) -> Tensor:
    q = torch.linalg.qr(random(0, n, n)).Q
    return q @ torch.diag(torch.linspace(0.1, 1.0, n, dtype=F64)) @ q.T


A, B, C = matrix(), random(1, 6, 3), random(2, 6)
TARGET = random(3, 6)


def inner(w: Tensor, h: dict[str, Tensor]) -> Tensor:
    """Its minimum is (A + diag(exp h.log))^-1 (B h.shift + C)."""
    penalty = h["log"].exp()
    return 0.5 * w @ A @ w + 0.5 * (penalty * w.square()).sum() - w @ (B @ h["shift"] + C)


def outer(w: Tensor, h: dict[str, Tensor]) -> Tensor:
    return 0.5 * (w - TARGET).square().sum() + 0.1 * h["shift"].square().sum()


def exact(h: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Value and gradient, by differentiating the dense solve."""
    h = {name: x.detach().requires_grad_() for name, x in h.items()}
    w = torch.linalg.solve(A + torch.diag(h["log"].exp()), B @ h["shift"] + C)
    value = outer(w, h)
    gradients = torch.autograd.grad(value, list(h.values()))
    return value.detach(), dict(zip(h, gradients, strict=True))


def hyperparameters() -> dict[str, Tensor]:
    return {"shift": random(4, 3), "log": 0.3 * random(5, 6) - 1}


def assert_exact(found, h: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    value, wanted = exact(h)
    torch.testing.assert_close(found.value, value, rtol=tolerance, atol=0)
    for name, exactly in wanted.items():
        error = (found.gradient[name] - exactly).norm() / exactly.norm()
        assert error < tolerance, f"{name}: {float(error):.1e}"


IMPLICIT = [
    hs.Implicit(method, TIGHT, on_failure="raise")
    for method in (hs.CG(), hs.NormalCG(), hs.GMRES(), hs.Picard(), hs.Anderson())
]


@pytest.mark.parametrize("gradient", [*IMPLICIT, hs.Neumann(250), hs.Unrolled()], ids=str)
def test_the_hypergradient_of_a_quadratic_is_the_exact_one(gradient) -> None:
    h = hyperparameters()
    stop = hs.Stop(rtol=0, max_steps=250) if gradient == hs.Unrolled() else TIGHT
    found = hypergradient(
        inner, outer, h, torch.zeros(6, dtype=F64), step=GradientDescent(0.7), stop=stop, gradient=gradient
    )
    assert_exact(found, h)
    assert found.parameters.shape == (6,)
    if isinstance(gradient, hs.Implicit):
        assert found.adjoint is not None
        assert bool(found.converged.all())
        assert float(found.adjoint.residual) <= 1e-14


@pytest.mark.parametrize(
    ("step", "gradient"),
    [
        (Momentum(0.5, 0.6), IMPLICIT[2]),
        (Momentum(0.5, 0.6, nesterov=True), IMPLICIT[1]),
        (Newton(), IMPLICIT[0]),
        (Newton(), hs.OneStep()),  # at a minimum, Newton's method has no Jacobian
        (NonlinearCG(), IMPLICIT[0]),
        (ProximalGradient(0.7, Box(-100.0, 100.0)), IMPLICIT[0]),
    ],
    ids=str,
)
def test_whichever_optimiser_has_found_the_solution(step, gradient) -> None:
    h = hyperparameters()
    stop = hs.Stop(1e-13, 1e-13, 5000)
    found = hypergradient(inner, outer, h, torch.zeros(6, dtype=F64), step=step, stop=stop, gradient=gradient)
    assert_exact(found, h)


def test_truncated_modes_are_what_they_say() -> None:
    # Of a quadratic, the last K steps give the sum of K terms of the Neumann series, in their own matrices.
    h = hyperparameters()
    step = GradientDescent(0.7)
    start = torch.zeros(6, dtype=F64)
    found = {
        k: hypergradient(inner, outer, h, start, step=step, stop=TIGHT, gradient=hs.Neumann(k)).gradient["shift"]
        for k in (1, 4)
    }
    hessian = A + torch.diag(h["log"].exp())
    w = torch.linalg.solve(hessian, B @ h["shift"] + C)
    power = torch.eye(6, dtype=F64) - 0.7 * hessian
    for k, gradient in found.items():
        u = sum(torch.linalg.matrix_power(power, i) @ (w - TARGET) for i in range(k))
        torch.testing.assert_close(gradient, 0.7 * B.T @ u + 0.2 * h["shift"], rtol=1e-10, atol=1e-12)
    stop = hs.Stop(rtol=0, max_steps=200)
    for k, gradient in ((4, hs.Unrolled(last=4)), (1, hs.OneStep())):
        last = hypergradient(inner, outer, h, start, step=step, stop=stop, gradient=gradient)
        torch.testing.assert_close(last.gradient["shift"], found[k], rtol=1e-10, atol=1e-12)
        assert last.adjoint is None
        assert not bool(last.converged.any())  # not the gradient of the solution, and it does not claim to be


def test_few_steps_of_cg_are_taken_without_a_warning_and_are_no_convergence() -> None:
    h = hyperparameters()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = hypergradient(
            inner, outer, h, torch.zeros(6, dtype=F64), step=GradientDescent(0.7), stop=hs.Stop(rtol=0, max_steps=16),
            gradient=hs.Implicit(hs.CG(), hs.Stop(rtol=0, max_steps=2), on_failure="raise"),
        )  # fmt: skip
    assert found.adjoint is not None
    assert found.adjoint.steps.tolist() == [2]
    assert float(found.adjoint.residual) > 1e-3
    assert not bool(found.converged.any())
    assert "0 of 1 problems converged" in repr(found)


def test_problems_in_a_batch_are_a_mean_of_their_own() -> None:
    h = hyperparameters()
    shifts = random(6, 5, 6)

    def one(w: Tensor, h: dict[str, Tensor], shift: Tensor) -> Tensor:
        return inner(w - shift, h)

    def value(w: Tensor, h: dict[str, Tensor], shift: Tensor) -> Tensor:
        return outer(w + shift, h)

    options = {"step": GradientDescent(0.7), "stop": TIGHT, "gradient": IMPLICIT[0]}
    together = hypergradient(one, value, h, torch.zeros(5, 6, dtype=F64), shifts, **options)
    alone = [
        hypergradient(
            lambda w, h, s=s: one(w, h, s), lambda w, h, s=s: value(w, h, s), h, torch.zeros(6, dtype=F64), **options
        )
        for s in shifts
    ]
    torch.testing.assert_close(together.losses, torch.stack([x.value for x in alone]), rtol=1e-12, atol=0)
    torch.testing.assert_close(together.value, together.losses.mean())
    for name in h:
        mean = torch.stack([x.gradient[name] for x in alone]).mean(0)
        torch.testing.assert_close(together.gradient[name], mean, rtol=1e-10, atol=1e-13)
    assert together.parameters.shape == (5, 6)


def test_finite_differences_of_a_loss_that_is_not_quadratic() -> None:
    data, labels = random(7, 40, 4), (random(8, 40) > 0).double()

    def logistic(w: Tensor, h: Tensor) -> Tensor:
        z = data @ w
        return (torch.nn.functional.softplus(z) - labels * z).mean() + 0.5 * (h * w.square()).sum()

    def valid(w: Tensor, h: Tensor) -> Tensor:
        return (w - 1).square().sum()

    h = torch.full((4,), 0.3, dtype=F64)
    options = {"step": GradientDescent(1.0), "stop": TIGHT, "gradient": IMPLICIT[0]}
    found = hypergradient(logistic, valid, h, torch.zeros(4, dtype=F64), **options)
    for i in range(4):
        e = 1e-5 * torch.eye(4, dtype=F64)[i]
        up, down = (
            hypergradient(logistic, valid, h + s * e, torch.zeros(4, dtype=F64), **options).value for s in (1, -1)
        )
        assert float(found.gradient[i]) == pytest.approx(float(up - down) / 2e-5, rel=1e-6)


def test_hyperparameters_that_nothing_depends_on_have_a_gradient_of_zero() -> None:
    h = (torch.ones(2, dtype=F64), torch.ones(3, dtype=F64))
    found = hypergradient(
        lambda w, h: (w - h[0]).square().sum(), lambda w, h: w.sum(), h, torch.zeros(2, dtype=F64),
        step=GradientDescent(0.4), stop=TIGHT, gradient=IMPLICIT[0],
    )  # fmt: skip
    torch.testing.assert_close(found.gradient[0], torch.ones(2, dtype=F64))
    assert torch.equal(found.gradient[1], torch.zeros(3, dtype=F64))


def test_nothing_of_the_callers_is_touched() -> None:
    h = {name: x.requires_grad_() for name, x in hyperparameters().items()}
    found = hypergradient(inner, outer, h, torch.zeros(6, dtype=F64), step=GradientDescent(0.7))
    assert all(x.grad is None for x in h.values())
    tensors = [found.value, found.parameters, found.losses, found.solution.state, *found.gradient.values()]
    assert not any(x.requires_grad for x in tensors)
    with torch.no_grad():
        again = hypergradient(inner, outer, h, torch.zeros(6, dtype=F64), step=GradientDescent(0.7))
    assert torch.equal(again.gradient["log"], found.gradient["log"])


# Where there is no hypergradient.


@pytest.mark.parametrize("gradient", [hs.Implicit(hs.CG()), hs.Unrolled(last=3), hs.OneStep(), hs.Neumann()], ids=str)
@pytest.mark.parametrize("stop", [hs.Stop(), hs.Stop(rtol=0, max_steps=150)], ids=str)
def test_an_inner_problem_that_diverges_has_a_nan_for_a_gradient_and_says_so(gradient, stop) -> None:
    h = hyperparameters()
    with pytest.warns(ConvergenceWarning, match="diverged|DIVERGED"):
        found = hypergradient(
            inner, outer, h, torch.zeros(6, dtype=F64), step=GradientDescent(12.0), stop=stop, gradient=gradient
        )
    assert found.solution.status.tolist() == [hs.Status.DIVERGED]
    assert bool(found.value.isnan())
    assert all(bool(g.isnan().all()) for g in found.gradient.values())
    assert not bool(found.converged)
    if isinstance(gradient, hs.Implicit):
        with pytest.raises(ConvergenceError, match="1 DIVERGED"):
            hypergradient(
                inner, outer, h, torch.zeros(6, dtype=F64), step=GradientDescent(12.0), stop=stop,
                gradient=hs.Implicit(hs.CG(), on_failure="raise"),
            )  # fmt: skip


@pytest.mark.parametrize("where", ["inner", "outer"])
def test_a_loss_that_is_nan_in_one_problem_leaves_the_others_their_gradient(where: str) -> None:
    h = torch.tensor([0.5, 0.5], dtype=F64)
    signs = torch.tensor([1.0, -1.0, 2.0], dtype=F64)

    def one(w: Tensor, h: Tensor, sign: Tensor) -> Tensor:
        bad = sign.log() if where == "inner" else 0.0
        return 0.5 * (w - sign * h).square().sum() + bad * w.sum()

    def value(w: Tensor, h: Tensor, sign: Tensor) -> Tensor:
        return (w.sum() * sign).log() if where == "outer" else w.square().sum()

    options = {"step": GradientDescent(0.5), "stop": hs.Stop(1e-13), "gradient": hs.Implicit(hs.CG(), hs.Stop(1e-13))}
    if where == "outer":
        signs = torch.tensor([1.0, 1e-9, 2.0], dtype=F64)
        value_of = lambda w, h, s: (w.sum() - 0.1).log()  # noqa: E731
    else:
        value_of = value
    with pytest.warns(ConvergenceWarning, match=r"1 of 3 (rows|problems)"):
        found = hypergradient(one, value_of, h, torch.zeros(3, 2, dtype=F64), signs, **options)
    good = [0, 2]
    assert bool(found.losses[1].isnan())
    alone = hypergradient(one, value_of, h, torch.zeros(2, 2, dtype=F64), signs[good], **options)
    torch.testing.assert_close(found.value, alone.value, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.gradient, alone.gradient, rtol=1e-12, atol=0)
    assert bool(torch.isfinite(found.gradient).all())
    assert found.converged.tolist() == [True, False, True]


def test_an_outer_loss_that_is_not_finite_raises_where_asked() -> None:
    options = {"step": GradientDescent(0.5), "gradient": hs.Implicit(hs.CG(), on_failure="raise")}
    h = torch.ones(2, dtype=F64)
    args = (lambda w, h: (w - h).square().sum() / 2, lambda w, h: (-w).log().sum(), h, 0 * h)
    with pytest.raises(ConvergenceError, match="outer loss of 1 of 1 problems is not finite"):
        hypergradient(*args, **options)
    with pytest.warns(ConvergenceWarning, match="outer loss of 1 of 1 problems is not finite"):
        found = hypergradient(*args, step=GradientDescent(0.5))
    assert bool(found.gradient.isnan().all())


@pytest.mark.parametrize("method", [hs.CG(), hs.GMRES(), hs.NormalCG()])
def test_a_singular_inner_hessian_is_named(method) -> None:
    # The second parameter is free: the outer loss pulls at it, and no solution says where it is.
    def one(w: Tensor, h: Tensor) -> Tensor:
        return 0.5 * (w[0] - h[0]).square()

    options = {"step": GradientDescent(0.5), "stop": hs.Stop(1e-12)}
    h, start = torch.ones(1, dtype=F64), torch.ones(2, dtype=F64)
    with pytest.warns(ConvergenceWarning, match="singular to rounding"):
        found = hypergradient(
            one, lambda w, h: w.sum(), h, start, gradient=hs.Implicit(method, hs.Stop(1e-10)), **options
        )
    assert not bool(found.converged)
    assert "singular to rounding" in repr(found)
    gradient = hs.Implicit(method, hs.Stop(1e-10), on_failure="raise")
    with pytest.raises(ConvergenceError, match="singular to rounding"):
        hypergradient(one, lambda w, h: w.sum(), h, start, gradient=gradient, **options)


def test_a_saddle_is_named() -> None:
    # Newton without a line search would go there; gradient descent began there.
    def one(w: Tensor, h: Tensor) -> Tensor:
        return 0.5 * (w[0] - h[0]).square() - 0.5 * (w[1] - h[1]).square()

    h = torch.tensor([1.0, 2.0], dtype=F64)
    with pytest.warns(ConvergenceWarning, match="indefinite"):
        found = hypergradient(one, lambda w, h: w.sum(), h, h.clone(), step=GradientDescent(0.5))
    assert not bool(found.converged)


def test_momentum_with_cg_is_named() -> None:
    with pytest.raises(ConvergenceError, match="not symmetric, as CG needs it: use GMRES"):
        hypergradient(
            inner, outer, hyperparameters(), torch.zeros(6, dtype=F64), step=Momentum(0.5, 0.6),
            gradient=hs.Implicit(hs.CG(), on_failure="raise"),
        )  # fmt: skip


@pytest.mark.parametrize("h", [torch.ones(2, dtype=torch.int64), 1.0, {}, [torch.ones(2), "a"]])
def test_hyperparameters_must_be_floating(h) -> None:
    with pytest.raises(ContractError, match="hyperparameters"):
        hypergradient(inner, outer, h, torch.zeros(6), step=GradientDescent(0.5))


def test_it_can_be_read() -> None:
    found = hypergradient(
        inner, outer, hyperparameters(), torch.zeros(6, dtype=F64), step=GradientDescent(0.7), stop=hs.Stop(1e-9)
    )
    text = repr(found)
    assert "gradient of 9 hyperparameters" in text
    assert "1 of 1 problems converged, inner and adjoint" in text
    assert "Adjoint" in text


def test_from_the_minimum_itself_the_gradient_is_the_same() -> None:
    h = torch.ones(2, dtype=F64)

    def loss(w: Tensor, h: Tensor) -> Tensor:
        return 0.5 * (w - 1).square().sum() + 0.5 * (h * w.square()).sum()

    half = torch.full((2,), 0.5, dtype=F64)
    found = hypergradient(loss, lambda w, h: w.sum(), h, half, step=NonlinearCG(), stop=hs.Stop(rtol=1e-10))
    torch.testing.assert_close(found.gradient, torch.full((2,), -0.25, dtype=F64))
    assert bool(found.converged)


def test_no_problems_have_no_gradient() -> None:
    none, h = torch.zeros(0, 2, dtype=F64), torch.ones(2, dtype=F64)
    found = hypergradient(
        lambda w, h, c: (w - c).square().sum() + (h * w).square().sum(),
        lambda w, h, c: w.sum(),
        h,
        none,
        none,
        step=GradientDescent(0.1),
    )
    assert len(found.losses) == 0
    assert found.gradient.isnan().all()


def test_what_cannot_have_a_gradient_is_refused() -> None:
    h = torch.ones(2, dtype=F64)

    def take(start) -> None:
        hypergradient(lambda w, h: (w - h).square().sum(), lambda w, h: w.sum(), h, start, step=GradientDescent(0.1))

    with pytest.raises(ContractError, match=r"parameters must be tensors, not 0\.0"):
        take(0.0)
    with torch.inference_mode(), pytest.raises(ContractError, match="inference_mode"):
        take(torch.zeros(2, dtype=F64))
