"""`returns="best"` and `trace=True` against brute force over the sequence that the map really went through."""

import math

import pytest
import torch
from draws import random
from torch import Tensor

import homeostat as hs
from homeostat import Anderson, Broyden, Implicit, OneStep, Phantom, Picard, Status, Stop, Unrolled
from homeostat.errors import ContractError

F64 = torch.float64
METHODS = [Picard(), Picard(damping=0.6), Anderson(), Broyden()]


pytestmark = pytest.mark.usefixtures("no_gradients")


def shell_map(rate: Tensor) -> tuple:
    """Rows pass the fixed point (1, 1) on a spiral: a contraction that turns into an expansion after a while.

    A clock travels with the state; `rate` says for each row when it turns.
    """

    def step(state, turn):
        z, clock = state
        c, s = math.cos(0.4), math.sin(0.4)
        spin = torch.tensor([[c, -s], [s, c]], dtype=F64)
        factor = torch.where(clock < turn, 0.7, 1.15)
        return 1 + factor * ((z - 1) @ spin.T) - 0.1 * (z - 1).abs() * (z - 1), clock + 1

    return step, (3 + random(0, len(rate), 2), torch.zeros(len(rate), 1, dtype=torch.int64)), rate[:, None]


def followed(step):
    """The same map for one example, and the list of all pairs (z, f(z)) that it will have been asked for."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(state, context):
        after = step(state, context)
        first = lambda x: (x[0] if isinstance(x, tuple) else x).detach().clone()  # noqa: E731
        seen.append((first(state), first(after)))
        return after

    return watched, seen


def relative(pair: tuple[Tensor, Tensor]) -> float:
    before, after = pair
    change = (after - before).norm().item()
    return 0.0 if change == 0 else change / after.norm().item()


@pytest.mark.parametrize("rtol", [0.0, 1e-12])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_best_is_the_brute_force_minimum_of_every_row(method, rtol):
    turn = torch.tensor([3, 5, 5, 6, 2])
    step, start, context = shell_map(turn)
    stop = Stop(rtol, 0.0, torch.tensor([30, 31, 20, 40, 12]))
    together = hs.solve(step, start, context, method=method, stop=stop, returns="best")
    lasts = hs.solve(step, start, context, method=method, stop=stop)
    for row in range(5):
        watched, seen = followed(step)
        one = (start[0][row : row + 1], start[1][row : row + 1])
        limit = Stop(rtol, 0.0, int(stop.max_steps[row]))
        hs.solve(watched, one, context[row : row + 1], method=method, stop=limit, sync_every=1)
        course = [relative(pair) for pair in seen]
        best = min(range(len(course)), key=course.__getitem__)
        assert together.steps[row] == len(course)
        assert together.residual[row].item() == pytest.approx(course[best], rel=1e-9)
        torch.testing.assert_close(together.state[0][row], seen[best][1][0], rtol=1e-12, atol=0)
    assert (together.residual < lasts.residual).sum() >= 2  # otherwise this test shows nothing
    assert torch.equal(together.status, lasts.status)
    assert torch.equal(together.steps, lasts.steps)


@pytest.mark.parametrize("rtol", [0.0, 1e-9])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_trace_is_the_course_of_every_row(method, rtol):
    weight = random(1, 6, 6)
    weight = weight / torch.linalg.matrix_norm(weight, 2)
    rate, shift = torch.tensor([0.1, 0.9, 0.99, 0.5], dtype=F64)[:, None], random(2, 4, 6)
    step = lambda z, c: c[0] * torch.tanh(z @ weight.T) + c[1]  # noqa: E731
    limits = torch.tensor([25, 300, 40, 25])
    found = hs.solve(
        step, torch.zeros(4, 6, dtype=F64), (rate, shift), method=method, stop=Stop(rtol, 0.0, limits), trace=True
    )
    assert found.trace is not None
    assert found.trace.shape[0] == 4
    assert found.trace.shape[1] >= int(found.steps.max())
    assert len(set(found.steps.tolist())) >= 3
    for row in range(4):
        watched, seen = followed(step)
        hs.solve(
            watched, torch.zeros(1, 6, dtype=F64), (rate[row : row + 1], shift[row : row + 1]), method=method,
            stop=Stop(rtol, 0.0, int(limits[row])), sync_every=1,
        )  # fmt: skip
        count = int(found.steps[row])
        assert count == len(seen)
        wanted = torch.tensor([relative(pair) for pair in seen], dtype=F64)
        torch.testing.assert_close(found.trace[row, :count], wanted, rtol=1e-6, atol=1e-14)
        assert found.trace[row, count:].isnan().all()
        torch.testing.assert_close(found.trace[row, count - 1], found.residual[row], rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_watching_changes_nothing_else(method):
    step, start, context = shell_map(torch.tensor([4, 30, 200]))
    stop = Stop(1e-6, 0.0, 60)
    plain = hs.solve(step, start, context, method=method, stop=stop)
    traced = hs.solve(step, start, context, method=method, stop=stop, trace=True)
    assert plain.trace is None
    for name in ("steps", "residual", "status"):
        assert torch.equal(getattr(plain, name), getattr(traced, name))
    assert torch.equal(plain.state[0], traced.state[0])
    assert torch.equal(plain.state[1], traced.state[1])
    assert Status.CONVERGED in plain.status.tolist()
    # For a row that converges, the last iterate is the best: the first below the tolerance.
    best = hs.solve(step, start, context, method=method, stop=stop, returns="best")
    good = plain.status == Status.CONVERGED
    assert torch.equal(best.state[0][good], plain.state[0][good])


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_an_unstable_spiral_returns_where_it_was_closest(method):
    # Started near its repelling fixed point at 1, the residual grows from the first step on.
    c, s = 1.2 * math.cos(0.3), 1.2 * math.sin(0.3)
    spin = torch.tensor([[c, -s], [s, c]], dtype=F64)
    start = torch.tensor([[1.001, 1.0], [1.0, 0.99]], dtype=F64)
    stop = Stop(1e-8, 0.0, 25)
    best = hs.solve(lambda z, _: 1 + (z - 1) @ spin.T, start, method=method, stop=stop, returns="best")
    last = hs.solve(lambda z, _: 1 + (z - 1) @ spin.T, start, method=method, stop=stop)
    torch.testing.assert_close(best.state, 1 + (start - 1) @ spin.T, rtol=0, atol=1e-15)
    assert (best.residual < last.residual).all()
    assert best.status.tolist() == [Status.MAX_STEPS] * 2


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_row_that_diverges_has_its_best_iterate(method):
    start = torch.tensor([[0.3], [2.0], [0.5]], dtype=F64)
    found = hs.solve(lambda z, _: z * z, start, method=method, stop=Stop(1e-9, 1e-12, 100), returns="best", trace=True)
    assert found.status.tolist() == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    damping = getattr(method, "damping", 1.0)
    z, course = 2.0, []
    for _ in range(int(found.steps[1])):
        after = z * z
        course.append(((after - z) / after, after))
        z = z + damping * (after - z)
    lowest = min(course[:-1])
    assert found.residual[1].item() == pytest.approx(lowest[0], rel=1e-9)
    assert found.state[1].item() == pytest.approx(lowest[1], rel=1e-9)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize(
    "stop", [Stop(), Stop(0, 0, 7), Stop(max_steps=0), Stop(max_steps=torch.tensor([0, 5, 0]))], ids=str
)
@pytest.mark.parametrize("returns", ["last", "best"])
def test_rows_that_take_no_step_stay_as_they_are(method, stop, returns):
    start = torch.tensor([[math.nan, 1.0], [1.0, 2.0], [3.0, 4.0]], dtype=F64)
    found = hs.solve(lambda z, _: 0.5 * z + 1, start, method=method, stop=stop, returns=returns, trace=True)
    assert found.trace is not None
    assert found.trace.shape == (3, int(found.steps.max())) or found.trace.shape[1] > int(found.steps.max())
    idle = found.steps == 0
    assert idle[0]
    assert found.status[0] == Status.DIVERGED
    assert found.residual[idle].isnan().all()
    assert found.trace[idle].isnan().all()
    torch.testing.assert_close(found.state[idle], start[idle], rtol=0, atol=0, equal_nan=True)
    assert found.state[~idle].isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("returns", ["last", "best"])
def test_no_rows_to_watch(method, returns):
    found = hs.solve(lambda z, _: z, torch.zeros(0, 3), method=method, returns=returns, trace=True)
    assert found.trace is not None
    assert found.trace.shape == (0, 0)
    assert found.state.shape == (0, 3)


def test_the_best_of_several_leaves_is_of_one_step():
    # The leaves come closest at different steps; what counts is the larger residual, and all leaves are of its step.
    course = torch.tensor([[1.0, 2.0, 2.1, 4.0, 8.0], [1.0, 4.0, 6.0, 6.6, 9.0]], dtype=F64)

    def step(state, _):
        where = state[2][:, 0].clamp(max=4)
        return course[0][where][:, None], course[1][where][:, None], state[2] + 1

    start = (torch.zeros(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64), torch.zeros(1, 1, dtype=torch.int64))
    found = hs.solve(step, start, method=Picard(), stop=Stop(0, 0, 5), returns="best", trace=True)
    assert found.trace is not None
    wanted = [max(1 - a0 / a1, 1 - b0 / b1) for (a0, a1), (b0, b1) in zip(
        zip([0.0, *course[0].tolist()], course[0].tolist(), strict=False),
        zip([0.0, *course[1].tolist()], course[1].tolist(), strict=False), strict=True)]  # fmt: skip
    assert found.trace[0].tolist() == pytest.approx(wanted)
    assert found.residual.item() == pytest.approx(min(wanted))
    at = wanted.index(min(wanted))
    assert [leaf.item() for leaf in found.state] == [course[0][at], course[1][at], at + 1]


def test_the_first_of_equals_is_the_best():
    # z <- z + 1, less in proportion each time, then a jump; a tie between two rows of the same residual.
    values = [4.0, 8.0, 16.0, 32.0]
    step = lambda s, _: (torch.tensor([[values[int(s[1])]]], dtype=F64), s[1] + 1)  # noqa: E731
    start = (torch.tensor([[2.0]], dtype=F64), torch.zeros(1, 1, dtype=torch.int64))
    found = hs.solve(step, start, method=Picard(), stop=Stop(0, 0, 4), returns="best")
    assert found.residual.item() == 0.5
    assert found.state[0].item() == 4.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trace_is_in_float32_at_least(dtype):
    found = hs.solve(
        lambda z, _: z / 2 + 1, torch.zeros(2, 3, dtype=dtype), method=Picard(), stop=Stop(1e-2), trace=True
    )
    assert found.trace is not None
    assert found.trace.dtype == torch.float32
    assert found.trace[0, :3].tolist() == pytest.approx([1.0, 1 / 3, 1 / 7], rel=1e-2)


# Gradients


@pytest.mark.parametrize("gradient", [Implicit(on_failure="warn"), Phantom(), OneStep(), Unrolled()], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_every_gradient_mode_works_with_the_best_iterate(method, gradient):
    # Row 0 passes its fixed point and is at its best in the middle; row 1 converges.
    step, start, turn = shell_map(torch.tensor([5, 100]))
    with torch.enable_grad():
        move = torch.tensor(0.5, dtype=F64, requires_grad=True)

        def moved(state, turn):
            z, clock = step((state[0] - move, state[1]), turn)
            return z + move, clock

        stop = Stop(1e-9, 0.0, 40)
        found = hs.solve(moved, start, turn, method=method, stop=stop, gradient=gradient, returns="best")
        quiet = hs.solve(moved, start, turn, method=method, stop=stop, returns="best", gradient=OneStep())
        torch.testing.assert_close(found.state[0].detach(), quiet.state[0].detach(), rtol=1e-12, atol=0)
        found.state[0].sum().backward()
    assert move.grad is not None
    assert move.grad.isfinite()
    assert move.grad != 0


@pytest.mark.parametrize("method", [Picard(), Anderson(), Broyden()], ids=str)
def test_unrolled_differentiates_the_best_iterate_and_not_the_last(method):
    step, start, turn = shell_map(torch.tensor([4, 8, 1]))
    stop = Stop(0, 0, 14)

    def best(scale: Tensor) -> Tensor:
        def scaled(state, turn):
            z, clock = step(state, turn)
            return z * scale + 0.01 * z * z, clock

        return hs.solve(scaled, start, turn, method=method, stop=stop, gradient=Unrolled(), returns="best").state[0]

    with torch.enable_grad():
        scale = torch.tensor(0.98, dtype=F64, requires_grad=True)
        (found,) = torch.autograd.grad(best(scale).sum(), scale)
    h = 1e-6
    wanted = (best(scale + h).sum() - best(scale - h).sum()) / (2 * h)
    assert abs(wanted) > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("options", [{"returns": "best"}, {"trace": True}])
def test_truncated_steps_cannot_be_watched(options):
    weight = torch.tensor(0.5, requires_grad=True)
    with torch.enable_grad(), pytest.raises(ContractError, match=r"Unrolled\(last=None\)"):
        hs.solve(lambda z, _: weight * z + 1, torch.zeros(1, 1), gradient=Unrolled(last=2), **options)


# Nonsense


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "often"])
def test_impossible_rhythms_of_looking(value):
    with pytest.raises(ValueError, match="sync_every must be a whole number, 1 or more"):
        hs.solve(lambda z, _: z, torch.zeros(1, 1), sync_every=value)


@pytest.mark.parametrize("value", ["first", None, "", "Best", True])
def test_impossible_returns(value):
    with pytest.raises(ValueError, match="returns must be 'last' or 'best'"):
        hs.solve(lambda z, _: z, torch.zeros(1, 1), returns=value)
