"""Dynamics of linear maps, of which everything is known, and of maps that are not."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError, InputError
from homeostat.probes import measure_dynamics
from homeostat.probes.dynamics.jacobians import local_gain, push
from homeostat.probes.results import Estimate


def linear(matrix: Tensor, **options: Any) -> hs.IteratedModel:
    """z <- M z + x from zeros."""
    return hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: z @ matrix.T + x,
        decode=lambda z, x: z,
        **options,
    )


def inputs(rows: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(radius: float, angle: float) -> list[list[float]]:
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    return [[c, -s], [s, c]]


def blocks(*parts: list[list[float]]) -> Tensor:
    return torch.block_diag(*(torch.tensor(part, dtype=torch.float64) for part in parts))


SYMMETRIC = blocks([[0.9]], [[-0.5]], [[0.3]], [[0.1]])
PAIR = blocks(rotation(0.8, 1.1), [[0.5]], [[-0.4]])
TWO_SIGNS = blocks([[0.7]], [[-0.7]], [[0.2]], [[0.1]])
SHEAR = blocks([[0.5, 4.0], [0.0, 0.4]], [[0.3]], [[0.2]])
ELLIPSE = torch.tensor([[1.0, 6.0], [0.0, 1.0]], dtype=torch.float64)
ELLIPSE = torch.block_diag(ELLIPSE @ torch.tensor(rotation(0.85, 0.7)).double() @ ELLIPSE.inverse(), torch.eye(2) / 3)
GROWING = blocks([[1.05]], [[0.5]], [[0.2]], [[0.1]])


@pytest.mark.parametrize("matrix", [SYMMETRIC, PAIR, TWO_SIGNS, SHEAR, ELLIPSE, GROWING])
def test_linear_maps_have_the_eigenvalues_they_have(matrix: Tensor) -> None:
    matrix = matrix.double()
    radius = float(torch.linalg.eigvals(matrix).abs().max())
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    found = measure_dynamics(linear(matrix), [(inputs(6, 4), None)], steps=120).rows[0]
    for example in found.examples:
        assert example.radius == pytest.approx(radius, rel=2e-3)
        assert example.radius_converged
        assert example.norm == pytest.approx(norm, rel=2e-3)
        assert example.norm is not None
        assert example.norm <= norm * (1 + 1e-9), "from below"
        assert example.lyapunov == pytest.approx(math.log(radius), abs=0.02)
    assert found.stable.value == float(radius < 1)
    assert found.false_alarms.value == float(norm > 1 > radius)
    assert found.failed == found.unconverged == 0


def test_a_norm_above_one_is_shown_beside_a_radius_below_it() -> None:
    found = measure_dynamics(linear(SHEAR), [(inputs(8, 4), None)], steps=60)
    row = found.of("all examples")
    assert row.norm.value > 4
    assert row.radius.value < 0.51
    assert row.false_alarms.value == 1
    assert "false alarm" in repr(found)
    assert "100 [67.6, 100] % have a norm above 1 and a radius below 1" in repr(found)


def test_whole_exponent_against_the_product_of_jacobians() -> None:
    """tanh: the Jacobian differs from step to step, so the product is multiplied out by hand."""
    weight = 1.4 * inputs(3, 3, seed=3)
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: torch.tanh(z @ weight.T + x),
        decode=lambda z, x: z,
    )
    x, steps = inputs(4, 3, seed=4), 200
    found = measure_dynamics(model, [(x, None)], steps=steps).rows[0].examples
    for row in range(4):
        z, tangent, logs = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64), []
        for _ in range(steps):
            z = torch.tanh(weight @ z + x[row])
            tangent = (1 - z.square())[:, None] * weight @ tangent
            size = torch.linalg.matrix_norm(tangent, 2)
            logs.append(float(size.log()))
            tangent /= size
        # One vector grows at most as the whole product does, and at a rate that differs by O(1 / steps).
        assert found[row].lyapunov_whole == pytest.approx(sum(logs) / steps, abs=0.02)
        assert found[row].lyapunov == pytest.approx(sum(logs[steps // 2 :]) / (steps - steps // 2), abs=0.02)


def test_a_chaotic_map_has_the_exponent_it_is_known_for() -> None:
    logistic = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: x,
        step=lambda z, x: 4 * z * (1 - z),
        decode=lambda z, x: z,
    )
    x = torch.linspace(0.11, 0.89, 8, dtype=torch.float64)[:, None]
    found = measure_dynamics(logistic, [(x, None)], steps=1000).rows[0]
    assert found.lyapunov.value == pytest.approx(math.log(2), abs=0.03)
    assert found.settled.value == 0


def test_recovery_takes_the_steps_it_must() -> None:
    matrix = 0.9 * torch.eye(3, dtype=torch.float64)
    found = measure_dynamics(linear(matrix), [(inputs(5, 3), None)], steps=400, perturbation=0.5, tolerance=0.01)
    # 0.5 * 0.9^n <= 0.01 from n = 38 on
    assert [example.recovery for example in found.rows[0].examples] == [38] * 5
    short = measure_dynamics(linear(matrix), [(inputs(5, 3), None)], steps=30, perturbation=0.5, tolerance=0.01)
    assert [example.recovery for example in short.rows[0].examples] == [None] * 5
    assert short.rows[0].recovery.value == math.inf
    assert short.rows[0].recovered.value == 0


def test_a_cycle_recovers_where_its_phase_is_kept() -> None:
    """The sign flips at every step and the size is pulled to 1: a perturbation of the size dies out."""
    cycle = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.ones_like(x),
        step=lambda z, x: -torch.sign(z) * (1 + 0.5 * (z.abs() - 1)),
        decode=lambda z, x: z,
    )
    row = measure_dynamics(cycle, [(inputs(6, 1), None)], steps=40, perturbation=0.1, tolerance=0.01).rows[0]
    assert {example.recovery for example in row.examples} == {4}  # 0.1 / 2^4 < 0.01
    assert row.settled.value == 0


def test_contraction_of_the_path() -> None:
    matrix = blocks([[0.8]], [[0.3]])
    row = measure_dynamics(linear(matrix), [(inputs(5, 2), None)], steps=100).rows[0]
    assert row.contraction.value == pytest.approx(0.8, rel=1e-3)
    # Rounding at the end must not be read as a ratio of 1.
    row = measure_dynamics(linear(matrix), [(inputs(5, 2), None)], steps=300).rows[0]
    assert row.contraction.value == pytest.approx(0.8, rel=1e-3)


def test_a_map_that_arrives_at_once() -> None:
    nilpotent = torch.zeros(2, 2, dtype=torch.float64)
    example = measure_dynamics(linear(nilpotent), [(inputs(1, 2), None)], steps=8).rows[0].examples[0]
    assert (example.radius, example.norm, example.contraction, example.recovery) == (0, 0, 0, 1)
    assert example.lyapunov == -math.inf


def test_a_state_that_never_moves_has_no_rate() -> None:
    still = hs.from_functions(
        encode=lambda x: x, initial_state=lambda x: x, step=lambda z, x: z.clone(), decode=lambda z, x: z
    )
    row = measure_dynamics(still, [(inputs(4, 3), None)], steps=8).rows[0]
    assert [e.contraction for e in row.examples] == [None] * 4
    assert row.contraction.count == 0
    assert row.radius.value == pytest.approx(1)


def test_failed_runs_count_as_the_worst() -> None:
    def step(z: Tensor, x: Tensor) -> Tensor:
        return torch.where(x > 0, math.inf, 0.5) * z + 1

    model = hs.from_functions(
        encode=lambda x: x, initial_state=lambda x: torch.ones_like(x), step=step, decode=lambda z, x: z
    )
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0], [1.0], [1.0], [1.0]])
    found = measure_dynamics(model, [(x, None)], steps=20)
    row = found.rows[0]
    assert row.failed == 6
    assert row.examples[0].failed
    assert row.examples[0].radius is None
    assert row.examples[1].radius == pytest.approx(0.5)
    assert row.radius.value == row.recovery.value == row.lyapunov.value == math.inf
    assert row.stable.value == pytest.approx(2 / 8)
    assert "6 of 8 runs failed" in repr(found)


def test_an_example_does_not_depend_on_its_batch() -> None:
    x = inputs(6, 4)
    whole = measure_dynamics(linear(PAIR), [(x, None)], steps=30).rows[0].examples
    parts = measure_dynamics(linear(PAIR), [(x[:1], None), (x[1:], None)], steps=30).rows[0].examples
    for a, b in zip(whole, parts, strict=True):
        assert (a.index, a.recovery) == (b.index, b.recovery)
        for name in ("radius", "norm", "contraction", "lyapunov", "lyapunov_whole"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-9)


def test_states_of_several_leaves_with_counters_and_shared_context() -> None:
    model = hs.from_functions(
        encode=lambda x: {"x": x, "gain": hs.Shared(0.5), "none": None},
        initial_state=lambda c: (torch.zeros_like(c["x"]), {"n": torch.zeros(len(c["x"]), dtype=torch.int64)}, c["x"]),
        step=lambda s, c: (c["gain"] * s[0] + c["x"], {"n": s[1]["n"] + 1}, 0.25 * s[2] + c["x"]),
        decode=lambda s, c: (s[0] > 0).long(),
    )
    row = measure_dynamics(model, [(inputs(6, 3), None)], steps=40).rows[0]
    assert row.radius.value == pytest.approx(0.5, rel=1e-3)
    assert row.answer_kept is not None
    assert row.answer_kept.value == 1
    assert "answer kept" in repr(measure_dynamics(model, [(inputs(6, 3), None)], steps=4))


def test_a_perturbation_that_changes_the_answer_for_good() -> None:
    weak = hs.from_functions(  # two attractors, close enough for a large perturbation to go over
        encode=lambda x: x,
        initial_state=lambda x: torch.ones_like(x),
        step=lambda z, x: torch.tanh(3 * z),
        decode=lambda z, x: (z > 0).long(),
    )
    row = measure_dynamics(weak, [(inputs(40, 1), None)], steps=60, perturbation=3.0).rows[0]
    assert row.answer_kept is not None
    # With one number in the state, the perturbation is +3 or -3 times it: half of them go over.
    assert 0.2 < row.answer_kept.value < 0.8
    assert row.recovered.value == row.answer_kept.value


class _Square(torch.autograd.Function):
    """An operation without a forward rule."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * g * ctx.saved_tensors[0]


