"""`step(state)` where there is no context, and what is said of steps that take other arguments."""

import functools
from typing import Any

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat import Anderson, Broyden, Implicit, OneStep, Phantom, Picard, Shared, Stop, Unrolled
from homeostat.engine import GMRES, Neumann
from homeostat.engine.forward.graphs import graphs_of
from homeostat.engine.single import one_row
from homeostat.engine.step_function import with_context
from homeostat.errors import ContractError

F64 = torch.float64
METHODS = [Picard(), Anderson(), Broyden()]
GRADIENTS = [Implicit(), Implicit(GMRES()), Phantom(), OneStep(), Neumann(), Unrolled(), Unrolled(last=3)]
WEIGHT = 0.5 * torch.eye(3, dtype=F64)


class Alone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())

    def forward(self, z):
        return z @ self.weight + 1


class Both(nn.Module):
    def forward(self, z, c):
        return 0.5 * z + c


class Callable:
    def __call__(self, z):
        return 0.5 * z + 1

    def method(self, z):
        return 0.5 * z + 1

    @staticmethod
    def static(z):
        return 0.5 * z + 1

    @classmethod
    def shared(cls, z):
        return 0.5 * z + 1


def scaled(z, gain):
    return gain * z + 1


def keywords(z, *, gain=0.5):
    return gain * z + 1


def late(z, gain=0.5):
    return gain * z + 1


