"""The gradient is that of the map that was solved, whatever has become of its surroundings when `backward` runs."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import homeostat as hs
from homeostat import Implicit, Stop, Unrolled
from homeostat.engine import CG, GMRES, Anderson, Broyden, Neumann, NormalCG, OneStep, Phantom, Picard, Shine
from homeostat.errors import ContractError

F64 = torch.float64
TIGHT = Stop(1e-12, 0.0, 2000)
EXACT = [Implicit(method=m, stop=TIGHT) for m in (Picard(), Anderson(), GMRES(), NormalCG())] + [Implicit(stop=TIGHT)]
MODES = [*EXACT, OneStep(), Phantom(), Neumann(3), Shine(), Unrolled(), Unrolled(last=3), Unrolled(checkpoint=True)]
# Rows that contract at very different rates leave the adjoint one after the other, and the others are recorded again.
RATES = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.05, 0.2], dtype=F64)[:, None]


def solved(step: Callable[..., Any], x: Tensor, gradient: Any) -> Tensor:
    method = Broyden() if isinstance(gradient, Shine) else Picard()
    context = {"x": x, "rate": RATES}
    return hs.solve(step, torch.zeros(8, 4, dtype=F64), context, method=method, stop=TIGHT, gradient=gradient).state


class Cell(nn.Module):
    """A cell whose training mode is another map: a gate that is closed a little."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=F64)
        self.register_buffer("shift", torch.full((4,), 0.1, dtype=F64))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            basis = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64)).Q
            self.linear.weight.copy_(basis)
            self.linear.bias.fill_(0.1)

    def forward(self, z: Tensor, c: dict[str, Tensor]) -> Tensor:
        gate = 0.8 if self.training else 1.0
        return torch.tanh(gate * c["rate"] * self.linear(z) + c["x"] + self.shift)


X = torch.linspace(-1, 1, 32, dtype=F64).view(8, 4)


def loss_of(state: Tensor) -> Tensor:
    return (state * torch.cos(torch.arange(32, dtype=F64)).view(8, 4)).sum()


def undisturbed(cell: nn.Module, gradient: Any, x: Tensor = X) -> list[Tensor]:
    return list(torch.autograd.grad(loss_of(solved(cell, x, gradient)), list(cell.parameters())))


def agree(found: Any, wanted: Any, tolerance: float = 1e-9) -> None:
    for got, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, right, rtol=tolerance, atol=tolerance)


def right_or_refused(gradient: Any, backward: Callable[[], list[Tensor]], wanted: list[Tensor]) -> None:
    """Checkpoints take the steps again, and can only refuse; all others know what was recorded."""
    if gradient == Unrolled(checkpoint=True):
        with pytest.raises(ContractError, match=r"takes the steps again"):
            backward()
    else:
        agree(backward(), wanted)


@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_the_undisturbed_gradient_is_the_plain_loops(gradient):
    cell = Cell()
    z = torch.zeros(8, 4, dtype=F64)
    for _ in range(1500):
        z = cell(z, {"x": X, "rate": RATES})
    plain = torch.autograd.grad(loss_of(z), list(cell.parameters()))
    if gradient in EXACT or gradient in (Unrolled(), Unrolled(checkpoint=True)):
        agree(undisturbed(cell, gradient), plain)


@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_fast_weights_through_functional_call(gradient):
    cell = Cell()
    fast = {name: (0.7 * p).detach().requires_grad_() for name, p in cell.named_parameters()}
    loss = loss_of(functional_call(_Solver(cell, gradient), {f"cell.{n}": p for n, p in fast.items()}, (X,)))
    slow = copy.deepcopy(cell)
    with torch.no_grad():
        for p in slow.parameters():
            p.mul_(0.7)
    right_or_refused(
        gradient, lambda: list(torch.autograd.grad(loss, list(fast.values()))), undisturbed(slow, gradient)
    )


class _Solver(nn.Module):
    def __init__(self, cell: nn.Module, gradient: Any) -> None:
        super().__init__()
        self.cell, self.gradient = cell, gradient

    def forward(self, x: Tensor) -> Tensor:
        return solved(self.cell, x, self.gradient)


