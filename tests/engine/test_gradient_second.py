"""Second derivatives, forward mode, `vmap`, and gradients where a model is compiled: against differences and loops."""

import itertools
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from draws import random
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from two_processes import in_two_processes

import homeostat as hs
from homeostat import Implicit, Shared, Stop, Unrolled
from homeostat.engine import GMRES, Anderson, Broyden, Neumann, NormalCG, OneStep, Phantom, Picard, Shine
from homeostat.errors import CompileWarning, ContractError, ConvergenceWarning

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, of its first `jvp`

F64 = torch.float64
TIGHT = Stop(1e-13, 0.0, 20_000)
ADJOINTS = [Implicit(stop=TIGHT), *(Implicit(m, TIGHT) for m in (Picard(), Anderson(), GMRES(), NormalCG()))]


def scaled(matrix: Tensor, norm: float) -> Tensor:
    return matrix * norm / torch.linalg.matrix_norm(matrix, 2)


class Case:
    """A map with parameters; `state` solves it from them, `loss` weighs every entry differently."""

    def __init__(self, step: Any, start: Any, *parameters: Tensor) -> None:
        self.step, self.start = step, start
        self.parameters = [p.clone().requires_grad_() for p in parameters]

    def loss(self, gradient: Any, *parameters: Tensor) -> Tensor:
        first, *weights = parameters or self.parameters
        state = hs.solve(
            partial(self.step, weights), self.start, first, method=Picard(), stop=TIGHT, gradient=gradient
        ).state
        leaves = state if isinstance(state, tuple) else (state,)
        return sum((torch.cos(x + i) * (1 + random(50 + i, *x.shape))).sum() for i, x in enumerate(leaves))


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=F64)