def wrapped(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


ALONE = {
    "lambda": lambda z: 0.5 * z + 1,
    "module": Alone(),
    "object": Callable(),
    "method": Callable().method,
    "static": Callable.static,
    "class method": Callable.shared,
    "partial": functools.partial(scaled, gain=0.5),
    "keyword": keywords,
    "default": late,
    "decorated": torch.no_grad()(lambda z: 0.5 * z + 1),
    "wrapped": wrapped(lambda z: 0.5 * z + 1),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("step", ALONE.values(), ids=ALONE)
def test_steps_of_the_state_alone(step, grad):
    with torch.set_grad_enabled(grad):
        found = hs.solve(step, torch.zeros(4, 3, dtype=F64), stop=Stop(1e-9))
        single = hs.solve(step, torch.zeros(4, 3, dtype=F64), stop=Stop(1e-9), batched=False)
    for solution in (found, single):
        torch.testing.assert_close(solution.state, torch.full((4, 3), 2.0, dtype=F64), rtol=1e-6, atol=0)


BOTH = {
    "lambda": lambda z, c: 0.5 * z + c,
    "module": Both(),
    "any": lambda *args: 0.5 * args[0] + args[1],
    "default": lambda z, c=None, gain=0.5: gain * z + c,
    "wrapped": wrapped(lambda z, c: 0.5 * z + c),
}


@pytest.mark.parametrize("step", BOTH.values(), ids=BOTH)
def test_steps_with_a_context(step):
    found = hs.solve(step, torch.zeros(4, 3, dtype=F64), torch.ones(4, 3, dtype=F64), stop=Stop(1e-9))
    torch.testing.assert_close(found.state, torch.full((4, 3), 2.0, dtype=F64), rtol=1e-6, atol=0)


def test_a_step_of_two_gets_none_where_there_is_no_context():
    seen: list[Any] = []
    hs.solve(lambda z, c: seen.append(c) or 0.5 * z + 1, torch.zeros(2, 3))
    hs.solve(lambda *args: seen.append(args[1]) or 0.5 * args[0] + 1, torch.zeros(2, 3))
    assert set(seen) == {None}


@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_both_forms_give_the_same(method, gradient):
    torch.manual_seed(0)
    start = torch.randn(3, 3, dtype=F64)
    found = {}
    for name in ("alone", "both"):
        w, b = WEIGHT.clone().requires_grad_(), torch.tensor([0.1, 0.5, 3.0], dtype=F64, requires_grad=True)

        def step(z, w=w, b=b):
            return torch.tanh(z @ w + b)

        step = step if name == "alone" else lambda z, _, step=step: step(z)
        solution = hs.solve(step, start, method=method, gradient=gradient, stop=Stop(1e-6))
        solution.state.square().sum().backward()
        found[name] = (solution.state.detach(), solution.steps, w.grad, b.grad)
    for one, other in zip(*found.values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")  # of the NaN
def test_zero_rows_one_row_and_rows_that_are_not_finite(method, gradient):
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    options = {"method": method, "gradient": gradient, "stop": Stop(1e-9)}
    for rows in (0, 1):
        found = hs.solve(lambda z: weight * z + 1, torch.zeros(rows, 2, dtype=F64), **options)
        assert found.steps.shape == (rows,)
        assert found.converged.all() or (gradient == Unrolled(last=3) and method != Picard())  # plain, and too few
    start = torch.zeros(3, 2, dtype=F64)
    start[1, 0] = torch.nan
    found = hs.solve(lambda z: weight * z + 1, start, **options)
    assert found.status[1] == hs.Status.DIVERGED
    if gradient != Unrolled(last=3) or method == Picard():  # those steps are plain, and too few from where Anderson was
        torch.testing.assert_close(found.state[[0, 2]], torch.full((2, 2), 2.0, dtype=F64), rtol=1e-6, atol=0)
    found.state[[0, 2]].sum().backward()
    assert weight.grad.isfinite()
    assert weight.grad > 0


def test_layers_and_compiled_steps_of_the_state_alone():
    layer = hs.nn.Equilibrium(Alone(), stop=Stop(1e-9))
    state = layer(state=torch.zeros(2, 3, dtype=F64))
    torch.testing.assert_close(state, torch.full((2, 3), 2.0, dtype=F64), rtol=1e-6, atol=0)
    with pytest.raises(ContractError, match="takes the state alone"):
        layer(torch.zeros(2, 3, dtype=F64))
    eager = hs.solve(lambda z: 0.9 * z + 1, torch.zeros(2, 3), method=Picard())
    compiled = hs.solve(lambda z: 0.9 * z + 1, torch.zeros(2, 3), method=Picard(), compile=True)
    assert torch.equal(eager.steps, compiled.steps)


def test_compiled_graphs_belong_to_the_step_that_was_given():
    one, other = ALONE["lambda"], ALONE["keyword"]
    graphs = [graphs_of(with_context(step, None)) for step in (one, one, other)]
    assert graphs[0] is graphs[1] is not graphs[2]
    single = [graphs_of(one_row(step, torch.zeros(2), None, Stop())[0]) for step in (one, one, other)]
    assert single[0] is single[1] is not single[2]


def test_a_stream_of_examples_without_contexts():
    step = lambda z: 0.5 * z + 1  # noqa: E731
    found = list(hs.solve_stream(step, lambda _: torch.zeros(1, 2), [None] * 5, batch_size=2))
    assert sorted(example.index for example in found) == [0, 1, 2, 3, 4]
    assert all((example.state - 2).abs().max() < 1e-3 for example in found)


@pytest.mark.parametrize("context", [torch.zeros(2, 3), Shared(3), (torch.zeros(2),)])
@pytest.mark.parametrize("step", [ALONE["lambda"], ALONE["module"], ALONE["partial"]])
@pytest.mark.parametrize("batched", [True, False])
def test_a_context_that_a_step_cannot_take(step, context, batched):
    with pytest.raises(ContractError, match=r"takes the state alone, .* and a context was given"):
        hs.solve(step, torch.zeros(2, 3, dtype=F64), context, batched=batched)


@pytest.mark.parametrize("step", [lambda: 0, lambda a, b, c: a, lambda z, *, gain: z, functools.partial(scaled, 1, 2)])
def test_other_arguments(step):
    with pytest.raises(ContractError, match=r"step is called with \(state, context\)"):
        hs.solve(step, torch.zeros(2, 3))


@pytest.mark.parametrize("step", [None, 3, torch.zeros(2), "step", [lambda z: z]])
@pytest.mark.parametrize("batched", [True, False])
def test_what_cannot_be_called(step, batched):
    with pytest.raises(TypeError, match="step must be a function"):
        hs.solve(step, torch.zeros(2, 3), batched=batched)


@pytest.mark.parametrize("batched", [True, False])
def test_a_return_that_is_missing(batched):
    def step(z):
        0.5 * z

    with pytest.raises(ContractError, match="became None; does step return"):
        hs.solve(step, torch.zeros(2, 3), batched=batched)
