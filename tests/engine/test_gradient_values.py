"""Gradients against numerical ones: float64 central differences with Richardson extrapolation, to 1e-7."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from draws import random
from torch import Tensor

import homeostat as hs
from homeostat import Implicit, Shared, Stop, Unrolled
from homeostat.engine import GMRES, Anderson, NormalCG, Picard

# The plain loop: what these tests say about steps and states is said of its sequence.
solve = partial(hs.solve, method=hs.Picard())

F64 = torch.float64
STOP = Stop(rtol=1e-13, max_steps=20_000)
EXACT = Implicit(stop=STOP)


def numerical(loss: Callable[[], Tensor], parameter: Tensor, direction: Tensor) -> float:
    """The derivative along `direction`, from four steps halved each time."""
    before = parameter.detach().clone()

    def slope(h: float) -> float:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.copy_(before + sign * h * direction)
                values.append(loss().item())
        with torch.no_grad():
            parameter.copy_(before)
        return (values[0] - values[1]) / (2 * h)

    table = [slope(0.01 / 2**k) for k in range(4)]
    for order in (4, 16, 64):  # each sweep removes the next even power of h
        table = [(order * fine - coarse) / (order - 1) for coarse, fine in itertools.pairwise(table)]
    return table[0]


def check(
    loss: Callable[[], Tensor], parameters: dict[str, Tensor], *others: Callable[[], Tensor], tolerance: float = 1e-7
) -> None:
    """Along two directions a parameter, relative to the norm of all of their derivatives.

    `others` are the same loss differentiated by other means; numbers are computed once.
    """
    gradients = [torch.autograd.grad(differentiated(), list(parameters.values())) for differentiated in (loss, *others)]
    generator = torch.Generator().manual_seed(99)
    for k, (name, parameter) in enumerate(parameters.items()):
        directions = torch.randn(2, *parameter.shape, generator=generator, dtype=F64)
        directions = directions / directions.flatten(1).norm(dim=1).view(2, *([1] * parameter.ndim))
        wanted = torch.tensor([numerical(loss, parameter, d) for d in directions], dtype=F64)
        assert wanted.norm() > 1e-4, f"{name}: nothing to compare"
        for which, found in enumerate(gradients):
            got = torch.stack([(found[k] * d).sum() for d in directions])
            error = (got - wanted).norm() / wanted.norm()
            assert error <= tolerance, f"{name}, loss {which}: {got.tolist()} for {wanted.tolist()}"


def scaled(matrix: Tensor, norm: float) -> Tensor:
    return matrix * norm / torch.linalg.matrix_norm(matrix, 2)


class Case:
    """A map with its parameters, its context and a start; `loss` weighs every entry of the answer differently."""

    def __init__(self, step, start, context, parameters) -> None:
        self.step, self.start, self.context, self.parameters = step, start, context, parameters

    def loss(self, gradient: Any, stop: Stop) -> Tensor:
        state = solve(self.step, self.start, self.context, stop=stop, gradient=gradient).state
        leaves = state if isinstance(state, tuple) else (state,)
        return sum((torch.cos(x + i) * (1 + random(50 + i, *x.shape))).sum() for i, x in enumerate(leaves))


def linear(matrix: Tensor) -> Case:
    weight, x = matrix.clone().requires_grad_(), random(1, 3, 4).requires_grad_()
    start = random(2, 3, 4).requires_grad_()
    parameters = {"weight": weight, "context": x}
    return Case(lambda z, c: z @ weight.T + c, start, x, parameters)


def non_normal() -> Case:
    # Spectral radius 0.5, norm above 1: the residual grows before it shrinks.
    matrix = 0.5 * torch.eye(4, dtype=F64) + torch.diag(torch.full((3,), 1.0, dtype=F64), 1)
    return linear(matrix)


def tanh(gain: float) -> Case:
    weight = scaled(random(3, 5, 5), 1.0).requires_grad_()
    bias, x = random(4, 5).requires_grad_(), (0.1 * random(5, 3, 5)).requires_grad_()
    parameters = {"weight": weight, "bias": bias, "context": x}

    def step(z, c):
        return torch.tanh(gain * z @ weight.T + c["x"] + c["bias"].value * 0.1)

    context = {"x": x, "bias": Shared(Shared(bias))}  # what is shared is handed on as it is, whatever it is
    return Case(step, torch.zeros(3, 5, dtype=F64), context, parameters)


def orthogonal_tanh(gain: float) -> Case:
    # A scaled orthogonal matrix near 0 contracts by just `gain`: the adjoint needs as many steps as the gain says.
    basis = torch.linalg.qr(random(6, 5, 5)).Q.clone().requires_grad_()
    x = (0.01 * random(7, 3, 5)).requires_grad_()
    return Case(
        lambda z, c: torch.tanh(gain * z @ basis.T + c),
        torch.zeros(3, 5, dtype=F64),
        x,
        {"basis": basis, "context": x},
    )


def conv() -> Case:
    kernel, x = (0.1 * random(8, 3, 3, 3, 3)).requires_grad_(), random(9, 2, 3, 4, 5).requires_grad_()

    def step(z, c):
        return torch.tanh(torch.nn.functional.conv2d(z, kernel, padding=1) + c)

    return Case(step, torch.zeros(2, 3, 4, 5, dtype=F64), x, {"kernel": kernel, "context": x})


def two_tensors() -> Case:
    a, b = scaled(random(10, 4, 4), 0.5).requires_grad_(), scaled(random(11, 3, 4), 0.5).requires_grad_()
    x = random(12, 2, 4).requires_grad_()

    def step(s, c):
        z, y = s
        return torch.tanh(z @ a.T + y @ b + c), torch.tanh(0.5 * z @ b.T + 0.3 * y)

    start = (torch.zeros(2, 4, dtype=F64), torch.zeros(2, 3, dtype=F64))
    return Case(step, start, x, {"a": a, "b": b, "context": x})


CASES = {
    "linear": lambda: linear(scaled(random(0, 4, 4), 0.8)),
    "non-normal": non_normal,
    "tanh 0.5": lambda: tanh(0.5),
    "tanh 0.9": lambda: tanh(0.9),
    "tanh 0.99": lambda: tanh(0.99),
    "orthogonal tanh 0.9": lambda: orthogonal_tanh(0.9),
    "conv": conv,
    "two tensors": two_tensors,
}


@pytest.mark.parametrize("name", CASES)
def test_implicit(name):
    case = CASES[name]()
    modes = [replace(EXACT, method=method) for method in (Picard(), Anderson(), GMRES(), NormalCG())]
    losses = [lambda g=mode: case.loss(g, STOP) for mode in modes]
    check(losses[0], case.parameters, *losses[1:])


@pytest.mark.parametrize("steps", [12, [5, 9, 14]])
@pytest.mark.parametrize("name", CASES)
def test_unrolled(name, steps):
    # Not at a fixed point: what is differentiated is the number of steps that was computed.
    case = CASES[name]()
    rows = len(case.start[0] if isinstance(case.start, tuple) else case.start)
    limits = torch.tensor(steps[:rows]) if isinstance(steps, list) else steps
    parameters = dict(case.parameters)
    if isinstance(case.start, Tensor) and case.start.requires_grad:
        parameters["start"] = case.start
    stop = Stop(0, 0, limits)
    check(lambda: case.loss(Unrolled(), stop), parameters, lambda: case.loss(Unrolled(checkpoint=True), stop))


def test_unrolled_with_a_tolerance():
    case = tanh(0.9)
    stop = Stop(rtol=torch.tensor([1e-1, 1e-2, 1e-4], dtype=F64), max_steps=100)
    steps = solve(case.step, case.start, case.context, stop=stop).steps
    assert len(set(steps.tolist())) > 1  # rows stop at different steps
    check(lambda: case.loss(Unrolled(), stop), case.parameters)


@pytest.mark.parametrize("gradient", [EXACT, Unrolled()])
def test_the_gradient_reaches_what_the_context_was_made_from(gradient):
    encoder, inputs = random(13, 4, 2).requires_grad_(), random(14, 3, 2)
    weight = scaled(random(15, 4, 4), 0.6)

    def loss():
        context = {"u": torch.tanh(inputs @ encoder.T), "gain": Shared(encoder[0, 0] * 0.1 + 1)}
        start = torch.zeros(3, 4, dtype=F64)
        solution = solve(
            lambda z, c: torch.tanh(c["gain"] * z @ weight.T + c["u"]), start, context, stop=STOP, gradient=gradient
        )
        return (solution.state * random(16, 3, 4)).sum()

    check(loss, {"encoder": encoder})


def test_implicit_and_unrolled_agree_where_rows_take_very_different_steps():
    gain = torch.tensor([0.01, 0.5, 0.95, 0.3], dtype=F64)[:, None]
    found = []
    exact = Implicit(hs.Picard(), STOP)
    for gradient in (exact, Unrolled()):
        weight = torch.ones(3, dtype=F64, requires_grad=True)
        solution = solve(
            lambda z, c, w=weight: torch.tanh(c * w * z + 0.1), torch.zeros(4, 3, dtype=F64), gain, stop=STOP,
            gradient=gradient,
        )  # fmt: skip
        solution.state.square().sum().backward()
        found.append(weight.grad)
        if gradient is exact:
            assert solution.adjoint is not None
            assert len(set(solution.adjoint.steps.tolist())) > 2  # rows left the adjoint at different steps
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("stop", [Stop(0, 0, 9), Stop(0, 0, torch.tensor([0, 2, 5, 9])), Stop(1e-3, 0.0, 60)])
@pytest.mark.parametrize("last", [1, 3, 5])
def test_truncation_is_truncated_backpropagation_row_by_row(stop, last):
    gain = torch.tensor([0.1, 0.5, 0.8, 0.9], dtype=F64)[:, None]
    shift = random(17, 4, 3)
    steps = solve(
        lambda z, c: c[0] * torch.tanh(z) + c[1], torch.zeros(4, 3, dtype=F64), (gain, shift), stop=stop
    ).steps

    def manual(weight, start):
        rows = []
        for row, count in enumerate(steps.tolist()):
            z = start[row]
            for k in range(count):
                if k == count - last and k > 0:
                    z = z.detach()
                z = gain[row] * torch.tanh(z * weight) + shift[row]
            rows.append(z)
        return torch.stack(rows)

    def engine(weight, start):
        solution = solve(
            lambda z, c: c[0] * torch.tanh(z * weight) + c[1], start, (gain, shift), stop=stop,
            gradient=Unrolled(last=last),
        )  # fmt: skip
        assert torch.equal(solution.steps, steps)
        return solution.state

    found = []
    for function in (manual, engine):
        weight = torch.ones(3, dtype=F64, requires_grad=True)
        start = torch.zeros(4, 3, dtype=F64, requires_grad=True)
        state = function(weight, start)
        (state * random(18, 4, 3)).sum().backward()
        at_start = torch.zeros(4, 3, dtype=F64) if start.grad is None else start.grad
        assert torch.equal((at_start != 0).all(1), steps <= last)  # the start counts where all steps are in the graph
        found.append((state, weight.grad, at_start))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_implicit_gives_the_start_no_gradient():
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    start = torch.ones(2, 3, dtype=F64, requires_grad=True)
    solution = solve(lambda z, _: weight * z + 1, start)
    assert torch.autograd.grad(solution.state.sum(), start, allow_unused=True) == (None,)
    # Nor where the step hands its input back, or takes no step at all.
    assert not solve(lambda z, _: z, start).state.requires_grad
    assert not solve(lambda z, _: z / 2, start, stop=Stop(max_steps=0)).state.requires_grad


def test_a_carried_leaf_is_a_constant_to_implicit():
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    start = (torch.zeros(2, 3, dtype=F64), hs.Carry(torch.full((2, 1), 2.0, dtype=F64)))
    solution = solve(lambda s, _: (weight * s[0] + s[1], s[1]), start, stop=STOP, gradient=EXACT)
    solution.state[0].sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(6 * 2 / 0.25)  # z = c / (1 - w)
    assert not solution.state[1].value.requires_grad


@pytest.mark.parametrize("method", [Anderson(), hs.Broyden()], ids=str)
def test_truncated_plain_steps_that_do_not_arrive_are_not_called_converged(method):
    # The accelerated steps that they stand for did.
    solution = hs.solve(
        lambda z, _: 0.9 * z + 1,
        torch.zeros(2, 3, dtype=F64),
        method=method,
        stop=Stop(1e-9),
        gradient=Unrolled(last=3),
    )
    near = (solution.state - 10).abs().amax(1) <= 1e-7
    assert torch.equal(solution.converged, near)
