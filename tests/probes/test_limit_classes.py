"""Limit classes of maps whose limits are known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.probes.results import Difficulty


def audited(step: Callable[[Tensor], Tensor], start: Tensor, steps: int = 100, rtol: float = 1e-3) -> Difficulty:
    model = hs.from_functions(
        encode=lambda x: x, initial_state=lambda x: x, step=lambda z, x: step(z), decode=lambda z, x: z
    )
    return hs.audit(model, [(start, None)], steps=[steps], alignment=False, settle_rtol=rtol).difficulties[0]


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(
    "step",
    [
        lambda z: 0.5 * z + 1,
        lambda z: -0.9 * z + 1,  # alternates while it converges
        lambda z: torch.cos(z),
        lambda z: z,
        lambda z: z.clamp(-0.5, 0.5),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_points(step: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    for example in audited(step, noise(5, 7, dtype=dtype), steps=200).examples:
        assert (example.limit, example.period) == ("fixed point", None)


@pytest.mark.parametrize("steps", [100, 101, 1003])
@pytest.mark.parametrize("period", [2, 3, 4, 5, 8])
def test_cycles_have_their_period(period: int, steps: int) -> None:
    found = audited(lambda z: z.roll(1, dims=1), noise(4, period), steps=steps)
    assert [(e.limit, e.period) for e in found.examples] == [("cycle", period)] * 4
    assert found.limits == {"fixed point": 0, "cycle": 4, "drift": 0, "unsettled": 0, "divergence": 0}


def test_a_cycle_that_attracts_is_a_cycle() -> None:
    found = audited(lambda z: 3.2 * z * (1 - z), torch.tensor([[0.3], [0.8]]), steps=300)
    assert [(e.limit, e.period) for e in found.examples] == [("cycle", 2)] * 2
    found = audited(lambda z: 3.5 * z * (1 - z), torch.tensor([[0.3], [0.8]]), steps=600)
    assert [(e.limit, e.period) for e in found.examples] == [("cycle", 4)] * 2


@pytest.mark.parametrize("steps", [100, 3000])
def test_drifts(steps: int) -> None:
    # After 3,000 steps one step is within the tolerance, and the state still goes on for ever.
    for example in audited(lambda z: z + 1, noise(3, 4), steps=steps).examples:
        assert example.limit == "drift"
    for example in audited(lambda z: 1.01 * z, noise(3, 4), steps=200, rtol=0.1).examples:
        assert example.limit == "drift"


def test_rounding_at_the_end_is_no_drift() -> None:
    """One unit in the last place, once, in the last step of all."""

    def step(state: tuple[Tensor, hs.Carry]) -> tuple[Tensor, Tensor]:
        z, count = state
        jump = torch.where(count == 99, 1 + 2**-23, 1.0)[:, None]
        return z * jump, count + 1  # type: ignore[operator]

    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: (x, hs.Carry(torch.zeros(len(x)))),
        step=lambda state, x: step(state),
        decode=lambda state, x: state[0],
    )
    found = hs.audit(model, [(torch.ones(2, 1), None)], steps=[100], alignment=False)
    assert [e.limit for e in found.difficulties[0].examples] == ["fixed point"] * 2


def test_divergence_by_growth_and_by_nan() -> None:
    for example in audited(lambda z: 10 * z, noise(3, 4)).examples:
        assert example.limit == "divergence"
        assert example.failed_at is not None
        assert 26 <= example.failed_at <= 31  # RMS beyond 1e28
    found = audited(lambda z: torch.where(z > 7, torch.full_like(z, math.nan), z + 1), torch.tensor([[0.5]]))
    assert (found.examples[0].limit, found.examples[0].failed_at) == ("divergence", 8)
    assert found.budgets[-1].failed == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_growth_without_end_is_divergence_before_it_is_out_of_bounds(dtype: torch.dtype) -> None:
    for example in audited(lambda z: 1.5 * z, noise(3, 4, dtype=dtype), steps=60).examples:
        assert (example.limit, example.failed_at) == ("divergence", None)
    # What grew a thousandfold and has arrived has not diverged.
    found = audited(lambda z: torch.tanh(3 * z), 1e-6 * noise(3, 4, dtype=dtype).abs(), steps=24)
    assert [example.limit for example in found.examples] == ["fixed point"] * 3


def test_chaos_and_rotation_by_an_irrational_angle_are_unsettled() -> None:
    for example in audited(lambda z: 1 - 1.9 * z**2, noise(4, 6).clamp(-0.9, 0.9)).examples:
        assert example.limit == "unsettled"
    turn = torch.tensor([[math.cos(2.4), -math.sin(2.4)], [math.sin(2.4), math.cos(2.4)]])
    for example in audited(lambda z: z @ turn, noise(4, 2)).examples:
        assert example.limit == "unsettled"


def test_a_slow_approach_is_neither_settled_nor_a_drift() -> None:
    for example in audited(lambda z: z + 0.02 * (1 - z), torch.zeros(2, 3), steps=140).examples:
        assert example.limit == "unsettled"


def test_every_row_of_a_batch_gets_its_own_class() -> None:
    def step(z: Tensor) -> Tensor:
        kind, y = z[:, :1], z[:, 1:]
        maps = torch.stack([0.5 * y + 1, -y, y + 1, 10 * y, 1 - 1.9 * y.clamp(-1, 1) ** 2], dim=1)
        return torch.cat([kind, maps[torch.arange(len(z)), kind[:, 0].long()]], dim=1)

    start = noise(20, 5).clamp(-0.9, 0.9)
    start[:, 0] = torch.arange(20) % 5
    want = ["fixed point", "cycle", "drift", "divergence", "unsettled"]
    assert [e.limit for e in audited(step, start).examples] == want * 4
