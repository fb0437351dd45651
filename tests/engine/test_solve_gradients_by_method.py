"""Gradients do not depend on the method that found the fixed point; those through the method's own steps are exact."""

import itertools
from collections.abc import Callable

import pytest
import torch
from draws import random
from torch import Tensor

import homeostat as hs
from homeostat import Anderson, Broyden, Implicit, Picard, Stop, Unrolled
from homeostat.engine import GMRES, NormalCG, Shine
from homeostat.errors import ContractError

F64 = torch.float64
TIGHT = Stop(rtol=1e-13, max_steps=5000)
METHODS = [Picard(), Picard(damping=0.7), Anderson(), Anderson(memory=2, damping=0.8), Broyden(), Broyden(memory=3)]


def slope(value: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor, width: float = 0.01) -> float:
    """The derivative along `direction` by central differences, their even powers removed (Richardson)."""
    with torch.no_grad():
        table = []
        for k in range(4):
            h = width / 2**k
            table.append(((value(at + h * direction) - value(at - h * direction)) / (2 * h)).item())
        for order in (4, 16, 64):
            table = [(order * fine - coarse) / (order - 1) for coarse, fine in itertools.pairwise(table)]
    return table[0]


def gradient_along(value: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor) -> float:
    variable = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(variable), variable)
    return float((found * direction).sum())


def scaled(seed: int, size: int, norm: float) -> Tensor:
    matrix = random(seed, size, size)
    return norm * matrix / torch.linalg.matrix_norm(matrix, 2)


def weighed(state) -> Tensor:
    leaves = state if isinstance(state, tuple) else (state,)
    return sum((torch.cos(x + i) * (1 + random(90 + i, *x.shape))).sum() for i, x in enumerate(leaves))


def linear(weight: Tensor):
    return (lambda z, c: z @ weight.T + c), torch.zeros(3, 5, dtype=F64), random(1, 3, 5)


def tanh(weight: Tensor):
    return (lambda z, c: torch.tanh(z @ weight.T + c)), torch.zeros(3, 5, dtype=F64), 0.1 * random(2, 3, 5)


def two_leaves(weight: Tensor):
    def step(state, c):
        a, b = state
        return torch.tanh(a @ weight.T + 0.1 * b.mean(1)), 0.3 * b + (c + 0.2 * a)[:, None]

    return step, (torch.zeros(3, 5, dtype=F64), torch.zeros(3, 2, 5, dtype=F64)), random(3, 3, 5)


MAPS = {
    "linear": (linear, scaled(4, 5, 0.9)),
    "tanh": (tanh, scaled(5, 5, 0.97)),
    "two leaves": (two_leaves, scaled(6, 5, 0.8)),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_implicit_gradient_is_that_of_the_fixed_point_whatever_found_it(name):
    make, weight = MAPS[name]
    direction = random(7, 5, 5) / 5
    plain = Stop(1e-13, 0.0, 3000)
    wanted = slope(lambda w: weighed(hs.solve(*make(w), method=Picard(), stop=plain).state), weight, direction)
    assert abs(wanted) > 1e-3
    for method, adjoint in itertools.product(METHODS, (Anderson(), GMRES(), NormalCG())):
        mode = Implicit(adjoint, stop=Stop(1e-12, max_steps=3000))
        found = gradient_along(
            lambda w, m=method, g=mode: weighed(hs.solve(*make(w), method=m, stop=TIGHT, gradient=g).state),
            weight,
            direction,
        )
        assert found == pytest.approx(wanted, rel=1e-7), (method, adjoint)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("steps", [3, 8, 14])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("name", ["tanh", "two leaves"])
def test_unrolling_an_accelerated_method_is_exact_for_what_it_computed(name, method, steps, checkpoint):
    # Not at the fixed point: extrapolation itself is differentiated.
    make, weight = MAPS[name]
    direction = random(8, 5, 5) / 5

    def value(w: Tensor) -> Tensor:
        return weighed(
            hs.solve(*make(w), method=method, stop=Stop(0, 0, steps), gradient=Unrolled(checkpoint=checkpoint)).state
        )

    wanted = slope(value, weight, direction, width=1e-4)
    assert abs(wanted) > 1e-3
    assert gradient_along(value, weight, direction) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_unrolling_reaches_the_start_and_the_context(method):
    make, weight = MAPS["tanh"]
    step, start, context = make(weight)
    for value, at in (
        (
            lambda x: weighed(hs.solve(step, x, context, method=method, stop=Stop(0, 0, 5), gradient=Unrolled()).state),
            start,
        ),
        (
            lambda c: weighed(hs.solve(step, start, c, method=method, stop=Stop(0, 0, 5), gradient=Unrolled()).state),
            context,
        ),
    ):
        direction = random(9, 3, 5)
        wanted = slope(value, at, direction, width=1e-4)
        assert abs(wanted) > 1e-3
        assert gradient_along(value, at, direction) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1,), (1, 2, 1)])
