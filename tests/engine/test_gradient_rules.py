"""What `Implicit` and `Unrolled` do when something goes wrong, and what they keep."""

import gc
import warnings
import weakref
from functools import partial

import pytest
import torch

import homeostat as hs
from homeostat import Implicit, Status, Stop, Unrolled
from homeostat.engine import Broyden, Neumann, Shine
from homeostat.errors import ConvergenceError, ConvergenceWarning

# The plain loop: what these tests say about steps and states is said of its sequence.
solve = partial(hs.solve, method=hs.Picard())

F64 = torch.float64
GRADIENTS = [Implicit(), Unrolled(), Unrolled(last=3)]


def parameter(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=F64, requires_grad=True)


def quadratic(weight):
    """`z <- w c z^2 + 1`: contracts for a small `c`, explodes for a large one."""
    return lambda z, c: weight * c * z * z + 1


SMALL = torch.tensor([0.1, 0.2], dtype=F64)[:, None]
MIXED = torch.tensor([0.1, 50.0, 0.2], dtype=F64)[:, None]
GOOD = [0, 2]


@pytest.mark.parametrize("gradient", [Implicit(), Implicit(on_failure="mask"), Unrolled(), Unrolled(last=3)])
@pytest.mark.parametrize("stop", [Stop(1e-10), Stop(0, 0, 40)])
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_rows_that_diverged_put_nothing_into_shared_parameters(gradient, stop):
    if gradient == Implicit(on_failure="mask") and not stop.tests:
        stop = Stop(1e-10)  # where nothing is tested, nothing is converged
    weight, context = parameter(1.0), MIXED.clone().requires_grad_()
    solution = solve(quadratic(weight), torch.zeros(3, 2, dtype=F64), context, stop=stop, gradient=gradient)
    assert solution.status[1] == Status.DIVERGED
    # A caller who forgets to mask has a loss with a NaN in it; the parameters survive even that.
    torch.nan_to_num(solution.state, nan=0.0, posinf=0.0).sum().backward()

    alone, its_context = parameter(1.0), MIXED[GOOD].clone().requires_grad_()
    solve(
        quadratic(alone), torch.zeros(2, 2, dtype=F64), its_context, stop=stop, gradient=gradient
    ).state.sum().backward()
    torch.testing.assert_close(weight.grad, alone.grad, rtol=1e-12, atol=0)
    assert context.grad is not None
    torch.testing.assert_close(context.grad[GOOD], its_context.grad, rtol=1e-12, atol=0)
    assert context.grad[1].item() == 0


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_a_start_that_is_nan_puts_nothing_into_shared_parameters(gradient):
    weight = parameter(1.0)
    start = torch.zeros(3, 2, dtype=F64)
    start[1] = torch.nan
    solve(quadratic(weight), start, MIXED * 0.01, gradient=gradient).state[GOOD].sum().backward()
    assert torch.isfinite(weight.grad)
    assert weight.grad != 0


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_where_every_row_diverged_there_is_no_gradient(gradient):
    weight = parameter(1.0)
    solution = solve(quadratic(weight), torch.zeros(2, 2, dtype=F64), SMALL * 500, gradient=gradient)
    assert (solution.status == Status.DIVERGED).all()
    assert torch.isfinite(solution.state).all()
    solution.state.sum().backward()  # a training loop goes on, and so do processes that wait for this one's gradient
    assert weight.grad == 0


def test_failures_warn_with_counts_at_the_callers_line():
    weight = parameter(1.0)
    with pytest.warns(ConvergenceWarning, match=r"forward solve left 1 of 3 rows unconverged \(1 DIVERGED\)") as caught:
        solve(quadratic(weight), torch.zeros(3, 2, dtype=F64), MIXED)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("on_failure", ["warn", "mask", "raise"])
