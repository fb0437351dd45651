"""Accelerated methods: right answers, few evaluations, never much worse than the plain loop, and honest ends."""

import math

import pytest
import torch
from draws import random
from torch import Tensor
from torch.nn.functional import conv2d

import homeostat as hs
from homeostat import Anderson, Broyden, Picard, Status, Stop

F32, F64 = torch.float32, torch.float64
METHODS = [Picard(), Anderson(), Broyden()]
ACCELERATED = [
    Anderson(), Anderson(memory=1), Anderson(memory=3, damping=0.7), Broyden(), Broyden(memory=2),
]  # fmt: skip
NAMES = ("state", "steps", "residual", "status")


pytestmark = pytest.mark.usefixtures("no_gradients")


# Right answers


def symmetric() -> Tensor:
    basis = torch.linalg.qr(random(1, 12, 12))[0]
    return basis @ torch.diag(torch.linspace(-0.95, 0.95, 12, dtype=F64)) @ basis.T


def non_normal() -> Tensor:
    # Spectral radius 0.6, norm far above 1: the residual grows tenfold before it shrinks.
    return 0.6 * torch.eye(8, dtype=F64) + 0.9 * torch.triu(torch.ones(8, 8, dtype=F64), 1) / 2


def rotations() -> Tensor:
    blocks = []
    for angle in (0.3, 1.2, 2.5, math.pi / 2):
        c, s = math.cos(angle), math.sin(angle)
        blocks.append(0.9 * torch.tensor([[c, -s], [s, c]], dtype=F64))
    return torch.block_diag(*blocks)


@pytest.mark.parametrize("method", ACCELERATED, ids=str)
@pytest.mark.parametrize("make", [symmetric, non_normal, rotations])
def test_linear_maps_reach_the_solution_of_their_linear_system(make, method):
    matrix = make()
    size = len(matrix)
    shift = random(2, 5, size)
    exact = torch.linalg.solve(torch.eye(size, dtype=F64) - matrix, shift.T).T
    solution = hs.solve(
        lambda z, b: z @ matrix.T + b,
        torch.zeros(5, size, dtype=F64),
        shift,
        method=method,
        stop=Stop(1e-11, 0.0, 2000),
    )
    assert (solution.status == Status.CONVERGED).all()
    torch.testing.assert_close(solution.state, exact, rtol=1e-8, atol=1e-8)


def tanh_map(gain: float):
    weight, shift = random(3, 16, 16), random(4, 6, 16)
    weight = gain * weight / torch.linalg.matrix_norm(weight, 2)
    return lambda z, c: torch.tanh(z @ weight.to(z.dtype).T + c), torch.zeros(6, 16, dtype=F64), 0.1 * shift


def slow_map():
    """tanh near its linear part, with slow modes of all rates up to 0.995."""
    basis = torch.linalg.qr(random(17, 16, 16))[0]
    weight = basis @ torch.diag(torch.linspace(0.5, 0.995, 16, dtype=F64)) @ basis.T
    return lambda z, c: torch.tanh(z @ weight + c), torch.zeros(6, 16, dtype=F64), 1e-3 * random(18, 6, 16)


def conv_map(gain: float):
    kernel, picture = random(5, 3, 3, 3, 3), random(6, 4, 3, 7, 7)
    kernel = gain * kernel / kernel.abs().sum((1, 2, 3)).max()
    return lambda z, c: torch.relu(conv2d(z, kernel.to(z.dtype), padding=1) + c), torch.zeros_like(picture), picture


@pytest.mark.parametrize("method", ACCELERATED, ids=str)
@pytest.mark.parametrize("case", [tanh_map(0.9), slow_map(), conv_map(0.98)], ids=["tanh", "slow tanh", "conv"])
def test_nonlinear_maps_reach_the_end_of_a_long_plain_loop(case, method):
    step, start, context = case
    z = start
    for _ in range(6000):
        z = step(z, context)
    solution = hs.solve(step, start, context, method=method, stop=Stop(1e-11, 0.0, 3000))
    assert (solution.status == Status.CONVERGED).all()
    torch.testing.assert_close(solution.state, z, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ACCELERATED, ids=str)
