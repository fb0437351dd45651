"""What `solve` returns: fixed points known in closed form, the residual by its definition, steps, and the true cost."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat import Status, Stop

# The plain loop: what these tests say about steps and states is said of its sequence.
solve = partial(hs.solve, method=hs.Picard())

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("no_gradients")


def contraction(seed: int, size: int, norm: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=F64)
    return matrix * norm / torch.linalg.matrix_norm(matrix, 2), torch.randn(5, size, generator=generator, dtype=F64)


@pytest.mark.parametrize("norm", [0.2, 0.7, 0.95])
def test_a_linear_map_reaches_its_closed_form_fixed_point(norm):
    matrix, shift = contraction(0, 6, norm)
    exact = torch.linalg.solve(torch.eye(6, dtype=F64) - matrix, shift.T).T
    solution = solve(lambda z, b: z @ matrix.T + b, torch.zeros(5, 6, dtype=F64), shift, stop=Stop(1e-12, 0.0, 2000))
    assert (solution.status == Status.CONVERGED).all()
    torch.testing.assert_close(solution.state, exact, rtol=0, atol=1e-10)
    assert solution.steps.dtype == torch.int64
    assert solution.status.dtype == torch.int8
    assert solution.residual.dtype == F64


def test_steps_residual_and_state_follow_their_definitions():
    gain = torch.tensor([0.5, 0.9, 0.99], dtype=F64)
    start = torch.tensor([[3.0, -1.0], [0.0, 0.0], [5.0, 5.0]], dtype=F64)
    rtol = 1e-5
    solution = solve(lambda z, c: c[:, None] * z + 1, start, gain, stop=Stop(rtol, 0.0, 5000))
    for row in range(3):
        z, count = start[row], 0
        while True:
            after, count = gain[row] * z + 1, count + 1
            residual = (after - z).square().mean().sqrt() / after.square().mean().sqrt()
            z = after
            if residual <= rtol:
                break
        assert solution.steps[row] == count
        torch.testing.assert_close(solution.residual[row], residual, rtol=1e-12, atol=0)
        assert torch.equal(solution.state[row], z)


def test_the_residual_is_the_largest_over_floating_leaves():
    start = (torch.full((1, 2), 8.0), torch.full((1, 3), 4.0), torch.full((1,), 7))
    solution = solve(lambda s, _: (s[0] / 2, s[1] * 0.75, s[2] + 100), start, stop=Stop(1e-7, 0.0, 1))
    assert solution.residual.item() == 1.0  # |4 - 8| / 4; the other floating leaf has 1 / 3
    assert solution.status.item() == Status.MAX_STEPS
    assert solution.state[2].item() == 107


def test_one_leaf_that_still_moves_keeps_the_example_going():
    solution = solve(lambda s, _: (s[0], 0.9 * s[1] + 1), (torch.ones(1, 2), torch.zeros(1, 2)))
    assert solution.steps.item() > 50
    assert solution.state[1][0, 0].item() == pytest.approx(10, rel=1e-2)


def test_zero_over_zero_is_converged():
    solution = solve(lambda z, _: z * 2, torch.zeros(3, 4))
    assert solution.status.tolist() == [Status.CONVERGED] * 3
    assert solution.steps.tolist() == [1] * 3
    assert solution.residual.tolist() == [0.0] * 3


def test_an_identity_map_converges_in_one_step_whatever_its_state():
    start = torch.tensor([[1e-30, 2e-30], [1.0, 2.0], [1e27, 1e27]])
    solution = solve(lambda z, _: z, start)
    assert solution.status.tolist() == [Status.CONVERGED] * 3
    assert solution.steps.tolist() == [1] * 3
    assert torch.equal(solution.state, start)


def test_a_fixed_point_at_zero_needs_an_absolute_tolerance():
    def halve(z, _):
        return z / 2

    without = solve(halve, torch.ones(1, 3), stop=Stop(1e-4, 0.0, 60))
    assert without.status.item() == Status.MAX_STEPS
    assert without.residual.item() == 1.0
    with_one = solve(halve, torch.ones(1, 3), stop=Stop(1e-4, 1e-3, 60))
    assert with_one.status.item() == Status.CONVERGED
    assert with_one.steps.item() == 10  # 2^-n (the change) falls below 1e-3 at n = 10


@pytest.mark.parametrize("last", [None, 3])
@pytest.mark.parametrize("limits", [7, [0, 1, 4, 7]])
def test_without_tolerances_exactly_max_steps_are_taken(limits, last):
    calls: list[int] = []

    def step(z, _):
        calls.append(len(z))
        return z  # would converge at once

    stop = Stop(0, 0, torch.tensor(limits) if isinstance(limits, list) else limits)
    wanted = limits if isinstance(limits, list) else [limits] * 4
    with torch.set_grad_enabled(last is not None):
        solution = solve(step, torch.ones(4, 2), stop=stop, gradient=hs.Unrolled(last=last))
    assert solution.steps.tolist() == wanted
    assert solution.row_evaluations == sum(wanted)
    assert solution.status.tolist() == [Status.MAX_STEPS] * 4
    # At the first use of a step some rows are evaluated alone, to see that they do not hear of the others.
    calls.clear()
    with torch.set_grad_enabled(last is not None):
        solve(step, torch.ones(4, 2), stop=stop, gradient=hs.Unrolled(last=last))
    assert sum(calls) == sum(wanted)


def test_without_tolerances_finiteness_is_seen_at_the_end_only():
    def through_infinity(z, _):
        return torch.where(torch.isinf(z), torch.ones_like(z), z * 1e20)

    back = solve(through_infinity, torch.ones(1, 2), stop=Stop(0, 0, 3))  # 1e20, inf, 1
    assert back.status.item() == Status.MAX_STEPS
    assert torch.equal(back.state, torch.ones(1, 2))
    there = solve(through_infinity, torch.ones(1, 2), stop=Stop(0, 0, 2))
    assert there.status.item() == Status.DIVERGED
    assert torch.isinf(there.state).all()


def test_a_row_without_tolerance_among_rows_with_one_takes_all_its_steps():
    gain = torch.tensor([0.5, 0.5, 1e20, 0.0])
    stop = Stop(torch.tensor([0.0, 1e-3, 0.0, 0.0], dtype=F64), 0.0, torch.tensor([90, 90, 3, 5]))

    def step(z, c):
        return c[:, None] * z + 1

    together = solve(step, torch.zeros(4, 2), gain, stop=stop)
    assert together.steps.tolist()[0] == 90
    assert together.steps.tolist()[1] < 15
    assert together.steps.tolist()[2:] == [3, 5]
    assert together.status.tolist() == [Status.MAX_STEPS, Status.CONVERGED, Status.DIVERGED, Status.MAX_STEPS]
    bare = torch.tensor([0, 2, 3])
    alone = solve(step, torch.zeros(3, 2), gain[bare], stop=Stop(0, 0, torch.tensor([90, 3, 5])))
    assert torch.equal(together.state[bare], alone.state)
    assert torch.equal(together.status[bare], alone.status)


def test_tolerances_and_limits_may_differ_by_row():
    rtol, limits = torch.tensor([1e-2, 1e-6, 1e-6]), torch.tensor([100, 100, 5])
    solution = solve(lambda z, _: z / 2 + 1, torch.zeros(3, 2), stop=Stop(rtol, 0.0, limits))
    # The n-th iterate is 2 - 2^(1-n), and it moved by 2^(1-n).
    wanted = [next(n for n in range(1, 99) if 2 * 0.5**n / (2 - 2 * 0.5**n) <= r) for r in (1e-2, 1e-6)]
    assert solution.steps.tolist() == [*wanted, 5]
    assert solution.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.MAX_STEPS]


@pytest.mark.parametrize("gradient", [hs.Implicit(), hs.Unrolled(), hs.Unrolled(last=2)])
@pytest.mark.parametrize("rtol", [0.0, 1e-4])
def test_no_steps_at_all(gradient, rtol):
    start = torch.randn(3, 2)
    with torch.enable_grad():
        solution = solve(lambda z, _: z / 2, start, stop=Stop(rtol, 0.0, 0), gradient=gradient)
    assert torch.equal(solution.state, start)
    assert solution.steps.tolist() == [0, 0, 0]
    assert solution.residual.isnan().all()
    assert solution.status.tolist() == [Status.MAX_STEPS] * 3


@pytest.mark.parametrize("gradient", [hs.Implicit(), hs.Unrolled(), hs.Unrolled(last=2)])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 3, 2)])
def test_no_rows_at_all(gradient, shape):
    weight = torch.tensor(0.5, requires_grad=True)
    for stop in (Stop(), Stop(0, 0, 5), Stop(torch.zeros(0), 0.0, torch.zeros(0, dtype=torch.int64))):
        with torch.enable_grad():
            solution = solve(lambda z, _: weight * z, torch.zeros(shape), stop=stop, gradient=gradient)
        assert solution.state.shape == shape
        assert solution.steps.shape == (0,)
        assert solution.row_evaluations == 0
        repr(solution)


def test_a_leaf_without_elements_is_never_in_the_way():
    solution = solve(lambda s, _: (s[0], s[1] / 2 + 1), (torch.zeros(2, 0), torch.zeros(2, 1)))
    assert (solution.status == Status.CONVERGED).all()
    assert solution.steps.min() > 5


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_stop_is_free_of_dimension(size):
    solution = solve(lambda z, _: 0.9 * z + 1, torch.zeros(1, size, dtype=F64), stop=Stop(1e-6, 0.0, 999))
    reference = solve(lambda z, _: 0.9 * z + 1, torch.zeros(1, dtype=F64), stop=Stop(1e-6, 0.0, 999))
    assert abs(solution.steps.item() - reference.steps.item()) <= 1


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e6, 1e25])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_stop_is_free_of_scale(scale, dtype):
    matrix, shift = contraction(1, 6, 0.9)
    matrix, shift = matrix.to(dtype), shift.to(dtype)

    def solved(scale: float) -> hs.Solution:
        # z -> s f(z / s): nonlinear, so that a scale does not just cancel
        step = lambda z, b: scale * torch.tanh((z / scale) @ matrix.T + b)  # noqa: E731
        return solve(step, torch.zeros(5, 6, dtype=dtype), shift, stop=Stop(1e-5, 0.0, 1000))

    plain, scaled = solved(1.0), solved(scale)
    assert (plain.steps - scaled.steps).abs().max() <= 1
    assert (scaled.status == Status.CONVERGED).all()
    assert plain.steps.min() > 5
    torch.testing.assert_close(scaled.state / scale, plain.state, rtol=1e-4, atol=1e-5)


def test_rows_of_very_different_scale_share_a_batch():
    scale = torch.tensor([1e-25, 1.0, 1e25])[:, None]
    solution = solve(lambda z, s: 0.9 * z + s, torch.zeros(3, 4), scale, stop=Stop(1e-5, 0.0, 500))
    assert (solution.status == Status.CONVERGED).all()
    assert (solution.steps.max() - solution.steps.min()) <= 1
    assert solution.steps.min() > 50


def test_a_shift_never_converges_within_its_budget():
    solution = solve(lambda z, _: z + 1, torch.zeros(2, 3))
    assert solution.status.tolist() == [Status.MAX_STEPS] * 2
    assert solution.residual.tolist() == pytest.approx([1 / 200] * 2)


def test_row_evaluations_count_what_the_step_really_saw():
    calls: list[int] = []

    def step(z, gain):
        calls.append(len(z))
        return gain * z + 1

    gain = torch.tensor([0.0, 0.3, 0.9, 0.99])[:, None]
    solve(step, torch.zeros(4, 2), gain, stop=Stop(1e-5, 0.0, 50))  # the first use, with a look at some rows alone
    calls.clear()
    solution = solve(step, torch.zeros(4, 2), gain, stop=Stop(1e-5, 0.0, 400))
    # A test that looks every few steps may see a row finish late: its answer is that of the first step all the same.
    assert int(solution.steps.sum()) <= solution.row_evaluations <= 1.02 * int(solution.steps.sum())
    assert len(calls) == solution.steps.max()
    assert solution.row_evaluations == sum(calls)
    assert calls == sorted(calls, reverse=True)


@pytest.mark.parametrize("gradient", [hs.Implicit(on_failure="mask"), hs.Unrolled(), hs.Unrolled(last=3)])
@pytest.mark.parametrize("diverging", [False, True])
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_row_evaluations_include_what_the_gradient_needed(gradient, diverging):
    calls: list[int] = []
    weight = torch.tensor(1.0, requires_grad=True)

    def step(z, gain):
        calls.append(len(z))
        return weight * gain * z * (1 + z.abs()) + 1

    gain = torch.tensor([0.0, 0.02, 0.1, 9.0 if diverging else 0.1])[:, None]
    with torch.enable_grad():
        solve(step, torch.zeros(4, 2), gain, gradient=gradient)  # at its first use a step is looked at more closely
        calls.clear()
        solution = solve(step, torch.zeros(4, 2), gain, gradient=gradient)
    halves = sum(calls) - solution.row_evaluations  # rows that are evaluated without others, to see that they can be
    assert halves in (0, 1, 2, 3)
    assert bool((solution.status == Status.DIVERGED).any()) is diverging


def test_finished_rows_cost_nothing():
    gain = torch.full((64, 1), 0.3)
    gain[17] = 0.97
    solution = solve(lambda z, c: c * z + 1, torch.zeros(64, 8), gain, stop=Stop(1e-6, 0.0, 2000))
    assert (solution.status == Status.CONVERGED).all()
    assert solution.row_evaluations <= 1700


def test_a_former_state_is_a_warm_start():
    matrix, shift = contraction(2, 6, 0.95)
    first = solve(lambda z, b: z @ matrix.T + b, torch.zeros(5, 6, dtype=F64), shift, stop=Stop(1e-8, 0.0, 2000))
    again = solve(lambda z, b: z @ matrix.T + b, first.state, shift, stop=Stop(1e-8, 0.0, 2000))
    assert first.steps.min() > 20
    assert again.steps.tolist() == [1] * 5


def test_no_grad_and_inference_mode():
    weight = torch.tensor(0.5, requires_grad=True)
    with torch.inference_mode():
        quiet = solve(lambda z, _: weight * z + 1, torch.zeros(2, 3))
    assert not quiet.state.requires_grad
    other = solve(lambda z, _: weight * z + 1, torch.zeros(2, 3))
    assert not other.state.requires_grad
    assert torch.equal(quiet.state, other.state)


@pytest.mark.parametrize("call", [{"tol": 1e-3}, {"max_iter": 3}, {"stop": Stop(), "solver": "anderson"}])
def test_unknown_options_are_refused(call):
    with pytest.raises(TypeError, match="unexpected keyword"):
        solve(lambda z, _: z, torch.zeros(2, 3), **call)


@pytest.mark.parametrize(
    ("name", "value"), [("method", hs.Picard), ("method", "picard"), ("stop", 1e-3), ("gradient", hs.Unrolled)]
)
def test_options_are_objects(name, value):
    with pytest.raises(TypeError, match=name):
        solve(lambda z, _: z, torch.zeros(2, 3), **{name: value})


def test_the_callers_state_is_left_alone():
    start = {"z": torch.zeros(2, 3)}
    before = start["z"].clone()
    solve(lambda s, _: {"z": s["z"] + 1}, start)
    assert torch.equal(start["z"], before)
    assert list(start) == ["z"]


def test_the_table_counts_every_status():
    gain = torch.tensor([0.1, 0.1, 1.0, 9e9])[:, None]
    text = repr(solve(lambda z, c: c * z + 1, torch.zeros(4, 2), gain, stop=Stop(1e-6, 0.0, 9)))
    assert [line.split()[:2] for line in text.splitlines()[2:]] == [
        ["CONVERGED", "2"],
        ["MAX_STEPS", "1"],
        ["DIVERGED", "1"],
    ]
    assert not math.isnan(solve(lambda z, _: z, torch.zeros(1, 1)).residual.item())
