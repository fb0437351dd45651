"""Gradients in what people put around them: modules, copies, files, threads, processes, transforms."""

import copy
import pickle
import threading
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from two_processes import in_two_processes

import homeostat as hs
from homeostat import Carry, Implicit, Shared, Stop, Unrolled
from homeostat.engine import CG, GMRES, Anderson, Broyden, Neumann, NormalCG, OneStep, Phantom, Picard, Shine
from homeostat.errors import ContractError, ConvergenceWarning

# The plain loop: what these tests say about steps and states is said of its sequence.
solve = partial(hs.solve, method=hs.Picard())

F64 = torch.float64
TIGHT = Stop(1e-12, 0.0, 1000)
EXACT = [Implicit(method=m, stop=TIGHT) for m in (Picard(), Anderson(), GMRES(), NormalCG())]
MODES = [*EXACT, OneStep(), Phantom(), Neumann(), Unrolled(), Unrolled(last=3)]


class Layer(nn.Module):
    """A deep equilibrium layer as somebody would write it, with a dropout that must not come alive."""

    def __init__(self, gradient, stop=TIGHT) -> None:
        super().__init__()
        self.cell, self.drop = nn.Linear(4, 4, dtype=F64), nn.Dropout(0.0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.cell.weight.copy_(0.3 * torch.randn(4, 4, generator=generator, dtype=F64))
            self.cell.bias.fill_(0.1)
        self.gradient, self.stop = gradient, stop

    def forward(self, x: Tensor) -> Tensor:
        def step(z, c):
            return torch.tanh(self.drop(self.cell(z)) + c)

        return solve(step, torch.zeros_like(x), x, stop=self.stop, gradient=self.gradient).state


X = torch.linspace(-1, 1, 12, dtype=F64).view(3, 4)


def gradients(layer: nn.Module, x: Tensor = X) -> list[Tensor]:
    return list(torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())))