def test_what_is_returned_is_the_last_value_of_the_map_with_its_residual(method):
    step, start, context = tanh_map(0.95)
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(z, c):
        seen.append((z, step(z, c)))
        return seen[-1][1]

    solution = hs.solve(watched, start[:1], context[:1], method=method, stop=Stop(1e-7), sync_every=1)
    before, after = seen[-1]
    assert solution.steps.item() == len(seen) == solution.row_evaluations
    assert torch.equal(solution.state, after)
    assert solution.residual.item() == pytest.approx(((after - before).norm() / after.norm()).item(), rel=1e-9)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("damping", [0.3, 0.8])
def test_damping_moves_no_fixed_point(method, damping):
    if isinstance(method, Broyden):
        with pytest.raises(TypeError):
            Broyden(damping=damping)  # pyright: ignore[reportCallIssue]
        return
    step, start, context = tanh_map(0.9)
    wanted = hs.solve(step, start, context, stop=Stop(1e-12, 0.0, 1000)).state
    found = hs.solve(step, start, context, method=type(method)(damping=damping), stop=Stop(1e-11, 0.0, 3000))
    assert (found.status == Status.CONVERGED).all()
    torch.testing.assert_close(found.state, wanted, rtol=0, atol=1e-8)


# Few evaluations


@pytest.mark.parametrize(("radius", "most"), [(0.9, 40), (0.99, 130)])
def test_anderson_needs_few_evaluations_on_an_even_spectrum(radius, most):
    basis = torch.linalg.qr(random(7, 128, 128))[0]
    matrix = basis @ torch.diag(torch.linspace(0, radius, 128, dtype=F64)) @ basis.T
    shift = random(8, 8, 128)
    solution = hs.solve(
        lambda z, b: z @ matrix + b,
        torch.zeros(8, 128, dtype=F64),
        shift,
        method=Anderson(),
        stop=Stop(1e-6, 0.0, 2000),
    )
    assert (solution.status == Status.CONVERGED).all()
    assert solution.steps.max() <= most


def family(seed: int):
    """Six random maps of one kind, all rows of one batch; kinds and scales take turns."""
    kind, scale = seed % 4, 10.0 ** (seed * 1.7 % 6 - 3)
    rate = torch.linspace(0.2, 0.99, 6, dtype=F64)[:, None, None]
    weight, shift = random(100 + seed, 6, 10, 10), random(200 + seed, 6, 10)
    if kind == 1:
        weight = torch.tril(weight, -1) * 0.3 + torch.diag_embed(
            torch.rand(6, 10, dtype=F64).sub(0.5).mul(2) * rate[:, 0]
        )
    else:
        weight = weight * rate / torch.linalg.matrix_norm(weight, 2)[:, None, None]

    def step(z, c):
        weight, shift = c
        z = (weight @ (z / scale)[..., None]).squeeze(-1)
        return scale * (torch.tanh(z + 0.3 * shift) if kind == 2 else z + shift)

    return step, torch.zeros(6, 10, dtype=F64), (weight, shift)


def conv_family(seed: int):
    scale, rate = 10.0 ** (seed * 2.3 % 6 - 3), 0.3 + 0.069 * seed
    kernel = random(300 + seed, 2, 2, 3, 3)
    kernel = kernel * rate / kernel.abs().sum((1, 2, 3)).max()
    picture = random(400 + seed, 3, 2, 6, 6)
    return lambda z, c: scale * torch.relu(conv2d(z / scale, kernel, padding=1) + c), torch.zeros_like(picture), picture