def test_what_diverges_is_told_what_may_help(on_failure):
    weight = parameter(1.0)
    with pytest.raises(ConvergenceError) if on_failure == "raise" else pytest.warns(ConvergenceWarning) as caught:
        solve(quadratic(weight), torch.zeros(3, 2, dtype=F64), MIXED, gradient=Implicit(on_failure=on_failure))
    said = str(caught.value if on_failure == "raise" else caught[0].message)
    assert all(word in said for word in ("damping", "step size", "spectral"))
    slow = torch.tensor([[0.999]], dtype=F64)
    with pytest.warns(ConvergenceWarning) as caught:
        solve(lambda z, c: weight * c * z + 1, torch.zeros(1, 2, dtype=F64), slow, stop=Stop(1e-9))
    assert "damping" not in str(caught[0].message)  # it did not diverge


def test_failures_raise_where_asked():
    weight = parameter(1.0)
    gradient = Implicit(on_failure="raise")
    with pytest.raises(ConvergenceError, match="forward solve left 1 of 3 rows unconverged"):
        solve(quadratic(weight), torch.zeros(3, 2, dtype=F64), MIXED, gradient=gradient)
    solve(quadratic(weight), torch.zeros(2, 2, dtype=F64), SMALL, gradient=gradient).state.sum().backward()


def slow(gradient):
    """Converged forward, from its own answer; the adjoint of the second row cannot be within 20 steps."""
    weight = parameter(1.0)
    gain = torch.tensor([0.2, 0.99], dtype=F64)[:, None]
    start = (1 / (1 - gain)).expand(2, 3).clone()
    return weight, solve(lambda z, c: weight * c * z + 1, start, gain, gradient=gradient)


def test_an_unconverged_adjoint_warns_and_says_so_on_the_solution():
    weight, solution = slow(Implicit(hs.Picard(), Stop(1e-8, 0.0, 20)))
    assert solution.adjoint is None
    with pytest.warns(ConvergenceWarning, match=r"adjoint solve left 1 of 2 rows unconverged \(1 MAX_STEPS\)"):
        solution.state.sum().backward()
    adjoint = solution.adjoint
    assert adjoint is not None
    assert adjoint.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS]
    assert adjoint.steps[0] < adjoint.steps[1] == 20
    assert adjoint.residual[0] <= 1e-8 < adjoint.residual[1]
    assert not any(x.requires_grad for x in (adjoint.steps, adjoint.residual, adjoint.status))
    assert "MAX_STEPS" in repr(adjoint)
    assert "1 row finished by Picard" in repr(adjoint)
    assert "1 row best by Picard" in repr(adjoint)
    assert weight.grad is not None


def test_an_unconverged_adjoint_raises_or_is_masked_where_asked():
    _, solution = slow(Implicit(hs.Picard(), Stop(1e-8, 0.0, 20), on_failure="raise"))
    with pytest.raises(ConvergenceError, match="adjoint solve left 1 of 2 rows"):
        solution.state.sum().backward()
    weight, solution = slow(Implicit(hs.Picard(), Stop(1e-12, 0.0, 20), on_failure="mask"))
    with pytest.warns(ConvergenceWarning, match="they get no gradient"):
        solution.state.sum().backward()
    # z = 1 / (1 - 0.2 w), three entries of it; the other row is masked.
    assert weight.grad.item() == pytest.approx(3 * 0.2 / 0.8**2)


def test_rows_that_did_not_converge_are_masked_where_asked():
    weight = parameter(1.0)
    gain = torch.tensor([0.2, 0.999], dtype=F64)[:, None]
    gradient = Implicit(stop=Stop(1e-13), on_failure="mask")
    with pytest.warns(ConvergenceWarning, match="1 MAX_STEPS"):
        solution = solve(
            lambda z, c: weight * c * z + 1, torch.zeros(2, 3, dtype=F64), gain, stop=Stop(1e-13), gradient=gradient
        )
    solution.state.sum().backward()
    assert weight.grad.item() == pytest.approx(3 * 0.2 / 0.8**2)