@pytest.mark.parametrize("gradient", MODES)
def test_eval_changes_nothing(gradient):
    layer = Layer(gradient)
    trained = gradients(layer.train())
    for got, wanted in zip(gradients(layer.eval()), trained, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("gradient", MODES)
def test_one_layer_twice_before_one_backward(gradient):
    layer = Layer(gradient)
    both = torch.autograd.grad(layer(X).square().sum() + layer(2 * X).square().sum(), list(layer.parameters()))
    for got, one, two in zip(both, gradients(layer), gradients(layer, 2 * X), strict=True):
        torch.testing.assert_close(got, one + two, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gradient", MODES)
def test_one_layer_fed_into_itself(gradient):
    layer, other = Layer(gradient), Layer(Unrolled())
    found = gradients(nn.Sequential(layer, layer))
    if gradient in EXACT:
        for got, wanted in zip(found, gradients(nn.Sequential(other, other)), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("gradient", MODES)
def test_backward_again_adds_the_same_again(gradient):
    layer = Layer(gradient)
    loss = layer(X).square().sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    loss.backward()
    assert len(once) == 2
    for p, first in zip(layer.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * first, rtol=1e-14, atol=0)


@pytest.mark.parametrize("gradient", [EXACT[0], EXACT[2], Phantom(), Unrolled(checkpoint=True)])
def test_backward_in_another_thread(gradient):
    layer = Layer(gradient)
    loss = layer(X).square().sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    for p, wanted in zip(layer.parameters(), gradients(layer), strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, wanted)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("gradient", [EXACT[0], OneStep()])
def test_modules_can_be_copied_and_stored_after_a_backward(gradient, copied):
    layer = Layer(gradient)
    wanted = gradients(layer)
    for got, expected in zip(gradients(copied(layer)), wanted, strict=True):
        assert torch.equal(got, expected)


OPTIONS = [
    *MODES, Shine(), Implicit(on_failure="mask"), Unrolled(checkpoint=True), Picard(0.5), Anderson(3), Broyden(),
    CG(), GMRES(), NormalCG(), Stop(1e-3), Shared(1.5),
]  # fmt: skip


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_options_can_be_copied_and_stored(copied):
    assert [copied(option) for option in OPTIONS] == OPTIONS


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_solutions_can_be_copied_and_stored(copied):
    start = (torch.zeros(2, 3), Carry(torch.zeros(2)))
    with torch.no_grad():
        solution = solve(lambda s, _: (0.5 * s[0] + 1, s[1] + 1), start)
    other = copied(solution)
    assert torch.equal(other.state[0], solution.state[0])
    assert torch.equal(other.state[1].value, solution.state[1].value)
    assert torch.equal(other.status, solution.status)
    assert repr(other) == repr(solution)


def test_the_adjoints_log_can_be_stored():
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    solution = solve(lambda z, _: weight * z + 1, torch.zeros(2, 3, dtype=F64))
    solution.state.sum().backward()
    other = pickle.loads(pickle.dumps(solution.adjoint))
    assert solution.adjoint is not None
    assert torch.equal(other.residual, solution.adjoint.residual)


@pytest.mark.parametrize("gradient", MODES)
def test_inference_mode_keeps_no_graph(gradient):
    layer = Layer(gradient)
    with torch.inference_mode():
        state = layer(X)
    assert state.is_inference()
    assert torch.equal(state, layer(X))


@pytest.mark.parametrize(
    "gradient", [Implicit(), Implicit(method=GMRES()), OneStep(), Phantom(), Neumann(), Unrolled(checkpoint=True)]
)
def test_autocast_trains_without_a_warning(gradient):
    # float32 states, bfloat16 products: the adjoint's tolerance is what those can reach.
    layer = Layer(gradient, Stop(3e-2)).float()
    exact = Layer(Implicit(stop=Stop(1e-6)), Stop(1e-6)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            state = layer(X.float())
        assert state.dtype == torch.float32
        state.square().sum().backward()
    if isinstance(gradient, Implicit):
        exact(X.float()).square().sum().backward()
        error = (layer.cell.weight.grad - exact.cell.weight.grad).norm() / exact.cell.weight.grad.norm()
        assert error < 0.1


# torch.func


@pytest.mark.parametrize("gradient", MODES)
def test_func_grad(gradient):
    layer = Layer(gradient)
    found = grad(lambda p: functional_call(layer, p, (X,)).square().sum())(dict(layer.named_parameters()))
    for got, wanted in zip(found.values(), gradients(layer), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gradient", MODES)
def test_jacrev(gradient):
    layer = Layer(gradient)
    jacobian = jacrev(layer)(X)
    x = X.clone().requires_grad_()
    state = layer(x)
    for index in ((0, 0), (2, 3)):
        (wanted,) = torch.autograd.grad(state[index], x, retain_graph=True)
        torch.testing.assert_close(jacobian[index], wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("gradient", [EXACT[0], EXACT[2], Neumann()])
def test_func_second_derivatives_raise(gradient):
    with pytest.raises(RuntimeError):
        jacrev(grad(lambda x: Layer(gradient)(x).square().sum()))(X)


def test_hessians_of_unrolled():
    found = jacrev(grad(lambda x: Layer(Unrolled())(x).square().sum()))(X)
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(Layer(Unrolled())(x).square().sum(), x, create_graph=True)
    (wanted,) = torch.autograd.grad(first[1, 2], x)
    torch.testing.assert_close(found[1, 2], wanted, rtol=1e-10, atol=1e-12)


def test_checkpoints_under_func_say_that_they_cannot():
    with pytest.raises(ContractError, match=r"checkpoint=True.* cannot run under torch.func"):
        grad(lambda x: Layer(Unrolled(checkpoint=True))(x).sum())(X)


@pytest.mark.parametrize("gradient", [*MODES, Unrolled(checkpoint=True)])
def test_gradients_in_batches_are_those_one_by_one(gradient):
    layer = Layer(gradient)
    x = X.clone().requires_grad_()
    state = layer(x)
    basis = torch.eye(12, dtype=F64).view(12, 3, 4)
    inputs = [x, *layer.parameters()]
    found = torch.autograd.grad(state, inputs, basis, is_grads_batched=True, retain_graph=True)
    for k in (0, 11):
        wanted = torch.autograd.grad(state, inputs, basis[k], retain_graph=True)
        for batch, one in zip(found, wanted, strict=True):
            torch.testing.assert_close(batch[k], one, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, of forward mode
@pytest.mark.parametrize("gradient", MODES)
def test_vectorised_jacobians_are_those_row_by_row(gradient):
    layer = Layer(gradient)
    wanted = torch.autograd.functional.jacobian(layer, X[:1])
    torch.testing.assert_close(torch.autograd.functional.jacobian(layer, X[:1], vectorize=True), wanted)
    if gradient == Unrolled(last=3):
        return  # a truncation has no tangents
    forward = torch.autograd.functional.jacobian(layer, X[:1], vectorize=True, strategy="forward-mode")
    torch.testing.assert_close(forward, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, of forward mode
@pytest.mark.parametrize("gradient", MODES)
def test_vectorised_hessians_are_those_row_by_row_or_refused(gradient):
    layer = Layer(gradient)

    def loss(x: Tensor) -> Tensor:
        return layer(x).cos().sum()

    if gradient == Neumann():
        with pytest.raises(RuntimeError, match="Neumann has no second derivative"):
            torch.autograd.functional.hessian(loss, X[:1], vectorize=True)
        return
    wanted = torch.autograd.functional.hessian(loss, X[:1])
    torch.testing.assert_close(torch.autograd.functional.hessian(loss, X[:1], vectorize=True), wanted)
    if gradient in EXACT:
        with pytest.raises(ContractError, match="forward-mode"):
            torch.autograd.functional.hessian(loss, X[:1], vectorize=True, outer_jacobian_strategy="forward-mode")


# Several processes


def _train(rank: int) -> list[Tensor]:
    layer = nn.parallel.DistributedDataParallel(Layer(Implicit(method=Picard(), stop=TIGHT)))
    layer(X * (rank + 1)).square().sum().backward()
    return [p.grad for p in layer.parameters() if p.grad is not None]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_distributed_data_parallel(tmp_path):
    layer = Layer(Implicit(method=Picard(), stop=TIGHT))
    for found in in_two_processes(_train, tmp_path):
        for got, one, two in zip(found, gradients(layer), gradients(layer, 2 * X), strict=True):
            torch.testing.assert_close(got, (one + two) / 2, rtol=1e-12, atol=1e-14)