@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_a_loops_variable_in_the_closure(gradient):
    weight = Cell().linear.weight.detach().clone().requires_grad_()

    def one(gain: float) -> Tensor:
        return loss_of(solved(lambda z, c: torch.tanh(gain * c["rate"] * z @ weight + c["x"]), X, gradient))

    apart = [torch.autograd.grad(one(gain), weight)[0] for gain in (0.3, 1.0)]
    total = torch.zeros((), dtype=F64)
    for gain in (0.3, 1.0):
        total = total + loss_of(
            solved(lambda z, c: torch.tanh(gain * c["rate"] * z @ weight + c["x"]), X, gradient)  # noqa: B023
        )
    right_or_refused(gradient, lambda: [torch.autograd.grad(total, weight)[0]], [sum(apart)])


@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_a_relaxation_whose_variable_changes_no_value_at_the_fixed_point(gradient):
    # f(z) = z whatever the gain is: values cannot tell, products can.
    weight = Cell().linear.weight.detach().clone().requires_grad_()

    def one(gain: list[float]) -> Tensor:
        return loss_of(
            solved(lambda z, c: z + gain[0] * (torch.tanh(c["rate"] * z @ weight + c["x"]) - z), X, gradient)
        )

    (wanted,) = torch.autograd.grad(one([0.5]), weight)
    gain = [0.5]
    loss = one(gain)
    gain[0] = 1.0
    if gradient == Unrolled(checkpoint=True):
        with pytest.raises(ContractError):
            torch.autograd.grad(loss, weight)
    else:
        agree(torch.autograd.grad(loss, weight), [wanted])


@pytest.mark.parametrize("gradient", MODES, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_a_mode_that_is_switched(gradient, training):
    cell = Cell().train(training)
    wanted = undisturbed(cell, gradient)
    loss = loss_of(solved(cell, X, gradient))
    cell.train(not training)
    right_or_refused(gradient, lambda: list(torch.autograd.grad(loss, list(cell.parameters()))), wanted)


@pytest.mark.parametrize("how", ["in place", "data", "numpy"])
@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_a_context_buffer_that_is_refilled(gradient, how):
    cell, buffer = Cell(), X.clone()
    wanted = undisturbed(cell, gradient)
    loss = loss_of(solved(cell, buffer, gradient))
    if how == "in place":
        buffer.copy_(X.flip(0))
    elif how == "data":
        buffer.data.copy_(X.flip(0))
    else:
        buffer.numpy()[:] = X.flip(0).numpy()

    def backward() -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(cell.parameters())))

    if gradient == Unrolled(checkpoint=True) and how == "in place":
        with pytest.raises((ContractError, RuntimeError)):
            backward()
    else:
        right_or_refused(gradient, backward, wanted)


@pytest.mark.parametrize("gradient", [m for m in MODES if not isinstance(m, Unrolled)], ids=str)
@pytest.mark.parametrize("how", ["data", "data in place", "no_grad", "numpy"])
def test_weights_that_are_others_in_backward(gradient, how):
    cell = Cell()
    wanted = undisturbed(cell, gradient)
    loss = loss_of(solved(cell, X, gradient))
    weight = cell.linear.weight
    if how == "data":
        weight.data = weight.data.roll(1, 0)
    elif how == "data in place":
        weight.data.mul_(0.5)
    elif how == "no_grad":
        with torch.no_grad():
            weight.mul_(0.5)
    else:
        weight.detach().numpy()[0, 0] += 0.25
    if how == "data" or gradient == OneStep():
        # The old weights are still there, in what was recorded; or the gradient does not need them.
        agree(torch.autograd.grad(loss, list(cell.parameters())), wanted)
    else:
        with pytest.raises(ContractError, match="changed before backward"):
            torch.autograd.grad(loss, list(cell.parameters()))