@pytest.mark.parametrize("method", [Anderson(), Anderson(memory=2, damping=0.9), Broyden()], ids=str)
def test_unrolling_keeps_the_graph_of_a_row_that_went_back_to_its_anchor(method, shape):
    # Extrapolated, the state leaves the part where the map contracts, and the plain sequence is resumed.
    def value(w: Tensor) -> Tensor:
        def step(z, _):
            return torch.where(z > 3.95, 3 * z, 5 * torch.tanh((w * z + 1) / 5))

        found = hs.solve(
            step, torch.zeros(shape, dtype=F64), method=method, stop=Stop(0, 0, 9), gradient=Unrolled(), trace=True
        )
        assert found.trace is not None
        assert found.trace[0].diff().max() > 0.2  # the residual grew: otherwise this test shows nothing
        return found.state.sum()

    weight = torch.tensor(0.95, dtype=F64)
    wanted = slope(value, weight, torch.tensor(1.0, dtype=F64), width=1e-5)
    assert gradient_along(value, weight, torch.tensor(1.0, dtype=F64)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_rows_that_finish_early_have_the_gradient_of_their_own_steps(method):
    make, weight = MAPS["tanh"]
    _, start, context = make(weight)
    rate = torch.tensor([0.1, 0.6, 1.0], dtype=F64)[:, None]
    stop = Stop(1e-6, 0.0, 300)

    def value(w: Tensor, rows) -> Tensor:
        found = hs.solve(
            lambda z, c: torch.tanh(c[0] * (z @ w.T) + c[1]), start[rows], (rate[rows], context[rows]), method=method,
            stop=stop, gradient=Unrolled(),
        )  # fmt: skip
        return (found.state * random(10, 3, 5)[rows]).sum()

    variable = weight.clone().requires_grad_()
    (together,) = torch.autograd.grad(value(variable, [0, 1, 2]), variable)
    apart = sum(torch.autograd.grad(value(variable, [i]), variable)[0] for i in range(3))
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-12)


# Shine


def shine(matrices: Tensor, shifts: Tensor, *, rows=slice(None), sync_every=None, ratio=1e6) -> Tensor:
    shift = shifts[rows].clone().requires_grad_()
    found = hs.solve(
        lambda z, c: (c[1] * z[:, None]).sum(-1) + c[0], torch.zeros_like(shift), (shift, matrices[rows]),
        method=Broyden(), stop=Stop(1e-8), gradient=Shine(fallback_ratio=ratio), sync_every=sync_every,
    )  # fmt: skip
    assert found.converged.all()
    (gradient,) = torch.autograd.grad(found.state.sum(), shift)
    return gradient


def test_shine_is_the_implicit_gradient_where_broydens_inverse_is_exact():
    # One unknown: after one update the inverse is exact. From two unknowns on it is exact along the way that was
    # taken only, and errors are large.
    rates = torch.tensor([-0.9, -0.3, 0.2, 0.5, 0.9, 0.99], dtype=F64)[:, None, None]
    found = shine(rates, random(11, 6, 1))
    torch.testing.assert_close(found, 1 / (1 - rates[:, 0]), rtol=1e-3, atol=0)


def test_shine_is_on_average_nearer_to_the_implicit_gradient_than_one_step_is():
    matrices, shifts = random(12, 40, 4, 4), random(13, 40, 4)
    matrices = 0.8 * matrices / torch.linalg.matrix_norm(matrices, 2)[:, None, None]
    exact = torch.linalg.solve((torch.eye(4, dtype=F64) - matrices).mT, torch.ones(40, 4, dtype=F64))
    error = (shine(matrices, shifts) - exact).norm(dim=1)
    one_step = (1 - exact).norm(dim=1)
    assert error.median() < 0.7 * one_step.median()


@pytest.mark.parametrize("sync_every", [1, 5, 16])
def test_a_rows_shine_gradient_depends_neither_on_its_company_nor_on_the_rhythm_of_looking(sync_every):
    matrices, shifts = random(14, 8, 3, 3), random(15, 8, 3)
    rates = torch.linspace(0.05, 0.97, 8, dtype=F64)[:, None, None]
    matrices = rates * matrices / torch.linalg.matrix_norm(matrices, 2)[:, None, None]
    together = shine(matrices, shifts)
    assert (together - 1).norm() > 0.1  # more than the one-step gradient
    torch.testing.assert_close(shine(matrices, shifts, sync_every=sync_every), together, rtol=1e-9, atol=0)
    for row in range(8):
        alone = shine(matrices, shifts, rows=[row], sync_every=sync_every)
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-6, atol=1e-9)


def test_shine_leaves_a_row_that_starts_as_nan_out():
    matrices, shifts = 0.5 * torch.eye(2, dtype=F64).expand(3, 2, 2), random(16, 3, 2)
    start = torch.zeros(3, 2, dtype=F64)
    start[1] = torch.nan
    shift = shifts.clone().requires_grad_()
    with pytest.warns(hs.errors.ConvergenceWarning, match="1 DIVERGED"):
        found = hs.solve(
            lambda z, c: (c[1] * z[:, None]).sum(-1) + c[0], start, (shift, matrices), method=Broyden(),
            gradient=Shine(fallback_ratio=10.0),
        )  # fmt: skip
    found.state[[0, 2]].sum().backward()
    assert shift.grad is not None
    assert not shift.grad[1].any()
    assert shift.grad[[0, 2]].isfinite().all()
    assert (shift.grad[[0, 2]] != 0).all()


@pytest.mark.parametrize("method", [Picard(), Anderson()], ids=str)
def test_shine_needs_broyden(method):
    weight = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ContractError, match=r"Shine needs method=Broyden\(\)"):
        hs.solve(lambda z, _: weight * z + 1, torch.zeros(1, 1), method=method, gradient=Shine())
    with torch.no_grad():  # where no gradient is asked for, the mode does not matter
        assert hs.solve(lambda z, _: weight * z + 1, torch.zeros(1, 1), method=method, gradient=Shine()).converged.all()
