"""`batched=False`: a state of any shape is one problem, held against direct solves, loops and finite differences."""

import copy
import math
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat import Anderson, Broyden, Carry, Implicit, OneStep, Phantom, Picard, Shared, Status, Stop, Unrolled
from homeostat.engine import CG, GMRES, Neumann, NormalCG, Shine
from homeostat.errors import ContractError, ConvergenceError

F64 = torch.float64
TIGHT = Stop(rtol=1e-13, max_steps=5000)
METHODS = [Picard(), Picard(0.7), Anderson(), Anderson(3, 0.8), Broyden()]
EXACT = [
    Implicit(stop=TIGHT),
    Implicit(GMRES(), TIGHT),
    Implicit(NormalCG(), TIGHT),
    Neumann(400),
    Phantom(400, 1.0),
    Unrolled(),
    Unrolled(last=400),
    Unrolled(checkpoint=True),
]


def one(step, state, context=None, **options):
    return hs.solve(step, state, context, batched=False, **{"stop": TIGHT, **options})


def matrix(size: int, norm: float = 0.8, seed: int = 0):
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return norm * drawn / torch.linalg.matrix_norm(drawn, 2)


def is_scalar(*tensors):
    return all(x.shape == () for x in tensors)


# Values and gradients


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("gradient", EXACT, ids=str)
def test_a_vector_and_a_matrix_in_the_closure(method, gradient):
    weight, shift = matrix(5).requires_grad_(), torch.linspace(-1, 1, 5, dtype=F64, requires_grad=True)
    if gradient == Unrolled(last=400) and not isinstance(method, Picard):
        return  # the gradient of as many plain steps as the method took: not that of the fixed point
    found = one(lambda z: weight @ z + shift, torch.zeros(5, dtype=F64), method=method, gradient=gradient)
    exact = torch.linalg.solve(torch.eye(5, dtype=F64) - weight, shift)
    assert found.state.shape == (5,)
    torch.testing.assert_close(found.state, exact, rtol=1e-10, atol=1e-12)
    slope = torch.arange(1, 6, dtype=F64)
    wanted = torch.autograd.grad((exact * slope).sum(), (weight, shift))
    got = torch.autograd.grad((found.state * slope).sum(), (weight, shift))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def test_the_inverse_that_broyden_left_behind_is_that_of_a_batch_with_one_row():
    weight = matrix(6, 0.97, seed=3).requires_grad_()
    options = {"method": Broyden(), "gradient": Shine(10.0), "stop": TIGHT}
    found = hs.solve(lambda z: weight @ z + 1, torch.zeros(6, dtype=F64), batched=False, **options)
    batch = hs.solve(lambda z, c: z @ c.T + 1, torch.zeros(1, 6, dtype=F64), Shared(weight), **options)
    got, row = (torch.autograd.grad(x.sum(), weight)[0] for x in (found.state, batch.state))
    torch.testing.assert_close(got, row, rtol=1e-5, atol=1e-8)


def test_conjugate_gradients_on_a_symmetric_system():
    weight = matrix(6)
    weight = (weight @ weight.T).requires_grad_()
    found = one(lambda z: weight @ z + 1, torch.zeros(6, dtype=F64), gradient=Implicit(CG(), Stop(1e-12)))
    exact = torch.linalg.solve(torch.eye(6, dtype=F64) - weight, torch.ones(6, dtype=F64))
    (got,), (wanted,) = (torch.autograd.grad(x.square().sum(), weight) for x in (found.state, exact))
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)
    assert is_scalar(*(getattr(found.adjoint, name) for name in ("steps", "residual", "status", "obstacle")))


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("gradient", [EXACT[0], EXACT[5], OneStep()], ids=str)
def test_a_number(method, gradient):
    gain = torch.tensor(0.9, dtype=F64, requires_grad=True)
    found = one(lambda z: torch.cos(gain * z), torch.tensor(0.0, dtype=F64), method=method, gradient=gradient)
    assert is_scalar(found.state, found.steps, found.residual, found.status, found.converged)
    z, a = 0.0, 0.9
    for _ in range(2000):
        z = math.cos(a * z)
    assert found.state.item() == pytest.approx(z, abs=1e-11)
    found.state.backward()
    wanted = -z * math.sin(a * z) / (1 if isinstance(gradient, OneStep) else 1 + a * math.sin(a * z))
    assert gain.grad.item() == pytest.approx(wanted, abs=1e-10)


