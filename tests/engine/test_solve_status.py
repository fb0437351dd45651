"""How examples end: divergence, cycles, the rounding floor, and maps that only look like cycles."""

import math
from functools import partial

import pytest
import torch

import homeostat as hs
from homeostat import Status, Stop
from homeostat.errors import ConvergenceWarning

# The plain loop: what these tests say about steps and states is said of its sequence.
solve = partial(hs.solve, method=hs.Picard())

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stop", [Stop(), Stop(0, 0, 5), Stop(max_steps=0)])
@pytest.mark.parametrize("gradient", [hs.Implicit(), hs.Unrolled(), hs.Unrolled(last=2)])
def test_a_start_that_is_not_finite_takes_no_step(bad, stop, gradient):
    start = torch.zeros(3, 2)
    start[1, 0] = bad
    seen: list[int] = []

    def step(z, _):
        assert torch.isfinite(z).all()
        seen.append(len(z))
        return z / 2 + 1

    with torch.set_grad_enabled(isinstance(gradient, hs.Unrolled)):
        solution = solve(step, start, stop=stop, gradient=gradient)
    assert solution.status[1] == Status.DIVERGED
    assert solution.steps[1] == 0
    assert solution.residual[1].isnan()
    assert torch.equal(solution.state[1], start[1]) or math.isnan(bad)
    assert torch.equal(solution.state[1].isnan(), start[1].isnan())
    assert (solution.status[[0, 2]] != Status.DIVERGED).all()
    assert max(seen, default=0) <= 2


@pytest.mark.parametrize("gradient", [hs.Implicit(on_failure="mask"), hs.Unrolled(), hs.Unrolled(last=3)])
@pytest.mark.parametrize("how", ["grows", "becomes NaN"])
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_a_row_that_diverges_keeps_its_last_finite_iterate(gradient, how):
    def step(z, c):
        after = c[:, None] * z * z + 1
        return torch.where(after > 1e6, math.nan, after) if how == "becomes NaN" else after

    gain = torch.tensor([0.1, 5.0, 0.2], requires_grad=True)
    with torch.set_grad_enabled(isinstance(gradient, hs.Unrolled)):
        solution = solve(step, torch.zeros(3, 2), gain, gradient=gradient)
    assert solution.status.tolist() == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    z, count = torch.zeros(1, 2), 0
    while True:
        after, count = step(z, gain[1:2].detach()), count + 1
        if not (after.abs() <= 1e28).all():
            break
        z = after
    assert torch.equal(solution.state[1].detach(), z[0])
    assert solution.steps[1] == count


def test_a_row_that_diverges_disturbs_nobody():
    gain = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) * 0.9
    gain[2] = 1e15
    others = torch.tensor([0, 1, 3, 4, 5])

    def step(z, c):
        return c * z + 1

    together = solve(step, torch.zeros(6, 5), gain, stop=Stop(1e-6, 0.0, 500))
    apart = solve(step, torch.zeros(5, 5), gain[others], stop=Stop(1e-6, 0.0, 500))
    assert together.status[2] == Status.DIVERGED
    for name in ("state", "steps", "residual", "status"):
        assert torch.equal(getattr(together, name)[others], getattr(apart, name)), name


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e28), (F64, 1e100), (torch.float16, 1e4)])
def test_divergence_is_declared_beyond_a_stated_bound(dtype, bound):
    start = torch.full((1, 2), bound / 16, dtype=dtype)
    solution = solve(lambda z, _: z * 2, start, stop=Stop(1e-4, 0.0, 30))
    assert solution.status.item() == Status.DIVERGED
    assert 4 <= solution.steps.item() <= 5
    assert solution.state.max().item() <= bound * 1.01


@pytest.mark.parametrize("period", [2, 3, 5, 16])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_cycles_are_recognised(period, dtype):
    # A rotation of `period` coordinates, reached through a contracting coordinate that dies out.
    start = torch.arange(1.0, period + 1, dtype=dtype)[None]
    state = (start, torch.ones(1, 1, dtype=dtype))
    solution = solve(lambda s, _: (s[0].roll(1, 1) + s[1], s[1] * 0.5), state, stop=Stop(1e-4, 1e-6, 500))
    assert solution.status.item() == Status.CYCLING
    assert solution.steps.item() < 100
    assert solution.residual.item() > 0.1


def test_a_period_beyond_sixteen_is_not_called_a_cycle():
    start = torch.arange(1.0, 18.0)[None]
    assert solve(lambda z, _: z.roll(1, 1), start).status.item() == Status.MAX_STEPS


