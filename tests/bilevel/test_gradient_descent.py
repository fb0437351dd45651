"""Gradient descent as an iterated map, against closed forms."""

import pytest
import torch

import homeostat as hs
from homeostat.bilevel import GradientDescent, row_gradients


def quadratic(p: torch.Tensor, context: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    hessian, centre = context
    d = p - centre
    return 0.5 * torch.einsum("bi,bij,bj->b", d, hessian, d)


def problem(rows: int = 5, n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    a = torch.randn(rows, n, n, dtype=torch.float64)
    scales = torch.tensor([1e-3, 1.0, 1e3, 1.0, 1.0], dtype=torch.float64).view(-1, 1, 1)
    return scales * (a @ a.mT + torch.eye(n)), torch.randn(rows, n, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 7])
def test_fixed_steps_are_the_closed_form(steps: int) -> None:
    hessian, centre = problem()
    hessian = hessian / torch.linalg.matrix_norm(hessian, 2)[:, None, None]
    descent = GradientDescent(0.7)
    found = hs.solve(
        lambda s, c: descent.step(quadratic, s, c),
        torch.zeros_like(centre),
        (hessian, centre),
        method=hs.Picard(),
        stop=hs.Stop(rtol=0, max_steps=steps),
    ).state
    power = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - 0.7 * hessian, steps)
    torch.testing.assert_close(found, centre - (power @ centre[:, :, None])[:, :, 0])


def test_the_search_lowers_every_loss_at_any_scale_and_rows_do_not_mix() -> None:
    hessian, centre = problem()
    descent = GradientDescent()

    def run(rows: list[int]) -> torch.Tensor:
        context = (hessian[rows], centre[rows])
        state = descent.start(torch.zeros_like(context[1]))
        losses = [quadratic(descent.parameters(state), context)]
        state = {"parameters": state["parameters"], "step_size": state["step_size"].value}
        for _ in range(60):
            state = descent.step(quadratic, state, context)
            losses.append(quadratic(state["parameters"], context))
        stacked = torch.stack(losses)
        assert bool((stacked.diff(dim=0) <= 1e-12 * stacked[:-1]).all())
        return state["parameters"]

    together = run([0, 1, 2, 3, 4])
    for row in range(5):
        assert torch.equal(run([row])[0], together[row])


def test_gradients_of_rows_can_be_differentiated_again() -> None:
    shift = torch.tensor([2.0, 3.0], requires_grad=True)
    found = row_gradients(lambda p, c: (shift * p**2).sum(1), torch.ones(3, 2), None)
    found.sum().backward()
    assert shift.grad is not None
    assert shift.grad.tolist() == [6.0, 6.0]


def test_a_step_size_that_is_too_large_diverges_and_says_so() -> None:
    hessian, centre = problem()
    descent = GradientDescent(1.0)
    solution = hs.solve(
        lambda s, c: descent.step(quadratic, s, c),
        torch.zeros_like(centre),
        (hessian, centre),
        method=hs.Picard(),
        stop=hs.Stop(max_steps=500),
    )
    assert solution.status[2] == hs.Status.DIVERGED


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf"), "0.1"])
def test_impossible_step_sizes_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="step_size must be above 0"):
        GradientDescent(wrong)  # type: ignore[arg-type]


def test_the_search_converges_below_what_the_loss_resolves() -> None:
    """The loss is about 1 at its minimum, so that it is flat to rounding within 1e-8 of the solution."""
    hessian, centre = problem()

    def lifted(p: torch.Tensor, context: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return 1 + quadratic(p, context)

    rows = [1, 3, 4]
    context = (hessian[rows], centre[rows])
    descent = GradientDescent()
    solution = hs.solve(
        lambda s, c: descent.step(lifted, s, c),
        descent.start(torch.zeros_like(context[1])),
        context,
        method=hs.Picard(),
        stop=hs.Stop(rtol=1e-12, max_steps=5000),
    )
    assert bool(solution.converged.all())
    torch.testing.assert_close(solution.state["parameters"], context[1], rtol=1e-10, atol=1e-10)
    largest = torch.linalg.eigvalsh(context[0]).amax(1)
    assert bool((solution.state["step_size"].value < 16 / largest + 16).all()), "step sizes grew without end"
