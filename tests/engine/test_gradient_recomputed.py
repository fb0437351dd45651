"""Steps whose backward pass computes or fetches something then: it is what was recorded, or an error says so."""

from typing import Any

import pytest
import torch
from draws import random
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import homeostat as hs
from homeostat import Implicit, Stop, Unrolled
from homeostat.engine import GMRES, Broyden, Neumann, NormalCG, OneStep, Phantom, Picard, Shine
from homeostat.errors import ContractError

F64 = torch.float64
TIGHT = Stop(1e-12, 0.0, 2000)
RECORDED = [
    Implicit(stop=TIGHT), Implicit(GMRES(), TIGHT), Implicit(NormalCG(), TIGHT), OneStep(), Phantom(), Neumann(3),
    Shine(),
]  # fmt: skip
X = torch.linspace(-1, 1, 12, dtype=F64).view(3, 4)


def loss(step: Any, gradient: Any) -> Tensor:
    method = Broyden() if isinstance(gradient, Shine) else Picard()
    return (
        hs.solve(step, torch.zeros(3, 4, dtype=F64), X, method=method, stop=TIGHT, gradient=gradient).state.cos().sum()
    )


def weight() -> Tensor:
    return (0.5 * torch.eye(4, dtype=F64) + 0.1 * random(0, 4, 4)).requires_grad_()


class Cell(nn.Module):
    """A step that checkpoints itself, and reaches a weight, a buffer, its mode and a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(weight().detach()), 0.9
        self.register_buffer("shift", torch.full((4,), 0.1, dtype=F64))

    def inner(self, z: Tensor, c: Tensor) -> Tensor:
        gate = 0.8 if self.training else 1.0
        return torch.tanh(gate * self.gain * z @ self.weight + c + self.shift * z)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return checkpoint(self.inner, z, c, use_reentrant=False)


class Plain(Cell):
    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return self.inner(z, c)


def gain(cell: Cell) -> None:
    cell.gain = 0.5


def mode(cell: Cell) -> None:
    cell.eval()


def buffer(cell: Cell) -> None:
    cell.shift.data.fill_(0.3)


def weights(cell: Cell) -> None:
    cell.weight.detach().numpy()[0] *= 1.01


def broken(cell: Cell) -> None:
    cell.gain = None


@pytest.mark.parametrize("change", [gain, mode, buffer, weights, broken])
@pytest.mark.parametrize("gradient", RECORDED, ids=str)
def test_a_checkpoint_that_computes_something_else_by_then_is_refused(gradient, change):
    cell, plain = Cell(), Plain()
    wanted = torch.autograd.grad(loss(plain, gradient), plain.weight)
    torch.testing.assert_close(torch.autograd.grad(loss(cell, gradient), cell.weight), wanted, rtol=1e-9, atol=1e-11)
    value = loss(cell, gradient)
    change(cell)
    with pytest.raises(ContractError, match="checkpoint") as caught:
        torch.autograd.grad(value, cell.weight)
    if change is mode:
        assert "train() and eval()" in " ".join(caught.value.__notes__)


@pytest.mark.parametrize("gradient", RECORDED, ids=str)
def test_a_variable_in_the_closure_of_a_checkpoint_is_named(gradient):
    w, rate = weight(), [0.3]

    def step(z: Tensor, c: Tensor) -> Tensor:
        return checkpoint(lambda z, c: torch.tanh(rate[0] * z @ w + c), z, c, use_reentrant=False)

    value = loss(step, gradient)
    rate[0] = 0.5
    with pytest.raises(ContractError) as caught:
        torch.autograd.grad(value, w)
    assert "rate[0]" in " ".join(caught.value.__notes__)


def test_a_reentrant_checkpoint_says_what_to_write():
    w = weight()

    def step(z: Tensor, c: Tensor) -> Tensor:
        return checkpoint(lambda z, c, w: torch.tanh(z @ w + c), z, c, w, use_reentrant=True)

    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        loss(step, Implicit())
    loss(step, OneStep()).backward()  # takes no products
    (wanted,) = torch.autograd.grad(loss(lambda z, c: torch.tanh(z @ w + c), OneStep()), w)
    torch.testing.assert_close(w.grad, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("gradient", RECORDED, ids=str)
def test_tensors_that_hooks_put_elsewhere(gradient):
    w, store = weight(), {}

    def step(z: Tensor, c: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda key: store[key]):
            return torch.tanh(z @ w + c)

    def pack(x: Tensor) -> int:
        store[len(store)] = x.detach().clone()
        return len(store) - 1

    wanted = torch.autograd.grad(loss(lambda z, c: torch.tanh(z @ w + c), gradient), w)
    torch.testing.assert_close(torch.autograd.grad(loss(step, gradient), w), wanted, rtol=1e-9, atol=1e-11)
    value = loss(step, gradient)
    for x in store.values():
        x.mul_(0.5)
    with pytest.raises(ContractError):
        torch.autograd.grad(value, w)


class Kept(torch.autograd.Function):
    """`z @ w`, with the weight where PyTorch does not look, as many write it; and a scratch of its own."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, w: Tensor, how: str) -> Tensor:
        ctx.save_for_backward(z)
        ctx.kept = {"attribute": w, "list": [w], "module": _Holder(w), "function": lambda: w}[how]
        ctx.scratch = torch.zeros_like(z)
        return z @ w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        kept = ctx.kept
        w = kept if isinstance(kept, Tensor) else kept[0] if isinstance(kept, list) else kept()
        ctx.scratch.copy_(g)
        return ctx.scratch @ w.T, ctx.saved_tensors[0].T @ g, None