def test_a_cycle_in_one_row_leaves_the_others_alone():
    gain = torch.tensor([[-1.0], [0.99]])
    solution = solve(lambda z, c: c * z + 1, torch.zeros(2, 3), gain, stop=Stop(1e-5, 0.0, 3000))
    assert solution.status.tolist() == [Status.CYCLING, Status.CONVERGED]
    assert solution.steps[0] < 100 < solution.steps[1]


@pytest.mark.parametrize(
    ("gain", "dtype", "rtol"),
    [
        (-0.9, torch.float32, 1e-5),
        (-0.99, torch.float32, 1e-5),
        (-0.99, F64, 1e-5),
        (-0.99, F64, 1e-12),
        (-0.999, F64, 1e-4),
    ],
)
def test_a_map_that_converges_while_alternating_is_not_a_cycle(gain, dtype, rtol):
    shift = torch.tensor([[1.0, -2.0, 3.0]], dtype=dtype)
    solution = solve(lambda z, c: gain * z + c, torch.zeros(1, 3, dtype=dtype), shift, stop=Stop(rtol, 0.0, 60_000))
    assert solution.status.item() == Status.CONVERGED
    torch.testing.assert_close(solution.state, shift / (1 - gain), rtol=2 * rtol, atol=0)


def test_a_spiral_that_converges_is_not_a_cycle():
    # A quarter turn that shrinks by 1 % a step: the lag-4 residual is small long before the lag-1 residual is.
    turn = 0.99 * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
    shift = torch.tensor([[1.0, 2.0]], dtype=F64)
    solution = solve(lambda z, c: z @ turn.T + c, torch.zeros(1, 2, dtype=F64), shift, stop=Stop(1e-6, 0.0, 5000))
    assert solution.status.item() == Status.CONVERGED


def test_a_slow_map_is_neither_stalled_nor_a_cycle():
    solution = solve(lambda z, _: 0.998 * z + 1, torch.zeros(1, 2, dtype=F64), stop=Stop(1e-7, 0.0, 30_000))
    assert solution.status.item() == Status.CONVERGED


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(3))
def test_low_precision_ends_at_its_floor_and_not_at_its_budget(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(16, 16, generator=generator) / 4 * 0.8
    shift = torch.randn(8, 16, generator=generator)
    with pytest.warns(ConvergenceWarning, match=r"rtol=1e-06 is finer than b?float16 can resolve"):
        solution = solve(
            lambda z, c: torch.tanh(z.float() @ weight.T + c.float()).to(dtype),
            torch.zeros(8, 16, dtype=dtype),
            shift.to(dtype),
            stop=Stop(1e-6, 0.0, 5000),
        )
    assert set(solution.status.tolist()) <= {Status.CONVERGED, Status.STALLED}
    assert solution.steps.max() < 300


def test_under_autocast_the_floor_is_that_of_the_arithmetic():
    generator = torch.Generator().manual_seed(0)
    weight, shift = torch.randn(32, 32, generator=generator) / 7, torch.randn(16, 32, generator=generator)

    def step(z, c):
        return torch.tanh(z @ weight + c)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        solution = solve(step, torch.zeros(16, 32), shift, stop=Stop(1e-6, 0.0, 5000))
    assert solution.state.dtype == torch.float32
    assert set(solution.status.tolist()) <= {Status.CONVERGED, Status.STALLED}
    assert Status.STALLED in solution.status.tolist()  # otherwise this test shows nothing
    assert solution.steps.max() < 500
    torch.testing.assert_close(solution.state, solve(step, torch.zeros(16, 32), shift).state, rtol=0, atol=0.05)


def test_float32_stalls_at_its_rounding_floor():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator) / 8 * 0.9
    shift = torch.randn(16, 64, generator=generator)
    stop = Stop(1e-12, 0.0, 20_000)
    with pytest.warns(ConvergenceWarning, match="rtol=1e-12 is finer than float32 can resolve; 7.5e-09 is used"):
        solution = solve(lambda z, c: torch.tanh(z @ weight + c), torch.zeros(16, 64), shift, stop=stop)
    assert set(solution.status.tolist()) <= {Status.CONVERGED, Status.STALLED, Status.CYCLING}
    assert Status.STALLED in solution.status.tolist()
    assert solution.residual.max() <= 16 * torch.finfo(torch.float32).eps
    assert solution.steps.max() < 1000


def test_a_rounding_cycle_is_stalled_and_not_cycling():
    # Rounding keeps an alternating slow map alive as a small two-cycle: not a property of the map.
    shift = torch.rand(64, 1, generator=torch.Generator().manual_seed(0))
    solution = solve(lambda z, c: -0.99 * z + c, torch.zeros(64, 1), shift, stop=Stop(1e-7, 0.0, 20_000))
    assert set(solution.status.tolist()) <= {Status.CONVERGED, Status.STALLED}
    assert solution.steps.max() < 5000