@pytest.mark.parametrize(
    "values",
    [torch.eye(5, dtype=F64), torch.softmax(torch.arange(25, dtype=F64).view(5, 5).sin(), 1)],
    ids=["one-hot", "p"],
)
def test_a_context_whose_rows_have_equal_sums(values):
    weight, context = torch.linspace(-1, 1, 25, dtype=F64).view(5, 5).requires_grad_(), values.clone()
    state = hs.solve(lambda z, c: torch.tanh(0.5 * z + c @ weight), torch.zeros(5, 5, dtype=F64), context).state
    context.numpy()[:] = context.numpy()[::-1].copy()
    with pytest.raises(ContractError, match="changed before backward"):
        state.square().sum().backward()


@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_averaged_weights_for_an_evaluation_between(gradient):
    # As EMA libraries do it: other weights for a look, then back.
    cell = Cell()
    wanted = undisturbed(cell, gradient)
    loss = loss_of(solved(cell, X, gradient))
    kept = [p.detach().clone() for p in cell.parameters()]
    for p in cell.parameters():
        p.data.mul_(0.9)
    with torch.no_grad():
        solved(cell, X, gradient)
    for p, old in zip(cell.parameters(), kept, strict=True):
        p.data.copy_(old)
    agree(torch.autograd.grad(loss, list(cell.parameters())), wanted)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("gradient", [*EXACT, Unrolled()], ids=str)
def test_maml_of_first_and_second_order(gradient, second):
    """One inner step with fast weights, then the outer loss: against the same with plain loops."""

    def outer(make: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
        cell = Cell()
        model = make(cell)
        params = dict(model.named_parameters())
        inner = loss_of(functional_call(model, params, (X,)))
        grads = torch.autograd.grad(inner, list(params.values()), create_graph=second)
        fast = {name: p - 0.05 * g for (name, p), g in zip(params.items(), grads, strict=True)}
        loss = loss_of(functional_call(model, fast, (X.flip(0),)).square())
        return list(torch.autograd.grad(loss, list(params.values())))

    class Plain(nn.Module):
        def __init__(self, cell: nn.Module) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor) -> Tensor:
            z = torch.zeros(8, 4, dtype=F64)
            for _ in range(600):
                z = self.cell(z, {"x": x, "rate": RATES})
            return z

    agree(outer(lambda cell: _Solver(cell, gradient)), outer(Plain), 1e-8)


@pytest.mark.parametrize("gradient", [Implicit(stop=TIGHT), Unrolled()], ids=str)
def test_a_second_derivative_through_tensors_that_step_only_closes_over(gradient):
    made = torch.tensor([0.3], dtype=F64, requires_grad=True)
    weight = torch.sin(made)  # it has a graph of its own, and is no context

    def first() -> Tensor:
        state = hs.solve(
            lambda z, c: torch.tanh(weight * z + c), torch.zeros(2, 3, dtype=F64), torch.ones(2, 3, dtype=F64),
            method=Picard(), stop=TIGHT, gradient=gradient,
        ).state  # fmt: skip
        return torch.autograd.grad(state.sum(), made, create_graph=True)[0]

    (second,) = torch.autograd.grad(first().sum(), made)
    z = torch.zeros(2, 3, dtype=F64)
    for _ in range(300):
        z = torch.tanh(torch.sin(made) * z + 1)
    (plain,) = torch.autograd.grad(z.sum(), made, create_graph=True)
    agree([second], torch.autograd.grad(plain.sum(), made))


def test_a_second_derivative_through_tensors_that_nobody_finds_is_refused():
    made = torch.tensor([0.3], dtype=F64, requires_grad=True)
    hidden = iter([torch.sin(made)] * 1000)
    state = hs.solve(
        lambda z, c: torch.tanh(next(hidden) * z + c), torch.zeros(2, 3, dtype=F64), torch.ones(2, 3, dtype=F64),
        stop=TIGHT,
    ).state  # fmt: skip
    (first,) = torch.autograd.grad(state.sum(), made, retain_graph=True)
    assert torch.isfinite(first).all()
    with pytest.raises(ContractError, match="second derivative"):
        torch.autograd.grad(state.sum(), made, create_graph=True)