def test_an_adjoint_that_diverges_gives_no_gradient():
    # A step whose answer is right while its Jacobian is not: f(z) = z* + 3 (z - z*) started at z*.
    weight, other = parameter(1.0), torch.tensor([[0.5], [3.0]], dtype=F64)
    step = lambda z, c: weight + c * (z - weight.detach())  # noqa: E731
    solution = solve(step, torch.ones(2, 1, dtype=F64), other, gradient=Implicit(hs.Picard()))
    assert solution.status.tolist() == [Status.CONVERGED] * 2
    with pytest.warns(ConvergenceWarning, match="1 DIVERGED"):
        solution.state.sum().backward()
    assert weight.grad.item() == pytest.approx(2.0, rel=1e-4)  # 1 / (1 - 0.5), and nothing from the other row
    # By default another method has it then: I - J is regular.
    weight.grad = None
    solve(step, torch.ones(2, 1, dtype=F64), other).state.sum().backward()
    assert weight.grad.item() == pytest.approx(1 / (1 - 0.5) + 1 / (1 - 3.0), rel=1e-4)


def test_backward_twice():
    weight = parameter(0.5)
    solution = solve(lambda z, _: torch.tanh(weight * z + 1), torch.zeros(2, 3, dtype=F64))
    loss = solution.state.sum()
    (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (second,) = torch.autograd.grad(loss, weight)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, weight)


def test_two_solves_before_one_backward():
    def separately(shift):
        weight = parameter(0.5)
        solution = solve(lambda z, _: torch.tanh(weight * z + shift), torch.zeros(2, 3, dtype=F64))
        solution.state.sum().backward()
        return weight.grad

    weight = parameter(0.5)
    solutions = [solve(lambda z, _, s=s: torch.tanh(weight * z + s), torch.zeros(2, 3, dtype=F64)) for s in (1, 2)]
    (solutions[0].state.sum() + solutions[1].state.sum()).backward()
    assert all(s.adjoint is not None for s in solutions)
    torch.testing.assert_close(weight.grad, separately(1) + separately(2), rtol=1e-12, atol=0)


def test_one_solve_may_start_and_feed_another():
    weight = parameter(0.5)
    stop = Stop(1e-13)
    gradient = Implicit(stop=stop)
    inner = solve(lambda z, _: weight * z + 1, torch.zeros(2, 3, dtype=F64), stop=stop, gradient=gradient)
    outer = solve(lambda z, c: weight * z + c, inner.state, inner.state, stop=stop, gradient=gradient)
    outer.state.sum().backward()
    assert weight.grad.item() == pytest.approx(6 * 2 / 0.5**3)  # z = 1 / (1 - w)^2


@pytest.mark.parametrize("linear_loss", [True, False])
@pytest.mark.parametrize("gradient", [Neumann(), Shine()])
def test_a_second_derivative_raises_rather_than_being_wrong(gradient, linear_loss):
    weight = parameter(0.5)
    solution = hs.solve(
        lambda z, _: torch.tanh(weight * z + weight), torch.zeros(2, 3, dtype=F64), method=Broyden(), gradient=gradient
    )
    loss = solution.state.sum() if linear_loss else solution.state.square().sum()
    (first,) = torch.autograd.grad(loss, weight, create_graph=True)
    assert torch.isfinite(first)  # the first one is as good as ever
    with pytest.raises(RuntimeError, match=f"{type(gradient).__name__} has no second derivative"):
        torch.autograd.grad(first, weight)


def test_unrolled_has_a_second_derivative():
    weight = parameter(0.5)
    solution = solve(lambda z, _: weight * z + 1, torch.zeros(1, 1, dtype=F64), stop=Stop(1e-15), gradient=Unrolled())
    (first,) = torch.autograd.grad(solution.state.sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first, weight)
    assert second.item() == pytest.approx(2 / 0.5**3)


@pytest.mark.parametrize("gradient", [Implicit(on_failure="raise"), Unrolled(), Unrolled(last=1)])
def test_where_nothing_needs_a_gradient_nothing_is_said(gradient):
    # Not even that rows did not converge: the status says so.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solve(lambda z, _: z + 1, torch.zeros(2, 3), stop=Stop(max_steps=5), gradient=gradient)
    assert not solution.state.requires_grad
    assert solution.state.grad_fn is None
    assert solution.status.tolist() == [Status.MAX_STEPS] * 2