class _Holder(nn.Module):
    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = w

    def forward(self) -> Tensor:
        return self.w


@pytest.mark.parametrize("how", ["attribute", "list", "module", "function"])
@pytest.mark.parametrize("gradient", [g for g in RECORDED if g != Implicit(NormalCG(), TIGHT)], ids=str)
def test_a_function_that_keeps_its_weight_where_nobody_looks(gradient, how):
    w = weight()

    def step(z: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(Kept.apply(z, w, how) + c)

    wanted = torch.autograd.grad(loss(lambda z, c: torch.tanh(z @ w + c), gradient), w)
    value = loss(step, gradient)
    for _ in range(2):
        found = torch.autograd.grad(value, w, retain_graph=True)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    w.data.mul_(1.01)
    if gradient == OneStep():
        return  # the last function's own input, z, is all that its weight's gradient needs
    with pytest.raises(ContractError, match="backward"):
        torch.autograd.grad(value, w)


def test_a_solve_within_a_step_makes_sure_of_its_own():
    w, before = weight(), []

    def step(z: Tensor, c: Tensor) -> Tensor:
        inner = hs.solve(lambda y, d: torch.tanh(0.5 * y @ w + d), torch.zeros_like(z), z + c, stop=TIGHT).state
        before.append(inner)
        return 0.3 * inner

    value = loss(step, Implicit(stop=TIGHT))
    (found,) = torch.autograd.grad(value, w)
    z, y = (torch.zeros(3, 4, dtype=F64) for _ in range(2))
    for _ in range(60):
        y = torch.zeros(3, 4, dtype=F64)
        for _ in range(60):
            y = torch.tanh(0.5 * y @ w + z + X)
        z = 0.3 * y
    torch.testing.assert_close(found, torch.autograd.grad(z.cos().sum(), w)[0], rtol=1e-8, atol=1e-10)
    value = loss(step, Implicit(stop=TIGHT))
    w.data.mul_(1.01)
    with pytest.raises(ContractError, match="backward"):
        torch.autograd.grad(value, w)


def test_unrolled_steps_are_as_the_plain_loop_is():
    cell, plain = Cell(), Plain()
    found = torch.autograd.grad(loss(cell, Unrolled()), cell.weight)
    torch.testing.assert_close(found, torch.autograd.grad(loss(plain, Unrolled()), plain.weight), rtol=1e-12, atol=0)