def test_nothing_overflows_or_vanishes_into_convergence():
    # Squares of these values are infinite or 0 in float32; none of the maps converges within the budget.
    scale = torch.tensor([1e25, 1e-25, 1e-30])[:, None]
    solution = solve(lambda z, s: -z + s, torch.zeros(3, 4), scale, stop=Stop(1e-4, 0.0, 20))
    assert solution.status.tolist() == [Status.MAX_STEPS] * 3
    assert (solution.residual >= 1).all()


# Drift: a residual that looks small beside a state that grows


@pytest.mark.parametrize("method", [hs.Picard(), hs.Picard(0.5), hs.Picard(0.1), hs.Anderson(), hs.Broyden()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("rtol", [1e-2, 3e-3])
def test_a_map_without_a_fixed_point_does_not_converge_by_growing(rtol, dtype, method):
    shift = torch.tensor([[1.0, -2.0, 0.3], [5.0, 5.0, 5.0]], dtype=dtype)
    stop = Stop(rtol, 0.0, int(1.3 / rtol / getattr(method, "damping", 1.0)))
    for every in (None, 7) if rtol == 1e-2 else (None,):
        found = hs.solve(lambda z, c: z + c, torch.zeros_like(shift), shift, method=method, stop=stop, sync_every=every)
        assert found.status.tolist() == [Status.MAX_STEPS] * 2
        assert (found.residual < rtol).all()  # otherwise this test shows nothing


def test_a_leaf_that_drifts_keeps_its_row_and_no_other_from_converging():
    matrix = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=F64))[0]
    rate = torch.tensor([1.0, 0.9, 0.5, 0.3, 0.1, 0.0], dtype=F64)
    system = matrix @ torch.diag(rate) @ matrix.T  # one eigenvalue is 1
    away, along = matrix[:, 1:].sum(1), matrix[:, 0]
    shift = torch.stack([away, away + along])
    start = (torch.zeros(2, 6, dtype=F64), torch.zeros(2, 1, dtype=F64))
    found = solve(lambda s, c: (s[0] @ system.T + c, 0.5 * s[1] + 1), start, shift, stop=Stop(1e-2, 0.0, 2000))
    assert found.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS]


def test_a_drift_that_comes_to_its_end_converges_there():
    cap = torch.full((1, 3), 400.0, dtype=F64)
    for every in (None, 1, 5):
        found = solve(
            lambda z, c: torch.minimum(z + 1, c), torch.zeros(1, 3, dtype=F64), cap, stop=Stop(1e-2, 0.0, 900),
            sync_every=every,
        )  # fmt: skip
        assert found.status.item() == Status.CONVERGED
        assert found.steps.item() == 401
        assert torch.equal(found.state, cap)


@pytest.mark.parametrize("rate", [0.9, 0.99, 0.999, 0.9999, -0.999])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_map_with_a_fixed_point_within_reach_stops_where_the_formula_says(rate, dtype):
    shift = torch.tensor([[1.0, 2.0]], dtype=dtype)
    for rtol in (3e-2, 1e-3, 3e-4, 1e-5):
        if rtol > 10 * (1 - rate):
            continue  # the fixed point is ten times as far away as the state is large
        if dtype == torch.float32 and rtol < 1e3 * torch.finfo(dtype).eps / (1 - abs(rate)):
            continue  # rounding
        found = solve(lambda z, c: rate * z + c, torch.zeros(1, 2, dtype=dtype), shift, stop=Stop(rtol, 0.0, 200_000))
        assert found.status.item() == Status.CONVERGED
        z, steps, size = 0.0, 0, 0.0
        while steps == 0 or size > rtol:
            after = rate * z + 1
            size, z, steps = abs(after - z) / abs(after), after, steps + 1
        assert abs(found.steps.item() - steps) <= (1 if dtype == F64 else 0.01 * steps)


def test_states_that_are_filled_entry_by_entry_converge_when_they_are_full():
    # f(z) - z keeps its size here too, one entry, and is 6 % of the state where half of the entries are still missing.
    length = 500
    entry = torch.ones(1, 1, dtype=F64)
    found = solve(
        lambda z, c: torch.cat([c, z[:, :-1]], 1), torch.zeros(1, length, dtype=F64), entry, stop=Stop(6e-2, 0.0, 900)
    )
    assert found.status.item() == Status.CONVERGED
    assert torch.equal(found.state, torch.ones(1, length, dtype=F64))
    assert found.steps.item() == length + 1
