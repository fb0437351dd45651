"""Inner problems from losses of one problem or of a batch, with marks, nests and modules."""

import pytest
import torch
from torch import Tensor, nn

import homeostat as hs
from homeostat.bilevel import GradientDescent, InnerProblem, Momentum, NonlinearCG, functional, module_parameters
from homeostat.errors import ContractError, ConvergenceError, ConvergenceWarning

F64 = torch.float64


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def ridge(w: Tensor, task: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, y, penalty = task
    return 0.5 * (x @ w - y).square().mean() + 0.5 * penalty * w.square().sum()


def tasks(rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return random(0, rows, 30, 5), random(1, rows, 30), torch.linspace(0.1, 1.0, rows, dtype=F64)


def closed(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    hessian = x.mT @ x / x.shape[-2] + penalty.view(-1, 1, 1) * torch.eye(x.shape[-1], dtype=F64)
    return torch.linalg.solve(hessian, (x.mT @ y[..., None] / x.shape[-2]))[..., 0]


TIGHT = {"stop": hs.Stop(1e-14, 0.0, 3000), "gradient": hs.Implicit(hs.CG(), hs.Stop(1e-14), on_failure="raise")}


def test_ridge_regressions_and_the_derivative_of_each_by_its_own_penalty() -> None:
    x, y, penalty = tasks()
    penalty.requires_grad_()
    problem = InnerProblem(ridge, GradientDescent(0.4))
    solution = problem.solve(torch.zeros(4, 5, dtype=F64), (x, y, penalty), **TIGHT)
    w = problem.parameters(solution)
    torch.testing.assert_close(w, closed(x, y, penalty), rtol=1e-12, atol=1e-12)
    g = random(2, 4, 5)
    (found,) = torch.autograd.grad(w, penalty, g)
    (wanted,) = torch.autograd.grad(closed(x, y, penalty), penalty, g)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        problem.losses(w.detach(), (x, y, penalty)),
        torch.stack([ridge(w[i], (x[i], y[i], penalty[i])) for i in range(4)]),
    )


def test_a_problem_does_not_depend_on_its_batch_and_stops_by_itself() -> None:
    x, y, penalty = tasks()
    problem = InnerProblem(ridge, GradientDescent(0.4))
    options = {"stop": hs.Stop(1e-8, 0.0, 3000)}
    together = problem.solve(torch.zeros(4, 5, dtype=F64), (x, y, penalty), **options)
    assert int(together.steps[-1]) < int(together.steps[0])  # a larger penalty, a better conditioned problem
    for row in range(4):  # alone, `vmap` is not used
        one = slice(row, row + 1)
        alone = problem.solve(torch.zeros(1, 5, dtype=F64), (x[one], y[one], penalty[one]), **options)
        torch.testing.assert_close(alone.state[0], together.state[row], rtol=1e-12, atol=0)
        assert alone.steps[0] == together.steps[row]


def test_shared_parts_of_a_context_are_not_mapped() -> None:
    # Of any form: a tensor, a nest, a number, None; and gradients reach them.
    x, y, _ = tasks()
    penalty = torch.tensor(0.3, dtype=F64, requires_grad=True)

    def loss(w: Tensor, c: dict) -> Tensor:
        assert c["name"] == "ridge"
        assert c["nothing"] is None
        return ridge(w, (c["x"], c["data"]["y"] * c["data"]["scale"], c["penalty"]))

    context = {
        "x": x,
        "data": {"y": y, "scale": hs.Shared(2.0)},
        "penalty": hs.Shared(penalty),
        "name": hs.Shared("ridge"),
        "nothing": None,
    }
    problem = InnerProblem(loss, GradientDescent(0.4))
    w = problem.parameters(problem.solve(torch.zeros(4, 5, dtype=F64), context, **TIGHT))
    wanted = closed(x, 2 * y, penalty.expand(4))
    torch.testing.assert_close(w, wanted, rtol=1e-12, atol=1e-12)
    (found,), (exact,) = (torch.autograd.grad(v.square().sum(), penalty) for v in (w, wanted))
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=0)


def test_a_batched_loss_and_a_loss_of_one_problem_are_the_same() -> None:
    context = tasks()

    def batched(w: Tensor, c: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, y, penalty = c
        error = torch.einsum("bij,bj->bi", x, w) - y
        return 0.5 * error.square().mean(1) + 0.5 * penalty * w.square().sum(1)

    start = torch.zeros(4, 5, dtype=F64)
    one = InnerProblem(ridge, GradientDescent(0.4)).solve(start, context)
    other = InnerProblem(batched, GradientDescent(0.4), batched=True).solve(start, context)
    torch.testing.assert_close(one.state, other.state, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("step", [GradientDescent(0.3), GradientDescent(), Momentum(0.2, 0.5), NonlinearCG()], ids=str)
def test_any_module_with_any_step(step) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    before = [p.detach().clone() for p in net.parameters()]
    problem = InnerProblem(functional(net, nn.functional.mse_loss), step)
    context = random(3, 3, 20, 2), random(4, 3, 20, 1)
    start = module_parameters(net, rows=3)
    gradient = hs.Unrolled()
    solution = problem.solve(start, context, stop=hs.Stop(rtol=0, max_steps=10), gradient=gradient)
    found = problem.parameters(solution)
    assert set(found) == set(dict(net.named_parameters()))
    assert bool((problem.losses(found, context) < problem.losses(start, context)).all())
    problem.losses(found, context).sum().backward()  # MAML: the start is the module's own
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_dropout_in_an_inner_loss_is_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5), nn.Linear(6, 1))
    problem = InnerProblem(functional(net, nn.functional.mse_loss), GradientDescent(0.1))
    with pytest.raises(RuntimeError, match="random"):
        problem.solve(module_parameters(net, rows=2), (torch.ones(2, 5, 2), torch.ones(2, 5, 1)))


def test_a_written_gradient_is_compared_with_the_loss() -> None:
    x, y, penalty = tasks()

    def gradient(w: Tensor, task: tuple[Tensor, Tensor, Tensor], factor: float = 1.0) -> Tensor:
        x, y, penalty = task
        return x.mT @ (x @ w - y) / len(y) + factor * penalty * w

    right = InnerProblem(ridge, GradientDescent(0.4), loss_gradient=gradient)
    solution = right.solve(torch.zeros(4, 5, dtype=F64), (x, y, penalty), **TIGHT)
    torch.testing.assert_close(solution.state, closed(x, y, penalty), rtol=1e-12, atol=1e-12)
    wrong = InnerProblem(ridge, GradientDescent(0.4), loss_gradient=lambda w, c: gradient(w, c, 1.1))
    with pytest.raises(ContractError, match="loss_gradient is not the gradient of the loss"):
        wrong.solve(torch.zeros(4, 5, dtype=F64), (x, y, penalty), **TIGHT)


def test_a_step_size_that_is_too_large_is_said() -> None:
    x, y, penalty = tasks()
    context = (x, y, penalty.requires_grad_())
    problem = InnerProblem(ridge, GradientDescent(40.0))
    with pytest.warns(ConvergenceWarning, match=r"forward solve left 4 of 4 rows unconverged \(4 DIVERGED\)"):
        solution = problem.solve(torch.zeros(4, 5, dtype=F64), context)
    assert torch.isfinite(problem.parameters(solution)).all()
    with pytest.raises(ConvergenceError, match="4 DIVERGED"):
        problem.solve(torch.zeros(4, 5, dtype=F64), context, gradient=hs.Implicit(hs.CG(), on_failure="raise"))


def test_a_loss_that_is_nan_ends_its_row_alone() -> None:
    x, y, penalty = tasks()
    y = y.clone()
    y[2, 0] = torch.nan
    penalty.requires_grad_()
    problem = InnerProblem(ridge, GradientDescent(0.4))
    with pytest.warns(ConvergenceWarning, match="1 DIVERGED"):
        solution = problem.solve(torch.zeros(4, 5, dtype=F64), (x, y, penalty), stop=hs.Stop(1e-12, 0.0, 3000))
    assert solution.status.tolist() == [0, 0, hs.Status.DIVERGED, 0]
    w = problem.parameters(solution)
    (found,) = torch.autograd.grad(w.sum(), penalty)
    good = [0, 1, 3]
    torch.testing.assert_close(w[good], closed(x, y, penalty)[good], rtol=1e-9, atol=1e-9)
    assert found[2] == 0
    assert bool((found[good] != 0).all())


@pytest.mark.parametrize("loss", [lambda w, c: w, lambda w, c: 0.0, lambda w, c: (w**2).sum(0, keepdim=True)])
def test_a_loss_that_is_not_one_number_a_problem_is_refused(loss) -> None:
    for rows in (1, 3):
        with pytest.raises((ContractError, ValueError), match=r"one number a problem|only return Tensors"):
            InnerProblem(loss, GradientDescent(0.1)).solve(torch.ones(rows, 2))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"loss": None}, ValueError),
        ({"step": GradientDescent}, TypeError),
        ({"batched": 1}, ValueError),
        ({"loss_gradient": 3}, ValueError),
    ],
)
def test_impossible_problems_are_refused(options, error) -> None:
    with pytest.raises(error, match="must be"):
        InnerProblem(**{"loss": ridge, "step": GradientDescent(0.1), **options})