def test_a_grid():
    # Jacobi's iteration for Poisson's equation on a square: the solution of the linear system, built by its columns.
    def step(u, f):
        padded = torch.nn.functional.pad(u, (1, 1, 1, 1))
        return (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] + f) / 4

    f = torch.zeros(6, 7, dtype=F64)
    f[2, 3] = 1.0
    f.requires_grad_()
    found = one(step, torch.zeros(6, 7, dtype=F64), f)
    unit = torch.eye(42, dtype=F64).view(42, 6, 7)
    system = torch.stack([(e - step(e, 0.0)).flatten() for e in unit], 1)
    exact = torch.linalg.solve(system, f.flatten() / 4).view(6, 7)
    torch.testing.assert_close(found.state, exact, rtol=1e-8, atol=1e-11)
    (got,), (wanted,) = (torch.autograd.grad(x.square().sum(), f) for x in (found.state, exact))
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-10)


def test_rows_that_hear_of_each_other_have_the_right_gradient():
    # All nodes of a graph, and a mean field: as examples of a batch their implicit gradient would be another one.
    torch.manual_seed(0)
    hops = torch.rand(8, 8, dtype=F64)
    hops = 0.9 * hops / hops.sum(1, keepdim=True)
    weight = matrix(3).requires_grad_()
    x = torch.randn(8, 3, dtype=F64)

    def graph(z):
        return torch.tanh(hops @ z @ weight + x + 0.1 * z.mean(0))

    found = one(graph, torch.zeros(8, 3, dtype=F64), gradient=Implicit(stop=TIGHT))
    z = torch.zeros(8, 3, dtype=F64)
    for _ in range(400):
        z = graph(z)
    torch.testing.assert_close(found.state, z, rtol=1e-10, atol=1e-12)
    (got,), (wanted,) = (torch.autograd.grad(s.square().sum(), weight) for s in (found.state, z))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def test_a_coupled_system_of_leaves_with_different_shapes():
    gain = torch.tensor(0.3, dtype=F64, requires_grad=True)

    def step(s, c):
        assert set(c) == {"name", "shift", "nothing"}
        assert c["name"] == "any object"
        x, (y, t) = s["x"], s["pair"]
        return {"x": gain * x + y.mean() + c["shift"], "pair": (0.2 * y + x.sum(), 0.5 * t + gain * x[0, 0])}

    start = {"x": torch.zeros(2, 3, dtype=F64), "pair": (torch.zeros(4, dtype=F64), torch.tensor(1.0, dtype=F64))}
    shift = torch.linspace(0, 0.01, 3, dtype=F64, requires_grad=True)
    context = {"name": "any object", "shift": shift, "nothing": None}

    def damped(s, c):
        new = step(s, c)
        return {"x": 0.1 * new["x"], "pair": (0.1 * new["pair"][0], 0.1 * new["pair"][1])}

    found = one(damped, start, context, gradient=Implicit(stop=TIGHT))
    s = start
    for _ in range(400):
        s = damped(s, context)
    (x, (y, t)), (u, (v, w)) = ((n["x"], n["pair"]) for n in (found.state, s))
    torch.testing.assert_close((x, y, t), (u, v, w), rtol=1e-10, atol=1e-14)
    assert t.shape == ()
    got = torch.autograd.grad(x.sum() + y.square().sum() + t, (gain, shift))
    wanted = torch.autograd.grad(u.sum() + v.square().sum() + w, (gain, shift))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("gradient", [Implicit(), Unrolled(), OneStep()], ids=str)