def test_tangents_where_forward_mode_has_no_rule() -> None:
    z, v = inputs(3, 4), inputs(3, 4, seed=1)
    for square in (_Square.apply, torch.square):
        problem = Problem.of(lambda z, _, square=square: square(z).roll(1, 1), z, None)
        assert torch.allclose(push(problem, [z], [v])[0], (2 * z * v).roll(1, 1))


def test_a_radius_that_is_not_found_is_said() -> None:
    """Sixty eigenvalues close in size, at angles of their own: no single one stands out."""
    angles = torch.linspace(0.1, 3.0, 30)
    matrix = blocks(*(rotation(0.9, float(angle)) for angle in angles))
    found = measure_dynamics(linear(matrix), [(inputs(4, 60), None)], steps=40, iterations=16)
    row = found.rows[0]
    assert row.unconverged == 4
    assert row.radius.value == pytest.approx(0.9, rel=1e-3), "the rate of growth is right all the same"
    assert "were not found to 1%" in repr(found)


def test_gain_of_float32_and_of_a_single_number() -> None:
    problem = Problem.of(lambda z, _: -0.7 * z, torch.ones(2, 1), None)
    gain = local_gain(problem, [torch.randn(2, 1)], 8)
    assert torch.allclose(gain.radius, torch.tensor([0.7, 0.7], dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(gain.norm, gain.radius)
    assert (gain.radius_error <= 1e-6).all()


@pytest.mark.parametrize(
    "options",
    [{"steps": 1}, {"steps": 2.5}, {"iterations": 1}, {"perturbation": 0.001}, {"tolerance": 0}, {"settle_rtol": -1}],
)
def test_impossible_options(options: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"steps": 10} | options
    with pytest.raises(InputError, match=next(iter(options))):
        measure_dynamics(linear(SYMMETRIC), [(inputs(2, 4), None)], **arguments)


def test_what_cannot_be_measured_is_told() -> None:
    with pytest.raises(InputError, match="no examples"):
        measure_dynamics(linear(SYMMETRIC), [], steps=10)
    with pytest.raises(InputError, match="no examples"):
        measure_dynamics(linear(SYMMETRIC), {}, steps=10)
    with pytest.raises(ContractError, match="random"):
        measure_dynamics(linear(SYMMETRIC, stochastic=True), [(inputs(2, 4), None)], steps=10)


def test_modules_are_put_back_into_their_mode() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = torch.nn.Linear(3, 3)
            self.drop = torch.nn.Dropout(0.5)

        def encode(self, x: Tensor) -> Tensor:
            return x

        def initial_state(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

        def step(self, z: Tensor, x: Tensor) -> Tensor:
            return 0.3 * torch.tanh(self.cell(self.drop(z)) + x)

        def decode(self, z: Tensor, x: Tensor) -> Tensor:
            return z

    net = Net().train()
    net.cell.eval()
    found = [measure_dynamics(net, [(torch.ones(3, 3), None)], steps=9).rows[0].examples for _ in range(2)]
    assert found[0] == found[1]
    assert (net.training, net.cell.training, net.drop.training) == (True, False, True)
    assert all(p.grad is None for p in net.parameters())


def test_medians_and_their_intervals() -> None:
    from scipy import stats

    from homeostat.probes.estimates import median

    def plain(estimate: Estimate) -> tuple[float, float, float]:
        return estimate.value, estimate.low, estimate.high

    assert plain(median(range(1, 8))) == (4, 1, 7)
    assert plain(median([3.0, float("nan"), 1.0, 2.0, 5.0, float("inf")])) == (4, 1, math.inf)
    assert median([]).count == 0
    assert math.isnan(median([1.0, 2.0]).low)
    # It covers the true median as often as it says, and not without need more often.
    rng = np.random.default_rng(0)
    for count in (8, 25):
        draws = [median(rng.exponential(size=count)) for _ in range(2000)]
        inside = np.mean([e.low <= math.log(2) <= e.high for e in draws])
        rank = stats.binom.ppf(0.025, count, 0.5)
        assert inside == pytest.approx(1 - 2 * stats.binom.cdf(rank - 1, count, 0.5), abs=0.02)
        assert inside > 0.945
