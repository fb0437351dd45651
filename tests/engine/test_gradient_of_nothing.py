"""Where no row has a gradient, that of everything is 0, and not None: other processes wait for it."""

import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat import Anderson, Broyden, Carry, Implicit, OneStep, Phantom, Picard, Shared, Status, Stop, Unrolled
from homeostat.engine import Neumann, Shine

pytestmark = pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")

F64 = torch.float64
MODES = [
    Implicit(), Implicit(on_failure="mask"), Implicit(on_failure="fallback"), OneStep(), Phantom(), Neumann(), Shine(),
    Unrolled(), Unrolled(last=2), Unrolled(checkpoint=True), Unrolled(last=2, checkpoint=True),
]  # fmt: skip
METHODS = [Picard(), Anderson(), Broyden()]

NOTHING = {
    "no rows": (0, 0.1, 0.0, Stop()),
    "all diverged": (3, 500.0, 0.0, Stop()),
    "all diverged, untested": (3, 500.0, 0.0, Stop(rtol=0, max_steps=40)),
    "all starts not finite": (3, 0.1, torch.nan, Stop()),
    "all masked": (3, 0.1, 0.0, Stop(1e-12, max_steps=2)),
}


def differentiated(rows: int, rate: float, start: float, stop: Stop, gradient, method, nest: bool):
    """`z <- w a b s z^2 + 1` with a parameter, two parts of a context and a shared one; their gradients."""
    weight, made = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (1.0, 2.0))
    leaf = torch.full((rows, 1), rate, dtype=F64, requires_grad=True)
    context = {"a": leaf, "b": made * torch.ones(rows, 1, dtype=F64), "s": Shared(0.5 * made)}
    begin = torch.full((rows, 2), start, dtype=F64, requires_grad=True)

    def step(state, c):
        z = state[0] if nest else state
        after = weight * c["a"] * c["b"] * c["s"] * z * z + 1
        return (after, state[1]) if nest else after

    state = (begin, Carry(torch.ones(rows, dtype=F64))) if nest else begin
    solution = hs.solve(step, state, context, gradient=gradient, method=method, stop=stop)
    found = solution.state[0] if nest else solution.state
    torch.nan_to_num(found, nan=0.0, posinf=0.0).sum().backward()
    return solution, [x.grad for x in (weight, made, leaf)], begin.grad


@pytest.mark.parametrize("nest", [False, True], ids=["tensor", "nest"])
@pytest.mark.parametrize("what", NOTHING)
@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_everything_has_a_gradient_of_zero(gradient, what, nest):
    if what == "all masked" and gradient != Implicit(on_failure="mask"):
        return  # a mode without a mask uses what there is
    for method in METHODS if gradient != Shine() else [Broyden()]:
        solution, parameters, start = differentiated(*NOTHING[what], gradient, method, nest)
        assert solution.steps.shape == (NOTHING[what][0],)
        for x in parameters:
            assert x is not None
            assert not x.any()
        if isinstance(gradient, Unrolled):  # the others reach no start
            assert start is not None
            assert not start.any()


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_one_row_is_as_one_of_many(gradient, method):
    if isinstance(gradient, Shine) and method != Broyden():
        return

    def one(rows: Tensor) -> Tensor:
        weight = torch.tensor(1.0, dtype=F64, requires_grad=True)
        state = hs.solve(
            lambda z, c: weight * c * z * z + 1, torch.zeros(len(rows), 2, dtype=F64), rows, method=method,
            stop=Stop(1e-10), gradient=gradient,
        ).state  # fmt: skip
        return torch.autograd.grad(state.sum(), weight)[0]

    rates = torch.tensor([[0.1], [0.2]], dtype=F64)
    torch.testing.assert_close(one(rates), one(rates[:1]) + one(rates[1:]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_a_row_that_is_not_a_number_takes_nothing_from_the_others(gradient, method):
    if isinstance(gradient, Shine) and method != Broyden():
        return

    def one(start: Tensor, rows: Tensor) -> tuple[list[int], Tensor]:
        weight = torch.tensor(1.0, dtype=F64, requires_grad=True)
        rows = rows.clone().requires_grad_()
        solution = hs.solve(
            lambda z, c: weight * c * z * z + 1, start, rows, method=method, stop=Stop(1e-10), gradient=gradient
        )
        return solution.status.tolist(), torch.autograd.grad(solution.state[-2:].sum(), weight)[0]

    rates, start = torch.tensor([[0.1], [0.1], [0.2]], dtype=F64), torch.zeros(3, 2, dtype=F64)
    _, wanted = one(start[1:], rates[1:])
    for bad in ((start.index_fill(0, torch.tensor(0), torch.nan), rates), (start, rates.clone())):
        if not bad[0].isnan().any():
            bad[1][0] = torch.nan  # of the context
        status, found = one(*bad)
        assert status[0] == Status.DIVERGED
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
