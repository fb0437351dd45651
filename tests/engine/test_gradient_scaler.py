"""Training in float16 with a scaler of losses: every gradient lets it see an overflow, and it finds its scale."""

import warnings
from functools import cache

import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat import Implicit, Stop
from homeostat.engine import Gradient
from homeostat.errors import ConvergenceError, ConvergenceWarning

HALF = torch.float16
STEPS = 40
STOP = Stop(rtol=0, max_steps=20)
ADJOINTS = [Implicit(), *(Implicit(m) for m in (hs.Picard(), hs.Anderson(), hs.GMRES(), hs.NormalCG(), hs.CG()))]
ADJOINTS += [Implicit(on_failure=mode) for mode in ("mask", "fallback")]
OTHERS = [hs.Neumann(), hs.OneStep(), hs.Phantom(), hs.Shine(), hs.Unrolled()]


def cell() -> tuple[Tensor, Tensor, Tensor]:
    """Symmetric weights, as `CG` needs them; a batch; what its fixed point is drawn to."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8, generator=draw)
    weight = 0.04 * (weight + weight.T)
    return weight.requires_grad_(), torch.randn(16, 8, generator=draw), torch.randn(16, 8, generator=draw)


@cache
def train(gradient: Gradient | None, dtype: torch.dtype, scale: float) -> tuple[list[float], Tensor, int]:
    """Scales step by step, the weights in the end, and how many steps changed them. None: a plain loop."""
    weight, inputs, target = cell()
    optimiser = torch.optim.SGD([weight], lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    scales, moved = [], 0
    for _ in range(STEPS):
        before = weight.detach().clone()
        with torch.autocast("cpu", dtype=HALF):

            def step(z: Tensor, x: Tensor) -> Tensor:
                return (z @ weight + x).to(dtype)

            start = torch.zeros(16, 8, dtype=dtype)
            if gradient is None:
                z = start
                for _ in range(STOP.max_steps):
                    z = step(z, inputs)
            else:
                method = hs.Broyden() if isinstance(gradient, hs.Shine) else hs.Picard()
                z = hs.solve(step, start, inputs, method=method, stop=STOP, gradient=gradient).state
        loss = (z.float() - target).square().mean()
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        scales.append(scaler.get_scale())
        moved += not torch.equal(before, weight.detach())
    return scales, weight.detach(), moved


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("gradient", [*ADJOINTS, *OTHERS], ids=str)
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_the_scaler_sees_an_overflow_and_training_goes_on(gradient, dtype: torch.dtype) -> None:
    scale = 2.0**30
    plain_scales, plain, plain_moved = train(None, dtype, scale)
    scales, weight, moved = train(gradient, dtype, scale)
    assert plain_scales[-1] < scale  # the case is one: the plain loop overflows, too
    assert scales[-1] < scale
    assert abs(moved - plain_moved) <= 6  # a factor of 2 in the scale a step
    begin = cell()[0].detach()
    if isinstance(gradient, Implicit | hs.Unrolled):
        # The same training to half precision and the few steps that it began earlier or later.
        assert (weight - plain).norm() < 0.15 * (plain - begin).norm()
    else:
        assert torch.linalg.vector_norm(weight - begin) > 0.1 * (plain - begin).norm()


@pytest.mark.parametrize("gradient", [*ADJOINTS, hs.Neumann(), hs.Shine()], ids=str)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_is_passed_on_and_harms_no_other_row(gradient, value: float) -> None:
    weight, inputs, _ = cell()
    shift = inputs.clone().requires_grad_()
    method = hs.Broyden() if isinstance(gradient, hs.Shine) else hs.Picard()

    def pulled(g: Tensor) -> Tensor:
        solution = hs.solve(lambda z, x: z @ weight + x, 0 * inputs, shift, method=method, gradient=gradient)
        return torch.autograd.grad(solution.state, shift, g)[0]

    g = torch.ones(16, 8)
    alone = pulled(g)
    g[3, 5] = value
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = pulled(g)
    assert not torch.isfinite(found[3]).all()
    others = [row for row in range(16) if row != 3]
    torch.testing.assert_close(found[others], alone[others])
    said = [str(w.message) for w in caught if issubclass(w.category, ConvergenceWarning)]
    assert all("pass it on" in text and "no gradient" not in text for text in said)
    assert bool(said) == (not isinstance(gradient, hs.Shine))


def test_asked_to_raise_it_raises() -> None:
    weight, inputs, _ = cell()
    solution = hs.solve(lambda z, x: z @ weight + x, 0 * inputs, inputs, gradient=Implicit(on_failure="raise"))
    with pytest.raises(ConvergenceError, match="1 of 16 rows"):
        solution.state.backward(torch.ones(16, 8).index_fill_(0, torch.tensor([2]), torch.inf))


@pytest.mark.parametrize("method", [hs.Picard(), hs.Anderson(), hs.GMRES(), hs.NormalCG(), hs.CG()], ids=str)
@pytest.mark.parametrize("size", [1e-12, 1.0, 3e4, 1e30])
def test_products_in_half_precision_have_the_range_of_the_gradient(method, size: float) -> None:
    # A float32 state whose products are taken in float16, which ends at 65504 and begins at 6e-8.
    weight, inputs, _ = cell()
    shift = inputs.clone().requires_grad_()
    stop = Stop(4 * torch.finfo(HALF).eps, max_steps=100)
    with torch.autocast("cpu", dtype=HALF):
        solution = hs.solve(
            lambda z, x: (z @ weight).float() + x, 0 * inputs, shift, stop=Stop(1e-2), gradient=Implicit(method, stop)
        )
    g = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad(solution.state, shift, size * g)
    wanted = torch.linalg.solve(torch.eye(8) - weight.detach(), g.T).T
    assert solution.adjoint is not None
    assert (solution.adjoint.status == hs.Status.CONVERGED).all()
    assert (found / size - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("method", [hs.Picard(), hs.Anderson(), hs.GMRES()], ids=str)
def test_products_in_half_precision_have_the_range_of_a_solution_that_is_larger(method) -> None:
    # A gradient of 1, and a solution of 2e7: each unknown passes 300 times its gradient on
    # (on the normal equations a condition of 1e14, beyond what half precision can do).
    pass_on = 300 * torch.diag(torch.ones(3), 1)
    shift = torch.zeros(2, 4, requires_grad=True)
    stop = Stop(4 * torch.finfo(HALF).eps, max_steps=200)
    gradient = Implicit(method, stop)
    with torch.autocast("cpu", dtype=HALF):
        step = lambda z, x: (z @ pass_on.T).float() + x  # noqa: E731
        solution = hs.solve(step, torch.zeros(2, 4), shift, stop=Stop(1e-2, 1e-9), gradient=gradient)
    g = torch.ones(2, 4)
    (found,) = torch.autograd.grad(solution.state, shift, g)
    wanted = torch.linalg.solve((torch.eye(4) - pass_on).T, g.T).T
    assert solution.adjoint is not None
    assert (solution.adjoint.status == hs.Status.CONVERGED).all()
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    assert found.abs().max() > 1e7
