"""Gradients that are not those of the fixed point: each against the closed form of what it claims to be."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from draws import random
from torch import Tensor

import homeostat as hs
from homeostat import Implicit, Shared, Status, Stop, Unrolled
from homeostat.engine import Neumann, OneStep, Phantom, Picard, Shine
from homeostat.engine.backward.implicit import shine
from homeostat.engine.forward.run import run
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError, ConvergenceWarning

# The plain loop: what these tests say about steps and states is said of its sequence.
solve = partial(hs.solve, method=hs.Picard())

F64 = torch.float64
TIGHT = Stop(1e-14, 0.0, 1000)
CHEAP = [OneStep(), Phantom(), Phantom(steps=3, damping=1.0), Neumann(), Neumann(terms=1)]
ALL = [*CHEAP, Implicit(), Implicit(on_failure="fallback"), Unrolled(), Unrolled(checkpoint=True), Unrolled(last=2)]


MATRIX = random(0, 4, 4) * 0.3
G = random(1, 3, 4)


def cotangent(gradient) -> Tensor:
    """`u` of `z <- z J^T + c`: the gradient that reaches `c`."""
    shift = random(2, 3, 4).requires_grad_()
    state = solve(
        lambda z, c: z @ MATRIX.T + c, torch.zeros(3, 4, dtype=F64), shift, stop=TIGHT, gradient=gradient
    ).state
    state.backward(G)
    assert shift.grad is not None
    return shift.grad


def test_one_step_is_the_gradient_itself():
    torch.testing.assert_close(cotangent(OneStep()), G, rtol=1e-14, atol=0)


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_neumann_is_the_truncated_series(terms):
    wanted = sum(G @ torch.linalg.matrix_power(MATRIX, i) for i in range(terms))
    torch.testing.assert_close(cotangent(Neumann(terms)), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("steps", "damping"), [(1, 1.0), (1, 0.5), (4, 1.0), (5, 0.5)])
def test_phantom_is_a_damped_series(steps, damping):
    # z_k = M z_{k-1} + damping (c + ...), M = (1 - damping) I + damping J: damping times the sum of g M^i.
    step = (1 - damping) * torch.eye(4, dtype=F64) + damping * MATRIX
    wanted = damping * sum(G @ torch.linalg.matrix_power(step, i) for i in range(steps))
    torch.testing.assert_close(cotangent(Phantom(steps, damping)), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gradient", [Neumann(200), Phantom(200, 0.9)])
def test_many_terms_are_the_implicit_gradient(gradient):
    exact = cotangent(Implicit(stop=TIGHT))
    torch.testing.assert_close(cotangent(gradient), exact, rtol=1e-10, atol=1e-11)


def nest(weight, shift, gradient, stop=TIGHT):
    """Two measured leaves, a counter, a mark, and a context with a shared part."""
    state = {
        "z": torch.zeros(3, 4, dtype=F64),
        "pair": (torch.ones(3, 2, dtype=F64), torch.zeros(3, dtype=torch.int64)),
        "mark": hs.Carry(torch.zeros(3, 1, dtype=F64)),
    }

    def step(s, c):
        z = torch.tanh(0.3 * s["z"] @ weight + c["x"] + s["pair"][0].sum(1, keepdim=True) * 0.1)
        y = 0.5 * s["pair"][0] + c["gain"] * z[:, :2]
        return {"z": z, "pair": (y, s["pair"][1] + 1), "mark": s["mark"] + 1}

    return solve(step, state, {"x": shift, "gain": Shared(weight[0, 0])}, stop=stop, gradient=gradient)


@pytest.mark.parametrize("gradient", ALL)
def test_the_state_is_the_solved_one_in_every_mode(gradient):
    weight, shift = random(3, 4, 4).requires_grad_(), random(4, 3, 4).requires_grad_()
    with torch.no_grad():
        plain = nest(weight, shift, gradient)
    solution = nest(weight, shift, gradient)
    assert torch.equal(solution.state["z"], plain.state["z"])
    assert torch.equal(solution.state["pair"][0], plain.state["pair"][0])
    assert torch.equal(solution.state["pair"][1], solution.steps)
    assert torch.equal(solution.state["mark"].value[:, 0], solution.steps.double())
    assert torch.equal(solution.residual, plain.residual)
    (solution.state["z"].sum() + solution.state["pair"][0].square().sum()).backward()
    assert weight.grad is not None
    assert shift.grad is not None
    assert (shift.grad != 0).all()


@pytest.mark.parametrize("gradient", [Neumann(300), Phantom(300, 1.0), Unrolled(checkpoint=True), Unrolled(last=300)])
def test_nested_states_have_the_implicit_gradient_in_the_limit(gradient):
    found = []
    for mode in (Implicit(stop=TIGHT), gradient):
        weight, shift = random(3, 4, 4).requires_grad_(), random(4, 3, 4).requires_grad_()
        solution = nest(weight, shift, mode)
        (solution.state["z"].sum() + solution.state["pair"][0].square().sum()).backward()
        found.append((weight.grad, shift.grad))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def quadratic(weight):
    return lambda z, c: weight * c * z * z + 1


@pytest.mark.parametrize("gradient", CHEAP)
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
@pytest.mark.parametrize("stop", [Stop(1e-10), Stop(0, 0, 40)])
def test_rows_that_diverged_put_nothing_into_shared_parameters(gradient, stop):
    context = torch.tensor([0.1, 50.0, 0.2], dtype=F64)[:, None]
    found = []
    for rows in ([0, 1, 2], [0, 2]):
        weight, its = torch.ones((), dtype=F64, requires_grad=True), context[rows].clone().requires_grad_()
        solution = solve(quadratic(weight), torch.zeros(len(rows), 2, dtype=F64), its, stop=stop, gradient=gradient)
        torch.nan_to_num(solution.state, nan=0.0, posinf=0.0).sum().backward()
        found.append((weight.grad, its.grad))
    assert found[0][1] is not None
    assert found[0][1][1] == 0
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0][1][[0, 2]], found[1][1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("gradient", [*CHEAP, Implicit()])
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_rows_that_the_recorded_steps_overflow_put_nothing_into_shared_parameters(gradient):
    # Within bounds where the solve ended, beyond all numbers a few steps later.
    weight = torch.ones((), dtype=F64, requires_grad=True)
    start = torch.tensor([[0.5], [1e90]], dtype=F64)
    factor = torch.tensor([[0.5], [1e80]], dtype=F64)

    def step(z, c):
        return weight * c * torch.where(z > 1e99, z * 1e300, z) + 0.5

    solution = solve(
        step, start, factor * torch.tensor([[1.0], [1e-70]], dtype=F64), stop=Stop(0, 0, 1), gradient=gradient
    )
    assert torch.isfinite(solution.state).all()
    solution.state.sum().backward()
    assert weight.grad is None or torch.isfinite(weight.grad)


@pytest.mark.parametrize("gradient", CHEAP)
def test_unconverged_rows_are_warned_of_with_counts(gradient):
    weight = torch.tensor(0.9, dtype=F64, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match=r"left 2 of 2 rows unconverged \(2 MAX_STEPS\)") as caught:
        solve(lambda z, _: weight * z + 1, torch.zeros(2, 3, dtype=F64), stop=Stop(max_steps=5), gradient=gradient)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("gradient", CHEAP)
def test_where_nothing_needs_a_gradient_nothing_is_said(gradient):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solve(lambda z, _: z + 1, torch.zeros(2, 3), stop=Stop(max_steps=5), gradient=gradient)
    assert not solution.state.requires_grad


@pytest.mark.parametrize("gradient", [OneStep(), Phantom(4, 0.5)])
def test_second_derivatives_of_recorded_steps_hold_their_start_constant(gradient):
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    start = torch.zeros(1, 1, dtype=F64)
    solution = solve(lambda z, _: torch.tanh(weight * z + 1), start, stop=TIGHT, gradient=gradient)
    (first,) = torch.autograd.grad(solution.state.sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first, weight)

    fixed, other = solution.state.detach(), torch.tensor(0.5, dtype=F64, requires_grad=True)
    z = fixed
    for _ in range(getattr(gradient, "steps", 1)):
        z = torch.lerp(z, torch.tanh(other * z + 1), getattr(gradient, "damping", 1.0))
    (wanted_first,) = torch.autograd.grad(z.sum(), other, create_graph=True)
    (wanted,) = torch.autograd.grad(wanted_first, other)
    torch.testing.assert_close((first, second), (wanted_first, wanted), rtol=1e-12, atol=0)


def test_neumann_has_no_second_derivative():
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    solution = solve(lambda z, _: torch.tanh(weight * z + 1), torch.zeros(1, 1, dtype=F64), gradient=Neumann())
    (first,) = torch.autograd.grad(solution.state.sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="Neumann has no second derivative"):
        torch.autograd.grad(first, weight)


def test_neumann_says_how_far_it_came():
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    solution = solve(lambda z, _: weight * z + 1, torch.zeros(2, 3, dtype=F64), stop=TIGHT, gradient=Neumann(terms=4))
    solution.state.sum().backward()
    adjoint = solution.adjoint
    assert adjoint is not None
    assert adjoint.steps.tolist() == [3, 3]
    assert adjoint.status.tolist() == [Status.MAX_STEPS] * 2
    torch.testing.assert_close(adjoint.residual, torch.full((2,), 0.125 / 1.875, dtype=F64))


# Shine


class Inverse:
    """An inverse as the forward method would have it: here, made up."""

    def __init__(self, matrix: Tensor, scales: Tensor) -> None:
        self.matrix, self.scales = matrix, scales

    def transpose(self, cotangents: list[Tensor]) -> list[Tensor]:
        (g,) = cotangents
        return [self.scales * (g @ self.matrix)]


def with_inverse(scales: Tensor, status=None, ratio: float = 1.3) -> Tensor:
    shift = random(2, 3, 4).requires_grad_()
    problem = Problem.of(lambda z, c: z @ MATRIX.T + c, torch.zeros(3, 4, dtype=F64), shift)
    with torch.no_grad():
        found = run(problem, TIGHT, Picard())
    inverse = torch.linalg.inv(torch.eye(4, dtype=F64) - MATRIX)
    found = replace(found, status=found.status if status is None else torch.tensor(status, dtype=torch.int8))
    found = replace(found, inverse=Inverse(inverse, scales))  # pyright: ignore[reportArgumentType]
    shine(problem, found, Shine(fallback_ratio=ratio), TIGHT).leaves[0].backward(G)
    assert shift.grad is not None
    return shift.grad


def test_shine_uses_the_inverse_of_the_forward_solve():
    got = with_inverse(torch.ones(3, 1, dtype=F64), ratio=10.0)
    torch.testing.assert_close(got, cotangent(Implicit(stop=TIGHT)), rtol=1e-11, atol=0)


def test_shine_falls_back_to_one_step_row_by_row():
    scales = torch.tensor([[1.0], [1e6], [torch.nan]], dtype=F64)
    got = with_inverse(scales, ratio=10.0)
    torch.testing.assert_close(got[0], cotangent(Implicit(stop=TIGHT))[0], rtol=1e-11, atol=0)
    assert torch.equal(got[1:], G[1:])


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_shine_leaves_diverged_rows_out():
    got = with_inverse(torch.ones(3, 1, dtype=F64), status=[0, Status.DIVERGED, 0], ratio=10.0)
    assert (got[1] == 0).all()
    torch.testing.assert_close(got[[0, 2]], cotangent(Implicit(stop=TIGHT))[[0, 2]], rtol=1e-11, atol=0)


def test_shine_needs_broyden():
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    with pytest.raises(ContractError, match=r"Shine needs method=Broyden\(\)"):
        solve(lambda z, _: weight * z + 1, torch.zeros(1, 1, dtype=F64), method=Picard(), gradient=Shine())


# on_failure="fallback"


def test_unconverged_rows_fall_back_to_one_step():
    gain = torch.tensor([[0.2], [0.999], [50.0]], dtype=F64)
    shift = torch.ones(3, 2, dtype=F64, requires_grad=True)
    gradient = Implicit(stop=TIGHT, on_failure="fallback")
    with pytest.warns(ConvergenceWarning, match="2 of 3 rows unconverged .*; they get the one-step gradient"):
        solution = solve(
            lambda z, c: c[0] * z + c[1], torch.zeros(3, 2, dtype=F64), (gain, shift), stop=Stop(1e-10, 0.0, 100),
            gradient=gradient,
        )  # fmt: skip
    assert solution.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED]
    g = random(5, 3, 2)
    solution.state.backward(g)
    assert shift.grad is not None
    wanted = torch.stack([g[0] / 0.8, g[1], torch.zeros(2, dtype=F64)])
    torch.testing.assert_close(shift.grad, wanted, rtol=1e-12, atol=0)
    adjoint = solution.adjoint  # over all rows; where nothing was solved, it says why
    assert adjoint is not None
    assert adjoint.steps[1:].tolist() == [0, 0]
    assert adjoint.residual[1:].isnan().all()
    assert adjoint.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED]


def test_an_unconverged_adjoint_falls_back_to_one_step():
    gain = torch.tensor([[0.2], [0.99], [3.0]], dtype=F64)
    shift = torch.ones(3, 2, dtype=F64, requires_grad=True)
    start = (shift / (1 - gain)).detach()
    gradient = Implicit(method=Picard(), stop=Stop(1e-9, 0.0, 60), on_failure="fallback")
    solution = solve(lambda z, c: c[0] * z + c[1], start, (gain, shift), gradient=gradient)
    g = random(6, 3, 2)
    with pytest.warns(ConvergenceWarning, match="adjoint solve left 2 of 3 rows unconverged"):
        solution.state.backward(g)
    assert shift.grad is not None
    torch.testing.assert_close(shift.grad, torch.stack([g[0] / 0.8, g[1], g[2]]), rtol=1e-8, atol=0)