@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_checkpointing_around_a_solve(gradient):
    # The solve itself runs again in `backward`.
    cell = Cell()
    wanted = undisturbed(cell, gradient)
    state = torch.utils.checkpoint.checkpoint(lambda x: solved(cell, x, gradient), X, use_reentrant=False)
    agree(torch.autograd.grad(loss_of(state), list(cell.parameters())), wanted)


@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_a_step_that_checkpoints_itself(gradient):
    cell = Cell()
    wanted = undisturbed(cell, gradient)

    def step(z: Tensor, c: dict[str, Tensor]) -> Tensor:
        return torch.utils.checkpoint.checkpoint(cell, z, c, use_reentrant=False)

    agree(torch.autograd.grad(loss_of(solved(step, X, gradient)), list(cell.parameters())), wanted)


# A map that stops being pure


@pytest.mark.parametrize("gradient", [Implicit(stop=TIGHT), Implicit(Picard(), TIGHT)], ids=str)
def test_a_step_that_is_another_one_after_the_solve(gradient):
    cell, calls = Cell(), [0]

    def step(z: Tensor, c: dict[str, Tensor]) -> Tensor:
        calls[0] += 1
        return cell(z, c) if calls[0] <= limit else torch.zeros_like(z)

    limit = 10**9
    wanted = torch.autograd.grad(loss_of(solved(step, X, gradient)), list(cell.parameters()))
    loss = loss_of(solved(step, X, gradient))
    limit = 0
    agree(torch.autograd.grad(loss, list(cell.parameters())), wanted)


@pytest.mark.parametrize("method", [Picard(), Anderson(), GMRES(), NormalCG(), CG()], ids=str)
def test_a_step_that_fails_after_the_solve(method):
    # Symmetric, so that conjugate gradients can do it too.
    weight, broken = torch.tensor(0.9, dtype=F64, requires_grad=True), []

    def step(z: Tensor, c: Tensor) -> Tensor:
        if broken:
            raise ZeroDivisionError
        return weight * c * z + 1

    state = hs.solve(
        step, torch.zeros(8, 4, dtype=F64), RATES, method=Picard(), stop=TIGHT, gradient=Implicit(method, TIGHT)
    ).state
    broken.append(True)
    state.sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(float((4 * RATES / (1 - 0.9 * RATES) ** 2).sum()), rel=1e-9)


@pytest.mark.parametrize("method", [Picard(), Anderson(), Broyden()], ids=str)
@pytest.mark.parametrize("gradient", MODES, ids=str)
def test_a_step_that_becomes_another_one_during_the_solve(gradient, method):
    # What it has become is solved and differentiated; checkpoints of what it was can only refuse.
    if isinstance(gradient, Shine) and method != Broyden():
        return
    weight, calls = torch.tensor(0.9, dtype=F64, requires_grad=True), [0]
    context = {"x": X, "rate": RATES.clamp(min=0.3)}  # no row is finished before

    def step(z: Tensor, c: dict[str, Tensor]) -> Tensor:
        calls[0] += 1
        gain = 0.5 if calls[0] <= 6 else 1.0
        return torch.tanh(gain * weight * c["rate"] * z + c["x"])

    def one(before: int) -> tuple[Tensor, Tensor]:
        calls[0] = before
        start = torch.zeros(8, 4, dtype=F64)
        state = hs.solve(step, start, context, method=method, stop=TIGHT, gradient=gradient).state
        return state.detach(), torch.autograd.grad(loss_of(state), weight)[0]

    state, wanted = one(100)
    if gradient == Unrolled(checkpoint=True):
        with pytest.raises(ContractError, match="takes the steps again"):
            one(0)
        return
    found = one(0)
    torch.testing.assert_close(found[0], state, rtol=1e-6, atol=1e-7)  # the last steps of a truncation are plain ones
    if gradient != Shine():  # whose inverse is of all steps
        torch.testing.assert_close(found[1], wanted, rtol=1e-6, atol=1e-9)