@pytest.mark.parametrize("method", [Anderson(), Anderson(memory=4)], ids=str)
def test_acceleration_never_loses_badly_to_the_plain_loop(method):
    torch.manual_seed(0)  # the triangular maps' diagonals
    cases = [family(seed) for seed in range(10)] + [conv_family(seed) for seed in range(10)]
    seen = quick = 0
    for case in cases:
        plain = hs.solve(*case, method=Picard(), stop=Stop(1e-6, 0.0, 4000))
        assert (plain.status == Status.CONVERGED).all()
        fast = hs.solve(*case, method=method, stop=Stop(1e-6, 0.0, 6010))
        assert (fast.status == Status.CONVERGED).all()
        assert (fast.steps <= 1.5 * plain.steps + 5).all(), (plain.steps, fast.steps)
        seen, quick = seen + len(plain.steps), quick + int((fast.steps <= plain.steps + 5).sum())
    assert seen == 90
    assert quick >= 0.95 * seen


@pytest.mark.parametrize("method", [Anderson(), Anderson(memory=40), Broyden()], ids=str)
@pytest.mark.parametrize("length", [32, 64, 128])
def test_a_shift_takes_about_as_many_steps_as_in_the_plain_loop(length, method):
    # z <- (c, z_1, ..., z_{n-1}) is at its fixed point after n steps and nothing can be gained before.
    def step(z, c):
        return torch.cat([c, z[:, :-1]], 1)

    start, entry = random(9, 2, length), random(10, 2, 1)
    plain = hs.solve(step, start, entry, method=Picard(), stop=Stop(1e-8, 0.0, 1000))
    assert plain.steps.tolist() == [length + 1] * 2
    solution = hs.solve(step, start, entry, method=method, stop=Stop(1e-8, 0.0, 1000))
    assert (solution.status == Status.CONVERGED).all()
    assert (solution.steps <= 1.5 * plain.steps + 5).all()
    torch.testing.assert_close(solution.state, entry.expand(2, length), rtol=1e-7, atol=0)


@pytest.mark.parametrize("method", [Anderson(), Anderson(memory=3), Broyden()], ids=str)
def test_a_slow_map_is_really_accelerated(method):
    step, start, context = slow_map()
    plain = hs.solve(step, start, context, method=Picard(), stop=Stop(1e-9, 0.0, 9000))
    fast = hs.solve(step, start, context, method=method, stop=Stop(1e-9, 0.0, 9000))
    assert plain.steps.min() > 1000
    assert fast.steps.max() < 1000
    assert fast.steps.median() < 300


def test_one_unknown_is_solved_as_fast_as_by_the_secant_method():
    # More memory than unknowns: an outdated difference must not keep the new one out.
    def step(z, c):
        return torch.tanh(0.95 * z) + c

    shift = torch.tensor([[0.01], [0.05], [0.2]], dtype=F64)
    solution = hs.solve(step, torch.zeros(3, 1, dtype=F64), shift, method=Anderson(), stop=Stop(1e-12))
    assert (solution.status == Status.CONVERGED).all()
    assert solution.steps.max() <= 16
    broyden = hs.solve(step, torch.zeros(3, 1, dtype=F64), shift, method=Broyden(), stop=Stop(1e-12))
    assert (solution.steps - broyden.steps).abs().max() <= 1  # in one dimension both are the secant method


# States