def saved_tensors(gradient, steps: int) -> int:
    weight = (0.1 * torch.eye(4, dtype=F64)).requires_grad_()
    count = 0

    def pack(x):
        nonlocal count
        count += 1
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solve(
            lambda z, _: torch.tanh(z @ weight + 1),
            torch.zeros(2, 4, dtype=F64),
            stop=Stop(0, 0, steps),
            gradient=gradient,
        )
    return count


def test_memory_does_not_grow_with_steps():
    assert saved_tensors(Implicit(), 4) == saved_tensors(Implicit(), 64) > 0
    assert saved_tensors(Unrolled(last=3), 4) == saved_tensors(Unrolled(last=3), 64) > 0
    assert saved_tensors(Unrolled(), 64) > 10 * saved_tensors(Unrolled(), 4)


def test_no_graph_outlives_its_solution():
    weight = parameter(0.5)
    context = torch.ones(2, 3, dtype=F64)
    alive = weakref.ref(context)
    solution = solve(lambda z, c: torch.tanh(weight * z + c), torch.zeros(2, 3, dtype=F64), context)
    solution.state.sum().backward()
    adjoint = solution.adjoint
    del solution, context
    gc.collect()
    assert alive() is None
    assert adjoint is not None


def test_the_adjoint_lets_go_of_finished_rows():
    calls: list[int] = []
    weight = parameter(1.0)
    gain = torch.full((16, 1), 0.05, dtype=F64)
    gain[3] = 0.9

    def step(z, c):
        calls.append(len(z))
        return weight * c * z + 1

    solution = solve(step, torch.zeros(16, 2, dtype=F64), gain, gradient=Implicit(hs.Picard()))
    forward = sum(calls)
    solution.state.sum().backward()
    adjoint = solution.adjoint
    assert adjoint is not None
    assert calls[-1] == 1  # recorded again for the one row that was left
    # Beside the products that steps are: the recording, and one product to compare it with what was recorded before.
    assert adjoint.row_evaluations == int(adjoint.steps.sum()) + sum(calls) - forward + 16


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_under_autocast(gradient):
    # The state is in bfloat16, the weights are not: `backward`, which runs outside of autocast and records the step
    # again when rows leave, must know under what it ran.
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8)
    gain = torch.tensor([0.01, 0.9, 0.3, 0.6], dtype=torch.bfloat16)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            solution = solve(
                lambda z, c: torch.tanh(c * layer(z)), torch.zeros(4, 8, dtype=torch.bfloat16), gain,
                stop=Stop(2e-2), gradient=gradient,
            )  # fmt: skip
        solution.state.float().square().sum().backward()
    if isinstance(gradient, Implicit):
        assert solution.adjoint is not None
        assert len(set(solution.adjoint.steps.tolist())) > 1
    assert layer.weight.grad is not None
    assert torch.isfinite(layer.weight.grad).all()
    assert (layer.weight.grad != 0).any()


def test_a_step_that_ignores_its_state():
    weight = parameter(2.0)
    solution = solve(lambda z, c: weight * c, torch.zeros(2, 1, dtype=F64), torch.ones(2, 1, dtype=F64))
    assert solution.steps.tolist() == [2, 2]
    solution.state.sum().backward()
    assert weight.grad.item() == 2


def test_a_module_is_trained_as_usual():
    torch.manual_seed(0)
    cell, target = torch.nn.Linear(3, 3), torch.randn(8, 3)
    inputs = torch.randn(8, 3)
    with torch.no_grad():
        cell.weight.mul_(0.5)
    optimiser = torch.optim.Adam(cell.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        state = solve(lambda z, x: torch.tanh(cell(z) + x), torch.zeros(8, 3), inputs).state
        loss = (state - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