def test_contexts_come_as_they_are(gradient):
    class Anything:
        rate = 0.5

    class Pair(NamedTuple):
        left: Any
        right: Any

    thing = Anything()
    context = Pair([torch.ones(7), 3], {"thing": thing, "marked": Shared(torch.tensor(2.0)), "flag": True})
    seen = []

    def step(z, c):
        seen.append(c)
        return c.right["thing"].rate * z + c.left[0][:2].sum() + c.left[1] + c.right["marked"]

    found = hs.solve(step, torch.zeros(3), context, batched=False, gradient=gradient, stop=Stop(1e-6))
    torch.testing.assert_close(found.state.detach(), torch.full((3,), 14.0), rtol=1e-4, atol=0)
    assert seen[0].right["thing"] is thing
    assert seen[0].left[0] is context.left[0]
    assert isinstance(seen[0], Pair)
    for context in (3.5, None, "text", thing, torch.tensor(2), (), {}, [None]):
        hs.solve(lambda z, c, context=context: z * (c is context or c == context) / 2 + 1, torch.zeros(3), context,
                 batched=False)  # fmt: skip


# What comes back


@pytest.mark.parametrize("gradient", [Implicit(), Unrolled(), Phantom(), Neumann()], ids=str)
@pytest.mark.parametrize("returns", ["last", "best"])
def test_a_solution_of_one_problem(returns, gradient):
    weight = matrix(4).requires_grad_()
    found = one(
        lambda z: weight @ z + 1, torch.zeros(4, dtype=F64), returns=returns, trace=True, gradient=gradient, stop=Stop()
    )
    assert is_scalar(found.steps, found.residual, found.status, found.converged)
    assert found.converged
    assert found.steps.dtype == torch.int64
    assert found.trace.shape == (found.steps.item(),)
    assert found.trace[-1] == found.residual
    assert found.row_evaluations >= found.steps
    assert "1 problem" in repr(found)
    assert "CONVERGED" in repr(found)
    assert found.adjoint is None
    found.state.sum().backward()
    if isinstance(gradient, Implicit | Neumann):
        adjoint = found.adjoint
        assert is_scalar(adjoint.steps, adjoint.residual, adjoint.status, adjoint.obstacle)
        assert adjoint.row_evaluations > 0
        assert "rows" in repr(adjoint)
    with torch.no_grad():
        free = one(lambda z: weight @ z + 1, torch.zeros(4, dtype=F64))
    for copied in (copy.deepcopy(free), pickle.loads(pickle.dumps(free))):
        assert torch.equal(copied.state, free.state)
        assert repr(copied) == repr(free)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_steps_residuals_and_trace_are_those_of_a_batch_with_one_row(method):
    weight, stop = matrix(4, 0.95), Stop(1e-9, max_steps=500)
    options = {"method": method, "stop": stop, "trace": True}
    found = one(lambda z: weight @ z + 1, torch.zeros(4, dtype=F64), **options)
    batch = hs.solve(lambda z, c: z @ c.T + 1, torch.zeros(1, 4, dtype=F64), Shared(weight), **options)
    assert found.steps == batch.steps[0]
    torch.testing.assert_close(found.state, batch.state[0], rtol=1e-7, atol=0)
    taken = int(found.steps)
    torch.testing.assert_close(found.trace[:taken], batch.trace[0, :taken], rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_carried_and_integer_leaves_and_a_warm_start(method):
    start = (torch.zeros(3), Carry(torch.tensor(0.0)), torch.tensor(5), torch.zeros(2, 2, dtype=torch.bool))

    def step(s, c):
        z, count, whole, flags = s
        return 0.5 * z + c, Carry(count + 1), whole + 1, ~flags

    first = hs.solve(step, start, 1.0, batched=False, method=method)
    assert isinstance(first.state[1], Carry)
    assert first.state[1].value.shape == first.state[2].shape == ()
    assert first.state[1].value == first.steps == first.state[2] - 5
    assert first.state[3].shape == (2, 2)
    again = hs.solve(step, first.state, 1.0, batched=False, method=method)
    assert again.steps < first.steps
    assert again.state[2] == first.state[2] + again.steps


@pytest.mark.parametrize("method", [Picard(), Anderson()], ids=str)
def test_compiled_steps_of_one_problem(method):
    weight = matrix(4, 0.95).float()
    for step, context in (
        (lambda z: weight @ z + 1, None),
        (lambda z, c: c["w"] @ z + c["by"], {"w": weight, "by": 1.0}),
    ):
        eager, compiled = (
            hs.solve(step, torch.zeros(4), context, batched=False, compile=on, method=method, stop=Stop(1e-5))
            for on in (False, True)
        )
        assert compiled.steps == eager.steps
        torch.testing.assert_close(compiled.state, eager.state, rtol=1e-5, atol=1e-6)


def test_under_transforms():
    weight = matrix(4)

    def loss(shift):
        return one(lambda z: torch.tanh(weight @ z + shift), torch.zeros(4, dtype=F64)).state.square().sum()

    shift = torch.linspace(-1, 1, 4, dtype=F64)
    found = torch.func.grad(loss)(shift)
    for i in range(4):
        h = torch.zeros(4, dtype=F64)
        h[i] = 1e-5
        with torch.no_grad():
            assert found[i].item() == pytest.approx(((loss(shift + h) - loss(shift - h)) / 2e-5).item(), rel=1e-5)


def test_unrolled_reaches_the_start():
    start = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    found = hs.solve(lambda z: 0.5 * z, start, batched=False, stop=Stop(0, 0, 3), gradient=Unrolled())
    found.state.sum().backward()
    torch.testing.assert_close(start.grad, torch.full((2,), 0.125, dtype=F64))


# Layers


def test_a_layer_of_one_problem():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(matrix(3))

        def forward(self, z, c):
            hops, x = c
            return torch.tanh(hops @ z @ self.weight + x)

    hops, x = matrix(6).abs() / 2, torch.linspace(-1, 1, 18, dtype=F64).view(6, 3)
    layer = hs.nn.Equilibrium(Cell(), batched=False, start=lambda c: torch.zeros_like(c[1]), stop=TIGHT)
    state = layer((hops, x))
    z = torch.zeros(6, 3, dtype=F64)
    for _ in range(400):
        z = layer.cell(z, (hops, x))
    torch.testing.assert_close(state, z, rtol=1e-10, atol=1e-12)
    (got,), (wanted,) = (torch.autograd.grad(s.square().sum(), layer.cell.weight) for s in (state, z))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    assert layer.solve((hops, x)).steps.shape == ()
    assert "batched=False" in repr(layer)
    with pytest.raises(TypeError, match="batched"):
        hs.nn.Equilibrium(Cell(), batched=None)


# Edges and errors


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")  # that the start is not finite
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("gradient", [*EXACT, OneStep()], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_starts_that_are_not_finite_or_have_nothing_in_them(method, gradient, grad):
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    options = {"method": method, "gradient": gradient, "stop": Stop(1e-6)}
    with torch.set_grad_enabled(grad):
        lost = one(lambda z: weight * z + 1, torch.tensor([1.0, math.nan], dtype=F64), **options)
        assert lost.status == Status.DIVERGED
        assert lost.steps == 0
        assert torch.equal(lost.state.isnan(), torch.tensor([False, True]))
        if lost.state.requires_grad:
            lost.state.sum().backward()
            assert weight.grad == 0  # as of rows that diverged
        for shape in ((0,), (0, 3), (3, 0)):
            nothing = one(lambda z: weight * z + 1, torch.zeros(shape, dtype=F64), **options)
            assert nothing.converged
            assert nothing.state.shape == shape
        none = one(lambda z: weight * z + 1, torch.ones(2, dtype=F64), **{**options, "stop": Stop(0, 0, 0)})
        assert none.steps == 0
        assert torch.equal(none.state, torch.ones(2, dtype=F64))


def test_what_diverges_and_what_does_not_converge():
    with torch.no_grad():
        gone = hs.solve(lambda z: 1e10 * z + 1, torch.ones(2), batched=False, method=Picard())
    assert gone.status == Status.DIVERGED
    weight = torch.tensor(1.0, requires_grad=True)
    with pytest.raises(ConvergenceError):
        hs.solve(lambda z: weight - z, torch.zeros(2), batched=False, stop=Stop(max_steps=30), method=Picard(),
                 gradient=Implicit(on_failure="raise"))  # fmt: skip


@pytest.mark.parametrize("stop", [Stop(rtol=torch.tensor([1e-3])), Stop(max_steps=torch.tensor([3, 4]))])
def test_tolerances_by_row_are_refused(stop):
    with pytest.raises(ContractError, match=r"batched=False.*must be a number"):
        hs.solve(lambda z: z, torch.zeros(2), batched=False, stop=stop)


@pytest.mark.parametrize("value", [None, 0, 1, "no", torch.tensor(False)])
def test_batched_is_true_or_false(value):
    with pytest.raises(TypeError, match="batched must be True or False"):
        hs.solve(lambda z: z, torch.zeros(2), batched=value)


@pytest.mark.parametrize(
    ("state", "change", "message"),
    [
        (torch.zeros(5), lambda z: torch.cat([z, z[:1]]), r"state: float32 \(5,\) on cpu became float32 \(6,\)"),
        (torch.tensor(0.0), lambda z: z[None], r"state: float32 \(\) on cpu became float32 \(1,\)"),
        (torch.zeros(5), lambda z: z.double(), r"float32 \(5,\) on cpu became float64 \(5,\)"),
        (torch.zeros(5), lambda z: 1.0, r"float32 \(5,\) on cpu became a float"),
        (torch.zeros(5), lambda z: None, r"float32 \(5,\) on cpu became None"),
        ((torch.zeros(5), torch.zeros(2, 2)), lambda z: (z[0], z[1][0]), r"state\[1\]: float32 \(2, 2\) .* \(2,\)"),
        ({"a": torch.zeros(5)}, lambda z: {"b": z["a"]}, r"state\['a'\] is missing"),
    ],
)
def test_errors_name_the_shapes_that_the_caller_knows(state, change, message):
    with pytest.raises(ContractError, match=message) as seen:
        hs.solve(change, state, batched=False)
    assert "batch" not in str(seen.value)


@pytest.mark.parametrize("state", [3.0, None, "text", torch.zeros(3, dtype=torch.int64), torch.zeros(2) * 1j])
def test_what_is_no_state(state):
    with pytest.raises(ContractError, match="state"):
        hs.solve(lambda z: z, state, batched=False)


# What a newcomer meets first


@pytest.mark.parametrize(
    "call",
    [
        lambda: hs.solve(lambda z, c: z + c.sum(), torch.zeros(5), torch.zeros(3)),
        lambda: hs.solve(lambda z: torch.cos(z), torch.tensor(1.0)),
        lambda: hs.solve(lambda s: s, (torch.zeros(5), torch.zeros(3))),
        lambda: hs.solve(lambda z: torch.cat([z, z]), torch.zeros(5)),
        lambda: hs.solve(lambda z: z.sum(0, keepdim=True), torch.zeros(5, 2)),
    ],
)
def test_the_first_errors_lead_to_one_problem(call):
    with pytest.raises(ContractError, match="batched=False"):
        call()