@pytest.mark.parametrize("method", ACCELERATED, ids=str)
def test_float32_is_as_right_as_float32_can_be(method):
    step, start, context = tanh_map(0.9)
    exact = hs.solve(step, start, context, stop=Stop(1e-13)).state
    solution = hs.solve(step, start.float(), context.float(), method=method, stop=Stop(1e-5, 0.0, 400))
    assert (solution.status == Status.CONVERGED).all()
    assert solution.state.dtype == F32
    assert solution.residual.dtype == F32
    torch.testing.assert_close(solution.state.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_leaves_of_several_shapes_and_dtypes(method):
    wide, narrow = symmetric() * 0.9, tanh_map(0.9)[0]
    x, y = random(11, 4, 12), 0.1 * random(12, 4, 2, 8).float()

    def step(state, context):
        z, picture, count, seen = state
        z, feed = z @ wide + context[0] + 0.01 * picture.double().sum((1, 2))[:, None], z.mean(1).float()
        picture = narrow(picture.flatten(1), context[1].flatten(1) + 0.1 * feed[:, None]).view_as(picture)
        return z, picture, count + 1, ~seen

    start = (
        torch.zeros(4, 12, dtype=F64),
        torch.zeros(4, 2, 8),
        torch.zeros(4, 1, dtype=torch.int64),
        torch.zeros(4, dtype=torch.bool),
    )
    solution = hs.solve(step, start, (x, y), method=method, stop=Stop(1e-6, 0.0, 600), sync_every=1)
    assert (solution.status == Status.CONVERGED).all()
    assert [leaf.dtype for leaf in solution.state] == [leaf.dtype for leaf in start]
    assert [leaf.shape for leaf in solution.state] == [leaf.shape for leaf in start]
    # Carried leaves come from the evaluation whose f(z) is returned; none was restored here.
    assert (solution.state[2][:, 0] <= solution.steps).all()
    assert (solution.state[3] == solution.state[2][:, 0] % 2).all()
    after = step(solution.state, (x, y))
    for new, old in zip(after[:2], solution.state[:2], strict=True):
        assert ((new - old).flatten(1).norm(dim=1) <= 2e-6 * new.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_have_histories_in_float32(method, dtype):
    step, start, context = tanh_map(0.9)
    exact = hs.solve(step, start, context, stop=Stop(1e-12)).state
    solution = hs.solve(
        lambda z, c: step(z.float(), c.float()).to(dtype), start.to(dtype), context.to(dtype), method=method,
        stop=Stop(5e-3, 0.0, 300),
    )  # fmt: skip
    assert set(solution.status.tolist()) <= {Status.CONVERGED, Status.STALLED}
    assert solution.state.dtype == dtype
    assert solution.steps.max() < 150
    error = (solution.state.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 0.2  # a residual of 0.5 %, at a contraction of up to 0.9, with roundings of 0.4 %


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("scales", [(1e6, 1e-3), (1e-3, 1e6), (1e-12, 1e12)])
def test_a_large_leaf_hides_no_small_one(method, scales):
    matrix = symmetric()
    shift = random(13, 3, 12).float()
    slow, fast = matrix.float(), 0.3 * matrix.float()
    large, small = scales

    def step(state, context):
        return state[0] @ fast + context[0], state[1] @ slow + context[1]

    start = (torch.zeros(3, 12), torch.zeros(3, 12))
    solution = hs.solve(step, start, (large * shift, small * shift), method=method, stop=Stop(1e-5, 0.0, 2000))
    # The small leaf alternates; the large one, at its rounding floor by then, does not shrink any more.
    assert (solution.status == Status.CONVERGED).all()
    exact = torch.linalg.solve(torch.eye(12, dtype=F64) - matrix, shift.double().T).T
    torch.testing.assert_close(solution.state[1].double() / small, exact, rtol=0, atol=1e-3 * float(exact.abs().max()))


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e25])
def test_no_scale_of_float32_makes_acceleration_lose(method, scale):
    matrix, shift = symmetric().float(), random(14, 4, 12).float() * scale

    def solved(method):
        return hs.solve(
            lambda z, b: z @ matrix + b, torch.zeros(4, 12), shift, method=method, stop=Stop(1e-5, 0.0, 3000)
        )

    plain, other = solved(Picard()), solved(method)
    assert (other.status == Status.CONVERGED).all()
    assert (other.steps <= 1.5 * plain.steps + 5).all()


# Falling back


def capped(z, c):
    """0.95 z + 1, but 10 at most, and nothing beyond: extrapolated, it would be at 20."""
    return torch.where(z > 10.01, math.nan, torch.minimum(0.95 * z + 1, torch.full_like(z, 10)))


@pytest.mark.parametrize("method", ACCELERATED, ids=str)
def test_rows_that_blow_up_under_extrapolation_fall_back_and_converge(method):
    damping = getattr(method, "damping", 1.0)
    plain = hs.solve(capped, torch.zeros(3, 2), method=Picard(damping=damping))
    solution = hs.solve(capped, torch.zeros(3, 2), method=method, trace=True)
    assert bool(solution.trace.isnan()[:, : int(solution.steps.min())].any())  # otherwise this test shows nothing
    assert (solution.status == Status.CONVERGED).all()
    torch.testing.assert_close(solution.state, torch.full((3, 2), 10.0), rtol=1e-3, atol=0)
    assert (solution.steps <= 1.5 * plain.steps + 5).all()


@pytest.mark.parametrize("rtol", [0.0, 1e-6])
@pytest.mark.parametrize("method", [*METHODS, Anderson(damping=0.8)], ids=str)
def test_whatever_the_budget_a_row_that_blew_up_under_extrapolation_has_a_finite_state(method, rtol):
    for limit in range(1, 24):
        solution = hs.solve(capped, torch.zeros(1, 1), method=method, stop=Stop(rtol, 0.0, limit))
        assert solution.status.item() in (Status.MAX_STEPS, Status.CONVERGED)
        assert 1 <= solution.state.item() <= 10
        assert math.isfinite(solution.residual.item())


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_stream_gives_such_rows_the_same_state(method):
    starts = [torch.full((1, 1), x) for x in (0.0, 2.0, -3.0, 9.5, 0.5)]
    for limit in (4, 5, 6, 17, 60):
        stop = Stop(1e-6, 0.0, limit)
        stream = hs.solve_stream(capped, lambda c: c, starts, batch_size=2, method=method, stop=stop)
        for found in stream:
            alone = hs.solve(capped, starts[found.index], method=method, stop=stop)
            assert found.steps == alone.steps.item()
            assert found.status == alone.status.item()
            assert found.residual == pytest.approx(alone.residual.item(), rel=1e-5)
            torch.testing.assert_close(found.state, alone.state)
            assert found.state.isfinite().all()


@pytest.mark.parametrize("method", [Anderson(), Broyden()], ids=str)
def test_an_extrapolation_that_was_slow_may_blow_up_as_well(method):
    # Extrapolation goes to 10, where the residual is about as large as before, and from there out of the domain.
    def trap(z, _):
        far = torch.where(z < 50.5, z + torch.where(z < 50, 0.75, 0.7), math.nan)
        return torch.where(z < 4, (0.9 * z + 1).clamp(max=3.0), far)

    solution = hs.solve(trap, torch.zeros(1, 1, dtype=F64), method=method, stop=Stop(1e-6), trace=True)
    assert solution.trace[0].isnan()[: int(solution.steps)].any()  # otherwise this test shows nothing
    assert solution.status.item() == Status.CONVERGED
    assert solution.state.item() == 3.0


@pytest.mark.parametrize("method", ACCELERATED, ids=str)
def test_where_the_plain_loop_converges_on_a_piecewise_map_so_does_acceleration(method):
    # Random maps of few unknowns with corners and with edges behind which there is nothing.
    generator = torch.Generator().manual_seed(5)
    rows, size = 300, 2
    weight = torch.randn(rows, size, size, generator=generator, dtype=F64)
    rate = 0.5 + 0.5 * torch.rand(rows, 1, 1, generator=generator, dtype=F64)
    weight = weight * rate / torch.linalg.matrix_norm(weight, 2)[:, None, None]
    shift = torch.randn(rows, size, generator=generator, dtype=F64)
    cap = 10 ** (2 * torch.rand(rows, 1, generator=generator, dtype=F64) - 0.3)
    edge = cap * (1 + 3 * torch.rand(rows, 1, generator=generator, dtype=F64))

    def step(z, c):
        weight, shift, cap, edge = c
        inside = (z.abs() <= edge).all(1, keepdim=True)
        linear = (weight @ z[..., None]).squeeze(-1)
        return torch.where(inside, torch.minimum(torch.maximum(linear, -cap), cap) + shift, math.nan)

    case = step, torch.zeros(rows, size, dtype=F64), (weight, shift, cap, edge)
    plain = hs.solve(*case, method=Picard(), stop=Stop(1e-6, 0.0, 2000))
    good = plain.status == Status.CONVERGED
    assert good.sum() > 200
    solution = hs.solve(*case, method=method, stop=Stop(1e-6, 0.0, 4000))
    assert (solution.status[good] == Status.CONVERGED).all()
    assert not bool(solution.state.isnan().any())


# Maps without a fixed point, or with one that repels


@pytest.mark.parametrize("method", [*METHODS, *ACCELERATED[1:]], ids=str)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_map_without_a_fixed_point_does_not_converge(method, dtype):
    # Residuals of z + c are all the same but for rounding: nothing may be extrapolated from that.
    start, shift = random(19, 50, 3).to(dtype), random(20, 50, 3).to(dtype)
    solution = hs.solve(lambda z, c: z + c, start, shift, method=method, stop=Stop(1e-5, 0.0, 200))
    assert set(solution.status.tolist()) <= {Status.MAX_STEPS, Status.DIVERGED}
    assert solution.state.isfinite().all()
    ones = hs.solve(lambda z, _: z + 1, torch.zeros(2, 3, dtype=dtype), method=method, stop=Stop(1e-5, 0.0, 200))
    assert ones.status.tolist() == [Status.MAX_STEPS] * 2


@pytest.mark.parametrize("method", [Anderson(), Anderson(memory=2), Broyden()], ids=str)
def test_a_drift_that_a_matrix_product_computes_does_not_converge(method):
    # One eigenvalue is 1 and the shift has a part along it; the others die out, and rounding is left.
    basis = torch.linalg.qr(random(21, 24, 24))[0]
    rate = torch.linspace(0, 0.8, 24, dtype=F64)
    rate[-1] = 1
    matrix = (basis @ torch.diag(rate) @ basis.T).float()
    shift = random(22, 100, 24).float()
    solution = hs.solve(lambda z, b: z @ matrix + b, torch.zeros(100, 24), shift, method=method, stop=Stop(1e-5))
    assert (solution.status != Status.CONVERGED).all()


@pytest.mark.parametrize("method", [*METHODS, *ACCELERATED], ids=str)
def test_a_map_that_diverges_keeps_a_finite_state(method):
    # Residuals grow from the first step on, so that nothing is extrapolated: all methods take the plain steps.
    solution = hs.solve(lambda z, _: 2 * z + 1, torch.ones(2, 3), method=method)
    damping = getattr(method, "damping", 1.0)
    plain = hs.solve(lambda z, _: 2 * z + 1, torch.ones(2, 3), method=Picard(damping=damping))
    assert solution.status.tolist() == [Status.DIVERGED] * 2
    assert solution.state.isfinite().all()
    assert torch.equal(solution.steps, plain.steps)
    assert torch.equal(solution.state, plain.state)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_map_that_expands_is_followed_as_the_plain_loop_goes(method):
    # z <- -1.5 z + c has a fixed point, c / 2.5, which repels. A method with a safeguard follows the plain loop away
    # from it: extrapolation begins only where residuals shrink.
    solution = hs.solve(lambda z, c: -1.5 * z + c, torch.zeros(2, 3), torch.ones(2, 3), method=method)
    assert solution.status.tolist() == [Status.DIVERGED] * 2


def test_damping_can_make_an_expanding_map_contract():
    solution = hs.solve(
        lambda z, c: -1.5 * z + c, torch.zeros(2, 3), torch.ones(2, 3), method=Anderson(damping=0.5), stop=Stop(1e-6)
    )
    # 0.5 z + 0.5 f(z) = -0.25 z + c / 2; but the residual is still that of f.
    assert (solution.status == Status.CONVERGED).all()
    torch.testing.assert_close(solution.state, torch.full((2, 3), 0.4), rtol=1e-5, atol=0)


def test_a_linear_two_cycle_is_solved_by_extrapolation():
    shift = random(15, 3, 4)
    plain = hs.solve(lambda z, c: c - z, torch.zeros(3, 4, dtype=F64), shift, method=Picard())
    assert plain.status.tolist() == [Status.CYCLING] * 3
    for method in ACCELERATED:
        solution = hs.solve(lambda z, c: c - z, torch.zeros(3, 4, dtype=F64), shift, method=method, stop=Stop(1e-10))
        assert (solution.status == Status.CONVERGED).all()
        torch.testing.assert_close(solution.state, shift / 2)


@pytest.mark.parametrize("method", [*METHODS, Anderson(memory=2)], ids=str)
@pytest.mark.parametrize("period", [2, 3, 4])
def test_a_cycle_without_a_way_out_is_recognised_by_every_method(method, period):
    # Points on a wheel go to the next multiple of a full turn / period: every orbit repeats from the second step on.
    def step(z, _):
        turn = 2 * math.pi / period
        angle = (torch.atan2(z[:, 1], z[:, 0]) / turn).round() * turn + turn
        return torch.stack([angle.cos(), angle.sin()], 1)

    start = torch.tensor([[1.0, 0.2], [-0.3, 1.0]], dtype=F64)
    solution = hs.solve(step, start, method=method)
    assert solution.status.tolist() == [Status.CYCLING] * 2


@pytest.mark.parametrize("method", [*METHODS, *ACCELERATED], ids=str)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_map_that_converges_while_alternating_converges_with_every_method(method, dtype):
    shift = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.1, -7.0]], dtype=dtype)
    solution = hs.solve(
        lambda z, c: -0.99 * z + c, torch.zeros(2, 3, dtype=dtype), shift, method=method, stop=Stop(1e-5, 0.0, 3000)
    )
    assert (solution.status == Status.CONVERGED).all()
    torch.testing.assert_close(solution.state, shift / 1.99, rtol=2e-5, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_rows_may_finish_while_others_are_looked_at_for_cycles(method):
    # Rows end one by one from step 5 on, also between two looks at what repeats; one cycles in the end.
    rate = torch.cat([torch.linspace(0.1, 0.85, 40, dtype=F64), torch.tensor([0.97], dtype=F64)])[:, None]
    flip = torch.zeros(41, 1, dtype=F64)
    flip[7] = 1

    def step(z, c):
        rate, flip = c
        swapped = torch.where(z[:, :1] > 0, -1.0, 1.0)
        return torch.where(flip > 0, swapped, rate * z + 1)

    solution = hs.solve(step, torch.ones(41, 1, dtype=F64), (rate, flip), method=method, stop=Stop(1e-8, 0.0, 2000))
    cycling = flip[:, 0] > 0
    assert (solution.status[cycling] == Status.CYCLING).all()
    assert (solution.status[~cycling] == Status.CONVERGED).all()
    torch.testing.assert_close(solution.state[~cycling], 1 / (1 - rate[~cycling]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("memory", [1, 2, 5, 15])
def test_broyden_starts_again_when_its_memory_is_used_up(memory):
    matrix, shift = symmetric(), random(16, 5, 12)
    exact = torch.linalg.solve(torch.eye(12, dtype=F64) - matrix, shift.T).T
    solution = hs.solve(
        lambda z, b: z @ matrix + b, torch.zeros(5, 12, dtype=F64), shift, method=Broyden(memory=memory),
        stop=Stop(1e-9, 0.0, 2000),
    )  # fmt: skip
    assert (solution.status == Status.CONVERGED).all()
    assert solution.steps.max() > memory + 3  # otherwise this test shows nothing, or only that 15 is enough
    torch.testing.assert_close(solution.state, exact, rtol=0, atol=1e-6)