def two_tensors(weights: list[Tensor], s: tuple[Tensor, Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
    (a, b), (z, y) = weights, s
    return torch.tanh(z @ a.T + y @ b + c), torch.tanh(0.5 * z @ b.T + 0.3 * y)


NON_NORMAL = 0.5 * torch.eye(4, dtype=F64) + torch.diag(torch.ones(3, dtype=F64), 1)
CASES = {
    "linear": Case(lambda w, z, c: z @ w[0].T + c, zeros(3, 4), random(1, 3, 4), scaled(random(0, 4, 4), 0.8)),
    "non-normal": Case(lambda w, z, c: z @ w[0].T + c, zeros(3, 4), random(1, 3, 4), NON_NORMAL),
    **{
        f"tanh {gain}": Case(
            lambda w, z, c, gain=gain: torch.tanh(gain * z @ w[0].T + c + w[1] * 0.1), zeros(3, 5),
            0.1 * random(5, 3, 5), scaled(random(3, 5, 5), 1.0), random(4, 5),
        )
        for gain in (0.5, 0.9, 0.99)
    },
    "orthogonal tanh 0.9": Case(
        lambda w, z, c: torch.tanh(0.9 * z @ w[0].T + c), zeros(3, 5), 0.01 * random(7, 3, 5),
        torch.linalg.qr(random(6, 5, 5)).Q,
    ),
    "conv": Case(
        lambda w, z, c: torch.tanh(nn.functional.conv2d(z, w[0], padding=1) + c), zeros(2, 3, 4, 5),
        random(9, 2, 3, 4, 5), 0.1 * random(8, 3, 3, 3, 3),
    ),
    "two tensors": Case(
        two_tensors, (zeros(2, 4), zeros(2, 3)), random(12, 2, 4), scaled(random(10, 4, 4), 0.5),
        scaled(random(11, 3, 4), 0.5),
    ),
}  # fmt: skip


def slope(function: Any, parameter: Tensor, direction: Tensor) -> float:
    """Central differences along a direction, extrapolated."""
    base = parameter.detach().clone()
    table = []
    for h in (2e-3, 1e-3, 5e-4):
        values = []
        for sign in (1, -1):
            parameter.data = base + sign * h * direction
            values.append(function().item())
        table.append((values[0] - values[1]) / (2 * h))
    parameter.data = base
    for order in (4, 16):
        table = [(order * fine - coarse) / (order - 1) for coarse, fine in itertools.pairwise(table)]
    return table[0]


@pytest.mark.parametrize("gradient", ADJOINTS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_hessian_vector_products_are_those_of_central_differences(name, gradient):
    case = CASES[name]
    vectors = [random(70 + i, *p.shape) for i, p in enumerate(case.parameters)]

    def directional() -> Tensor:
        grads = torch.autograd.grad(case.loss(gradient), case.parameters, create_graph=True)
        return sum((g * v).sum() for g, v in zip(grads, vectors, strict=True))

    products = torch.autograd.grad(directional(), case.parameters)
    for k, parameter in enumerate(case.parameters):
        direction = random(90 + k, *parameter.shape)
        direction = direction / direction.norm()
        wanted = slope(directional, parameter, direction)
        assert float((products[k] * direction).sum()) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("gradient", ADJOINTS[:2], ids=str)
def test_derivatives_of_every_order(gradient):
    weight = torch.tensor(0.4, dtype=F64, requires_grad=True)

    def values(loss: Tensor) -> list[float]:
        found = []
        for _ in range(4):
            (loss,) = torch.autograd.grad(loss, weight, create_graph=True)
            found.append(loss.item())
        return found

    state = hs.solve(lambda z, _: torch.tanh(weight * z + weight), zeros(2, 3), method=Picard(), stop=TIGHT,
                     gradient=gradient).state  # fmt: skip
    z = zeros(2, 3)
    for _ in range(120):
        z = torch.tanh(weight * z + weight)
    assert values(state.square().sum()) == pytest.approx(values(z.square().sum()), rel=1e-9)


def test_first_and_second_derivatives_in_one_backward_pass():
    case = CASES["tanh 0.9"]
    found = []
    for gradient in (ADJOINTS[0], Unrolled()):
        loss = case.loss(gradient)
        grads = torch.autograd.grad(loss, case.parameters, create_graph=True)
        total = loss + sum(g.square().sum() for g in grads)
        found.append(torch.autograd.grad(total, case.parameters))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("gradient", ADJOINTS, ids=str)
def test_whole_hessians(gradient):
    case = CASES["tanh 0.5"]
    weights = [p.detach() for p in case.parameters[1:]]
    x = case.parameters[0].detach()
    found = torch.autograd.functional.hessian(lambda x: case.loss(gradient, x, *weights), x)
    wanted = torch.autograd.functional.hessian(lambda x: case.loss(Unrolled(), x, *weights), x)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
@pytest.mark.parametrize("on_failure", ["mask", "fallback"])
def test_a_second_derivative_leaves_rows_out_that_have_no_gradient(on_failure):
    rate = torch.tensor([[0.5], [0.8], [1.5]], dtype=F64)  # the last one has no fixed point
    weight = torch.tensor(1.0, dtype=F64, requires_grad=True)

    def second(rows: Tensor) -> float:
        state = hs.solve(
            lambda z, c: weight * c * z + 1, zeros(len(rows), 2), rows, method=Picard(),
            stop=Stop(1e-12, max_steps=300), gradient=Implicit(GMRES(), TIGHT, on_failure),
        ).state  # fmt: skip
        (first,) = torch.autograd.grad(state[:2].sum(), weight, create_graph=True)
        return torch.autograd.grad(first, weight)[0].item()

    assert second(rate) == pytest.approx(second(rate[:2]), rel=1e-9)


def test_second_derivatives_under_torch_func_are_refused():
    case = CASES["tanh 0.5"]

    def loss(x: Tensor) -> Tensor:
        return case.loss(ADJOINTS[0], x, *[p.detach() for p in case.parameters[1:]])

    x = case.parameters[0].detach()
    for refused in (hessian(loss), jacrev(grad(loss)), lambda x: jvp(grad(loss), (x,), (x,))):
        with pytest.raises((ContractError, RuntimeError), match=r"second derivative|Unrolled\(\)"):
            refused(x)
    own = x.clone().requires_grad_()
    with forward_ad.dual_level():
        value = loss(forward_ad.make_dual(own, x))
        with pytest.raises(ContractError, match="second derivative"):
            torch.autograd.grad(value, own)


@pytest.mark.parametrize("kind", ["spectral", "weight"])
def test_a_layer_with_parametrised_weights_has_second_derivatives(kind):
    torch.manual_seed(0)
    cell = hs.nn.normalise(nn.Sequential(nn.Linear(5, 5, dtype=F64)), kind).eval()
    layer = hs.nn.Equilibrium(
        lambda z, c: torch.tanh(0.5 * cell(z) + c), stop=TIGHT, gradient=ADJOINTS[0], method=Picard()
    )
    whole = hs.nn.Equilibrium(_Wrapped(cell), stop=TIGHT, gradient=ADJOINTS[0], method=Picard())
    found = []
    for made in (layer, whole):
        grads = torch.autograd.grad(made(X).cos().sum(), list(cell.parameters()), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), list(cell.parameters())))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("of", ["weight", "context"])
@pytest.mark.parametrize("how", ["in place", "data", "numpy"])
def test_weights_that_are_others_at_the_second_derivative(how, of):
    weight, x = WEIGHT.clone().requires_grad_(), X.clone().requires_grad_()
    first = torch.autograd.grad(state_of(ADJOINTS[0], x, weight).cos().sum(), (weight, x), create_graph=True)
    if how == "in place":
        with torch.no_grad():
            weight.mul_(0.5)
    elif how == "data":
        weight.data.mul_(0.5)
    else:
        weight.detach().numpy()[0, 0] += 0.1
    with pytest.raises(ContractError, match=r"changed before backward"):
        torch.autograd.grad(first[of == "context"].square().sum(), (weight, x))


class _Wrapped(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(0.5 * self.cell(z) + c)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")  # PyTorch's, of reference cycles
@pytest.mark.parametrize("graph", [False, True])
def test_hooks_and_kept_gradients_see_a_gradient_once(graph):
    weight = torch.tensor([0.3], dtype=F64, requires_grad=True)
    calls = []
    weight.register_hook(lambda g: calls.append(1) or 0.5 * g)
    context = (2 * torch.ones(2, 1, dtype=F64, requires_grad=True)) * 0.5
    context.retain_grad()
    state = hs.solve(
        lambda z, c: torch.tanh(weight * z + c), zeros(2, 1), context, stop=TIGHT, gradient=ADJOINTS[0]
    ).state
    state.sum().backward(create_graph=graph)
    z = zeros(2, 1)
    own, x = torch.tensor([0.3], dtype=F64, requires_grad=True), torch.ones(2, 1, dtype=F64, requires_grad=True)
    for _ in range(200):
        z = torch.tanh(own * z + x)
    wanted = torch.autograd.grad(z.sum(), (own, x))
    torch.testing.assert_close(weight.grad, 0.5 * wanted[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(context.grad, wanted[1], rtol=1e-9, atol=0)
    assert len(calls) == 1


class Once(torch.autograd.Function):
    """A custom operation as many write it, without a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


@pytest.mark.parametrize("gradient", ADJOINTS[:2], ids=str)
def test_an_operation_without_a_second_derivative_is_refused_and_not_taken_for_zero(gradient):
    weight = WEIGHT.clone().requires_grad_()
    state = hs.solve(lambda z, c: Once.apply(z @ weight.T + c), zeros(3, 5), X, stop=TIGHT, gradient=gradient).state
    (first,) = torch.autograd.grad(state.cos().sum(), weight, create_graph=True)
    wanted = torch.autograd.grad(state_of(gradient, X, weight).cos().sum(), weight)[0]
    torch.testing.assert_close(first, wanted, rtol=1e-9, atol=1e-11)
    with pytest.raises(RuntimeError, match=r"differentiate[d]? twice"):
        torch.autograd.grad(first.sum(), weight)


# Forward mode

MODES = [*ADJOINTS, OneStep(), Phantom(), Neumann(), Unrolled(), Shine()]


def state_of(gradient: Any, x: Tensor, weight: Tensor) -> Tensor:
    method = Broyden() if isinstance(gradient, Shine) else Picard()
    return hs.solve(
        lambda z, c: torch.tanh(z @ weight.T + c), torch.zeros_like(x), x, method=method, stop=TIGHT, gradient=gradient
    ).state


WEIGHT, X = scaled(random(20, 5, 5), 0.9), random(21, 3, 5)


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_forward_mode_is_the_transpose_of_reverse_mode(gradient, dual):
    # <u, J v> = <J^T u, v>, for the exact gradients and for those that are not.
    tangents, cotangent = (random(22, 3, 5), random(23, 5, 5)), random(24, 3, 5)
    if dual:
        with forward_ad.dual_level():
            pairs = (forward_ad.make_dual(p, t) for p, t in zip((X, WEIGHT), tangents, strict=True))
            forward = forward_ad.unpack_dual(state_of(gradient, *pairs)).tangent
    else:
        _, forward = jvp(partial(state_of, gradient), (X, WEIGHT), tangents)
    primals = [X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()]
    backward = torch.autograd.grad(state_of(gradient, *primals), primals, cotangent)
    along = sum((b * t).sum() for b, t in zip(backward, tangents, strict=True))
    if not isinstance(gradient, Shine):  # which takes the one-step gradient where its estimate is too large
        torch.testing.assert_close((forward * cotangent).sum(), along, rtol=1e-9, atol=1e-11)
    assert torch.isfinite(forward).all()


@pytest.mark.parametrize("gradient", [*ADJOINTS, Unrolled(), OneStep()], ids=str)
def test_jacobians_in_forward_mode(gradient):
    forward = jacfwd(partial(state_of, gradient))(X, WEIGHT)
    torch.testing.assert_close(forward, jacrev(partial(state_of, gradient))(X, WEIGHT), rtol=1e-9, atol=1e-11)


def test_transforms_without_gradients_around_them():
    wanted = grad(lambda x: state_of(ADJOINTS[1], x, WEIGHT).sum())(X)
    with torch.no_grad():
        torch.testing.assert_close(grad(lambda x: state_of(ADJOINTS[1], x, WEIGHT).sum())(X), wanted)
        with pytest.raises(ContractError, match="no_grad"):  # rather than a wrong one
            grad(lambda x: state_of(ADJOINTS[4], x, WEIGHT).sum())(X)


def test_a_truncation_has_no_tangents():
    with pytest.raises(ContractError, match=r"last=None"):
        jvp(lambda x: state_of(Unrolled(last=3), x, WEIGHT), (X,), (X,))


# vmap

BATCH = random(30, 4, 3, 5)
WEIGHTS = torch.stack([scaled(random(31 + i, 5, 5), 0.3 + 0.2 * i) for i in range(4)])


def declared(x: Tensor, weight: Tensor, gradient: Any = ADJOINTS[0], method: Any = None) -> Tensor:
    context = {"x": x, "w": Shared({"weight": weight})}
    return hs.solve(
        lambda z, c: torch.tanh(z @ c["w"]["weight"].T + c["x"]), torch.zeros_like(x), context, method=method,
        stop=TIGHT, gradient=gradient,
    ).state  # fmt: skip


@pytest.mark.parametrize("method", [Picard(), Anderson(), Broyden()], ids=str)
def test_vmap_over_states_and_contexts(method):
    def one(x: Tensor, start: Tensor) -> Tensor:
        return hs.solve(lambda z, c: torch.tanh(z @ WEIGHT.T + c), start, x, method=method, stop=TIGHT).state

    wanted = torch.stack([one(x, 0 * x) for x in BATCH])
    torch.testing.assert_close(vmap(one)(BATCH, 0 * BATCH), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(vmap(one, (0, None))(BATCH, 0 * BATCH[0]), wanted, rtol=1e-10, atol=1e-12)
    moved = vmap(one, (2, 2), 2)(BATCH.movedim(0, 2), 0 * BATCH.movedim(0, 2))
    torch.testing.assert_close(moved.movedim(2, 0), wanted, rtol=1e-10, atol=1e-12)
    nested = vmap(vmap(lambda x: one(x[None], 0 * x[None])[0]))(BATCH)
    torch.testing.assert_close(nested, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gradient", [ADJOINTS[0], OneStep(), Unrolled()], ids=str)
def test_vmap_over_declared_parameters_and_gradients_through_it(gradient):
    one = partial(declared, gradient=gradient)
    wanted = torch.stack([one(x, w) for x, w in zip(BATCH, WEIGHTS, strict=True)])
    torch.testing.assert_close(vmap(one)(BATCH, WEIGHTS), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        vmap(one, (None, 0))(BATCH[0], WEIGHTS),
        torch.stack([one(BATCH[0], w) for w in WEIGHTS]),
        rtol=1e-10,
        atol=1e-12,
    )
    leaves = [BATCH.clone().requires_grad_(), WEIGHTS.clone().requires_grad_()]
    mapped = torch.autograd.grad(vmap(one)(*leaves).cos().sum(), leaves)
    loops = torch.autograd.grad(torch.stack([one(x, w) for x, w in zip(*leaves, strict=True)]).cos().sum(), leaves)
    inside = grad(lambda x, w: vmap(one)(x, w).cos().sum(), (0, 1))(BATCH, WEIGHTS)
    for a, b, c in zip(mapped, loops, inside, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(c, b, rtol=1e-9, atol=1e-11)


def test_vmap_of_everything_that_a_solution_says():
    def one(x: Tensor) -> tuple[Tensor, ...]:
        solution = hs.solve(lambda z, c: c[:, :1] * z + 1, torch.zeros_like(x), x, method=Picard(), trace=True)
        return solution.steps, solution.status, solution.residual, solution.trace

    rates = BATCH.sigmoid() * 0.9
    steps, status, residual, trace = vmap(one)(rates)
    for i, x in enumerate(rates):
        alone = hs.solve(lambda z, c: c[:, :1] * z + 1, torch.zeros_like(x), x, method=Picard(), trace=True)
        assert torch.equal(steps[i], alone.steps)
        assert torch.equal(status[i], alone.status)
        torch.testing.assert_close(residual[i], alone.residual)
        torch.testing.assert_close(trace[i, :, : alone.trace.shape[1]], alone.trace, equal_nan=True)


def test_vmap_of_leaves_that_are_carried():
    def one(x: Tensor) -> tuple[Tensor, Tensor]:
        start = (torch.zeros_like(x), hs.Carry(zeros(3)), torch.zeros(3, dtype=torch.int64))
        solution = hs.solve(lambda s, c: (0.5 * s[0] + c, s[1] + 1, s[2] + 1), start, x, method=Picard())
        return solution.state[1].value, solution.state[2]

    carried, whole = vmap(one)(BATCH)
    for i, x in enumerate(BATCH):
        assert torch.equal(carried[i], one(x)[0])
        assert torch.equal(whole[i], one(x)[1])


def test_vmap_with_limits_by_row():
    limits = torch.tensor([2, 5, 9])

    def one(x: Tensor, limits: Tensor) -> Tensor:
        stop = Stop(rtol=0, max_steps=limits)
        return hs.solve(lambda z, c: 0.5 * z + c, torch.zeros_like(x), x, method=Picard(), stop=stop).steps

    assert torch.equal(vmap(one, (0, None))(BATCH, limits), limits.expand(4, 3))


def test_vmap_over_what_step_closes_over_is_refused_by_name():
    def one(x: Tensor, own_weight: Tensor) -> Tensor:
        return state_of(ADJOINTS[0], x, own_weight)

    with pytest.raises(ContractError, match=r"closes over weight, .*Shared"):
        vmap(one)(BATCH, WEIGHTS)
    with pytest.raises(ContractError, match="vmap that is outside of grad"):
        vmap(grad(lambda x: state_of(ADJOINTS[0], x, WEIGHT).sum()))(BATCH)


class _Slots:
    __slots__ = ("own",)

    def __init__(self, own: Tensor) -> None:
        self.own = own


class _Deep:
    """Something that gives its tensor out where nobody can look for it."""

    def __init__(self, own: Tensor) -> None:
        self._all = iter([own] * 10_000)

    @property
    def own(self) -> Tensor:
        return next(self._all)


def hidden(kind: Any, x: Tensor, weight: Tensor, **options: Any) -> Tensor:
    hides = kind(weight)
    return hs.solve(lambda z, c: torch.tanh(z @ hides.own.T + c), torch.zeros_like(x), x, **options).state


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", [_Slots, _Deep])
def test_vmap_over_what_step_hides_is_refused_in_one_line(kind, gradients):
    one = partial(hidden, kind)
    calls = [
        lambda: vmap(one)(BATCH, WEIGHTS),
        lambda: vmap(one, (None, 0))(BATCH[0], WEIGHTS),  # nothing else is mapped over
        lambda: vmap(partial(one, batched=False))(BATCH[:, 0], WEIGHTS),
        lambda: grad(lambda w: vmap(one)(BATCH, w).sum())(WEIGHTS),
        lambda: vmap(grad(lambda w: one(BATCH[0], w).sum()))(WEIGHTS),
    ]
    for k, call in enumerate(calls):
        if kind is _Deep and k == 2:
            continue  # a row for each weight, beside which it stands: the same as if it had been declared
        with torch.set_grad_enabled(gradients), pytest.raises(ContractError, match=r"vmap .*Shared") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_vmap_over_declared_parameters_refuses_others_that_are_hidden():
    def one(x: Tensor, weight: Tensor) -> Tensor:
        hides, context = _Deep(weight), {"x": x, "w": Shared(weight)}
        return hs.solve(
            lambda z, c: torch.tanh(z @ c["w"].T @ hides.own.T + c["x"]), torch.zeros_like(x), context
        ).state

    with pytest.raises(ContractError, match="vmap"):
        vmap(one)(BATCH, WEIGHTS)


def test_parameters_of_a_module_are_tangents_too():
    cell = nn.Linear(5, 5, dtype=F64)
    with torch.no_grad():
        cell.weight.copy_(WEIGHT)
    params = {name: p.detach() for name, p in cell.named_parameters()}
    tangents = {name: random(40 + i, *p.shape) for i, (name, p) in enumerate(params.items())}

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor) -> Tensor:
            return hs.solve(lambda z, c: torch.tanh(self.cell(z) + c), torch.zeros_like(x), x, stop=TIGHT,
                            gradient=ADJOINTS[0]).state  # fmt: skip

    layer = Layer()

    def at(h: float) -> Tensor:
        return functional_call(layer, {f"cell.{n}": p + h * tangents[n] for n, p in params.items()}, (X,))

    _, found = jvp(
        lambda p: functional_call(layer, {f"cell.{n}": x for n, x in p.items()}, (X,)), (params,), (tangents,)
    )
    torch.testing.assert_close(found, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-8)


# Compiled models


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        with torch.no_grad():
            self.linear.weight.copy_(scaled(random(60, 8, 8), 0.8))
            self.linear.bias.fill_(0.1)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(self.linear(z) + c)


class Net(nn.Module):
    def __init__(self, cell: nn.Module, gradient: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.layer = hs.nn.Equilibrium(cell, stop=Stop(1e-6), gradient=gradient)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(torch.tanh(self.encoder(x)))))


def net_gradients(net: nn.Module) -> list[Tensor]:
    net.zero_grad()
    net(random(61, 12, 4).float()).square().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


COMPILED = [Implicit(), Implicit(NormalCG()), Implicit(on_failure="raise"), OneStep(), Phantom(), Neumann(), Unrolled()]


@pytest.mark.filterwarnings("ignore:.*The .grad attribute:UserWarning")  # the compiler's own
@pytest.mark.parametrize("gradient", COMPILED, ids=str)
@pytest.mark.parametrize("what", ["net", "cell", "cell in place"])
def test_compiled_models_have_the_eager_gradient_and_say_nothing(what, gradient):
    wanted = net_gradients(Net(Cell(), gradient))
    torch._dynamo.reset()
    cell = Cell()
    if what == "cell":
        cell = torch.compile(cell, backend="aot_eager")
    elif what == "cell in place":
        cell.compile(backend="aot_eager")
    net = Net(cell, gradient)
    net = torch.compile(net, backend="aot_eager") if what == "net" else net
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        warnings.simplefilter("error", CompileWarning)
        for _ in range(2):
            for got, right in zip(net_gradients(net), wanted, strict=True):
                torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*The .grad attribute:UserWarning")  # the compiler's own
def test_a_compiled_net_does_not_trace_the_engine():
    torch._dynamo.reset()
    seen = []

    def count(module: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.append(sum(node.op == "call_function" for node in module.graph.nodes))
        return module.forward

    net_gradients(torch.compile(Net(Cell(), Implicit()), backend=count))
    torch._dynamo.reset()
    assert len(seen) == 2  # before the layer, and behind it
    assert max(seen) < 10


# Several processes


RANKS = [Implicit(stop=TIGHT), Unrolled(), OneStep()]


def _train(rank: int) -> list[Tensor]:
    found = []
    for gradient in RANKS:
        layer = nn.parallel.DistributedDataParallel(_Explosive(gradient))
        layer(rank).square().sum().backward()
        found += [p.grad for p in layer.parameters()]
    return found


class _Explosive(nn.Module):
    """Rows of the process 1 have no fixed point: all of them diverge."""

    def __init__(self, gradient: Any) -> None:
        super().__init__()
        self.gradient, self.weight = gradient, nn.Parameter(torch.tensor(1.0, dtype=F64))

    def forward(self, rank: int) -> Tensor:
        rate = torch.full((3, 1), 90.0 if rank else 0.2, dtype=F64)
        return hs.solve(
            lambda z, c: self.weight * c * z * z + 1, zeros(3, 2), rate, method=Picard(), stop=Stop(1e-12),
            gradient=self.gradient,
        ).state  # fmt: skip


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_one_process_whose_rows_all_diverge_does_not_hold_up_the_others(tmp_path):
    for found in in_two_processes(_train, tmp_path):
        for got, gradient in zip(found, RANKS, strict=True):
            good = _Explosive(gradient)
            good(0).square().sum().backward()
            torch.testing.assert_close(got, good.weight.grad / 2, rtol=1e-9, atol=0)
