"""Alignment of ends, on maps whose attractors are known in closed form, and against a brute-force double loop."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import homeostat as hs
from homeostat.errors import ContractError, InputError
from homeostat.probes import StartAlignments, align_starts
from homeostat.probes.starts.states import partners

ALL = "all examples"


class SignJudge:
    def answers(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).long()

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.answers(outputs) == targets).all(1)


def model(step: Callable[[Any, Tensor], Any], start: Callable[..., Any] = torch.zeros_like, **more: Any) -> Any:
    functions = {"encode": lambda x: x, "decode": lambda z, x: z}
    return hs.from_functions(**(functions | {"initial_state": start, "step": step} | more))  # type: ignore[arg-type]


def inputs(rows: int = 20, width: int = 5) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).double()


def aligned(net: Any, x: Tensor, steps: int = 60, **options: Any) -> StartAlignments:
    return align_starts(net, [(x, (x > 0).long())], steps=steps, judge=SignJudge(), **options)


def test_a_contraction_ends_in_one_place_from_everywhere() -> None:
    x = inputs()
    found = aligned(
        model(lambda z, x: 0.5 * z + 0.5 * x, torch.ones_like),
        x,
        starts=["own", "zeros", "noise 2", "swapped", "all pairs"],
    )
    length = x / x.norm(dim=1, keepdim=True)
    gram = length @ length.T
    null = (gram.sum(1) - 1) / (len(x) - 1)
    for row in found.rows:
        assert row.cosine.value == pytest.approx(1, abs=1e-12)
        assert row.plain.value == pytest.approx(1, abs=1e-12)
        assert row.distance < 1e-12
        assert row.nulls == pytest.approx(null.tolist())
        assert row.restart.value == pytest.approx(1, abs=1e-12)
        assert row.agreement is not None
        assert row.exact is not None
        assert row.agreement.value == row.exact.value == 1
        assert (row.failed, row.phase_aligned, row.count) == (0, 0, 20)
    assert found.algorithm_1.count == found.all_pairs.count == 20
    assert found.notes == ()


def test_two_attractors_are_told_example_by_example() -> None:
    """z <- tanh(3z + x/10) ends at about plus or minus one, on the side on which it starts; from zero, on that of x."""
    x = inputs(40, 1)
    found = aligned(model(lambda z, x: torch.tanh(3 * z + 0.1 * x)), x, starts=["noise 1", "noise 3", "swapped"])
    side = x[:, 0].sign()
    order = partners(40, 0, 0, torch.device("cpu"))
    swapped = found.of(ALL, "swapped")
    assert swapped.cosines == pytest.approx((side * side[order]).tolist(), abs=1e-9)
    assert swapped.agreements == tuple((side == side[order]).double().tolist())
    for scale in (1, 3):
        row = found.of(ALL, f"noise {scale}")
        assert set(torch.tensor(row.cosines).round(decimals=6).tolist()) == {-1.0, 1.0}
        assert row.agreement is not None
        assert 0.2 < row.agreement.value < 0.8
        # From noise it is right where it is on the side of the run from zero, which is always right.
        assert row.corrects == row.agreements
        assert row.restart.value == pytest.approx(1)
        assert row.cosine.low < row.cosine.value < row.cosine.high
    assert found.algorithm_1 == swapped.plain


def test_all_pairs_are_those_of_a_double_loop() -> None:
    x = inputs(6, 3)

    def step(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(2 * z + 0.4 * x)

    def run(z: Tensor, x: Tensor) -> Tensor:
        for _ in range(30):
            z = step(z, x)
        return z

    ends = run(0.3 * x, x)
    found = aligned(model(step, lambda x: 0.3 * x), x, steps=30, starts=["all pairs"])
    row = found.of(ALL, "all pairs")
    for i in range(6):
        again = [run(ends[j : j + 1], x[i : i + 1])[0] for j in range(6)]
        cosines = [float(cosine_similarity(z, ends[i], dim=0)) for z in again]
        assert row.plain_cosines[i] == pytest.approx(sum(cosines) / 6, abs=1e-9)
        assert row.agreements is not None
        same = [float(((z > 0) == (ends[i] > 0)).all()) for z in again]
        assert row.agreements[i] == pytest.approx(sum(same) / 6)
    assert found.all_pairs.value == pytest.approx(sum(row.plain_cosines) / 6)
    assert 0.2 < found.all_pairs.value < 0.999, "or the test would show nothing"


def snap_and_turn(period: int) -> Callable[[Tensor, Tensor], Tensor]:
    """To the nearest corner of a polygon, then on to the next one: one cycle from everywhere, at any of its phases."""

    def step(z: Tensor, x: Tensor) -> Tensor:
        corner = torch.round(torch.atan2(z[:, 1], z[:, 0]) * period / (2 * math.pi)) + 1
        angle = corner * 2 * math.pi / period
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    return step


@pytest.mark.parametrize("period", [2, 5, 16])
def test_one_cycle_at_several_phases_is_one_limit(period: int) -> None:
    x = inputs(30, 2)
    steps = 16 * 7 + 1  # not a multiple of the period, so that going on from the end shifts the phase too
    net = model(snap_and_turn(period), torch.ones_like)
    found = aligned(net, x, steps=steps, starts=["noise 1", "swapped", "zeros"])
    row = found.of(ALL, "noise 1")
    assert row.phase_aligned == 30
    assert row.cosine.value == pytest.approx(1)
    assert row.distance < 1e-6
    assert row.restart.value == pytest.approx(1)
    assert row.null.value == pytest.approx(1), "different examples have the same cycle"
    corners = {round(math.cos(2 * math.pi * k / period), 6) for k in range(period)}
    assert {round(c, 6) for c in row.plain_cosines} <= corners
    assert row.plain.value < 0.6
    assert "without phase" in repr(found)


def test_cycles_of_different_periods_are_different_limits() -> None:
    """The period hangs on the start: what starts above zero swings between two places, the rest among four."""

    def step(z: Tensor, x: Tensor) -> Tensor:
        two, four = snap_and_turn(2)(z[:, :2], x), snap_and_turn(4)(z[:, :2], x)
        return torch.cat([torch.where(z[:, 2:] > 0, two, four), z[:, 2:].sign()], dim=1)

    x = inputs(30, 3)
    found = aligned(model(step, torch.ones_like), x, steps=64, starts=["noise 1"])
    row = found.of(ALL, "noise 1")
    assert 5 < row.phase_aligned < 25
    for cosine, plain in zip(row.cosines, row.plain_cosines, strict=True):
        assert cosine == plain or cosine == pytest.approx(1)


def test_what_has_not_settled_is_told_from_what_has_another_limit() -> None:
    x, n = inputs() + 1, 50

    def after(start: Tensor, steps: int) -> Tensor:
        return x + 0.97**steps * (start - x)

    row = aligned(model(lambda z, x: z + 0.03 * (x - z), torch.ones_like), x, steps=n, starts=["noise 1"]).rows[0]
    one = torch.ones_like(x)
    wanted = cosine_similarity(after(one, n), after(one, 2 * n))
    assert row.restarts == pytest.approx(wanted.tolist())
    assert row.restart.value < 0.99


def test_failures_count_as_failures() -> None:
    def step(z: Tensor, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, 1e10 * (z + 1), 0.5 * (z + x))

    x = inputs()
    bad = (x[:, 0] > 0).tolist()
    row = aligned(model(step), x, starts=["noise 1"]).rows[0]
    assert row.failed == sum(bad)
    for fails, cosine, distance, same, right in zip(
        bad, row.cosines, row.distances, row.agreements or (), row.corrects or (), strict=True
    ):
        assert (cosine, same, right) == ((0, 0, 0) if fails else (pytest.approx(1), 1, 1))
        assert math.isinf(distance) == fails
    assert [null != null for null in row.nulls] == bad, "what failed is no baseline"
    assert row.null.count == bad.count(False)


def test_a_model_that_starts_from_zeros_is_not_praised_for_it() -> None:
    found = aligned(model(lambda z, x: 0.5 * (z + x)), inputs(), starts=["own", "zeros"])
    for row in found.rows:
        assert math.isnan(row.cosine.value)
        assert row.cosine.count == 0
        assert row.agreement is not None
        assert row.agreement.count == 0
        assert row.exact is not None
        assert row.exact.value == 1
    assert "own and zeros are one run" in found.notes[0]
    assert "own and zeros are one run" in repr(found)


def test_a_model_that_ignores_the_start_is_started_elsewhere_all_the_same() -> None:
    net = model(lambda z, x: torch.tanh(3 * z), lambda x, start: torch.ones_like(x))
    found = aligned(net, inputs(), starts=["noise 1"])
    assert "put in its place" in found.notes[0]
    assert found.rows[0].cosine.value < 0.5


def test_what_is_carried_begins_as_in_the_own_start() -> None:
    seen = []

    def step(state: Any, x: Tensor) -> Any:
        z, count, flag = state
        seen.append((int(count.max()), int(flag.max())))
        return 0.5 * (z + x), count + 1, flag

    net = model(
        step,
        lambda x: (torch.zeros_like(x), hs.Carry(torch.zeros(len(x))), torch.full((len(x),), 7)),
        decode=lambda state, x: state[0],
    )
    aligned(net, inputs(), steps=9, starts=["noise 1", "swapped", "all pairs"])
    assert {flag for _, flag in seen} == {7}
    assert max(count for count, _ in seen) == 8


def test_one_run_for_each_start_that_is_asked_for() -> None:
    def turn(z: Tensor, x: Tensor) -> Tensor:  # by an angle that never comes back
        return torch.stack([0.6 * z[:, 0] - 0.8 * z[:, 1], 0.8 * z[:, 0] + 0.6 * z[:, 1]], dim=1) + x[:, :2]

    net = model(turn, lambda x: torch.ones_like(x[:, :2]))

    def cost(*starts: str) -> int:
        return align_starts(net, [(inputs(4), None)], steps=40, starts=starts).evaluations // (4 * 40)

    assert cost("noise 1") == 3  # with the run from the own start, and the control
    assert cost("noise 1", "noise 2") == 4
    assert cost("swapped") == 3
    assert cost("noise 1", "swapped") == 6
    assert cost("all pairs") == 5  # four partners, of whom the example itself is the control


def test_difficulties_batches_and_the_mode_of_the_model() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def encode(self, x: Tensor) -> Tensor:
            return self.drop(x)

        def initial_state(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

        def step(self, z: Tensor, x: Tensor) -> Tensor:
            assert not self.training
            return 0.5 * (z + x)

        def decode(self, z: Tensor, x: Tensor) -> Tensor:
            return z

    net, x = Net(), inputs()
    found = align_starts(net, {"easy": [(x[:8], None), (x[8:9], None)], "hard": [(x, None)]}, steps=50)
    assert net.training
    assert net.drop.training
    assert [(row.difficulty, row.count) for row in found.rows[::6]] == [("easy", 9), ("hard", 20)]
    swapped = found.of("easy", "swapped")
    assert (swapped.cosine.count, swapped.count) == (8, 9)
    assert math.isnan(swapped.cosines[8])
    assert (swapped.exact, swapped.agreement) == (None, None)
    assert any("example 8 is alone in its batch" in note for note in found.notes)
    assert found.algorithm_1.count == 28
    with pytest.raises(KeyError, match="no row 'easy', 'noise 7'"):
        found.of("easy", "noise 7")
    with pytest.raises(KeyError, match="'all pairs' was not measured"):
        _ = found.all_pairs


def test_one_example_has_no_other_examples_limit() -> None:
    found = aligned(model(lambda z, x: 0.5 * (z + x)), inputs(1), starts=["noise 1", "swapped", "all pairs"])
    for name in ("swapped", "all pairs"):
        row = found.of(ALL, name)
        assert math.isnan(row.cosine.value)
        assert math.isnan(row.null.value)
        assert row.cosine.count == 0
    assert found.of(ALL, "noise 1").cosine.value == pytest.approx(1)
    assert "there is no other example's limit" in repr(found)


def test_models_that_draw_random_numbers_are_refused() -> None:
    with pytest.raises(ContractError, match="two runs of model from the same start differ after 1 step: it draws"):
        aligned(model(lambda z, x: 0.5 * (z + x) + 1e-3 * torch.randn_like(z)), inputs())
    with pytest.raises(ContractError, match="initial_state of model gives another state each time"):
        aligned(model(lambda z, x: 0.5 * (z + x), torch.randn_like), inputs())
    torch_state = torch.get_rng_state()

    def seeded(z: Tensor, x: Tensor) -> Tensor:
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
        return 0.5 * (z + x) + 1e-3 * noise

    found = aligned(model(seeded, stochastic=True), inputs(), starts=["noise 1"])
    assert found.rows[0].cosine.value == pytest.approx(1, abs=1e-6)
    assert torch.equal(torch_state, torch.get_rng_state())


def test_a_start_that_is_not_finite_is_refused() -> None:
    def start(x: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] == 3, math.nan, x)

    with pytest.raises(
        ContractError, match=r"not finite before the first step, from its own start: 1 of 20 .* example 3"
    ):
        aligned(model(lambda z, x: 0.5 * (z + x), start), inputs())
    later = [(inputs(2), None), (inputs(), None)]
    with pytest.raises(ContractError, match="1 of 20 examples, the first of them example 5"):
        align_starts(model(lambda z, x: 0.5 * (z + x), start), later, steps=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"rtol": -1}, "rtol must be a finite number above 0"),
        ({"starts": []}, "no start to run from"),
        ({"starts": ["noise"]}, "there is no start 'noise'"),
        ({"starts": ["noise -1"]}, "there is no start"),
        ({"starts": ["noise 1", "noise 1.0"]}, "named twice"),
        ({"starts": [3]}, "there is no start 3"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_nonsense_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"steps": 4} | options
    with pytest.raises(InputError, match=message) as caught:
        align_starts(model(lambda z, x: 0.5 * (z + x)), [(inputs(), None)], **arguments)
    assert "\n" not in str(caught.value)


def test_no_examples() -> None:
    for none in ([], {}, {"easy": []}):
        with pytest.raises(InputError, match="no examples"):
            align_starts(model(lambda z, x: z), none, steps=4)


def test_noise_hangs_on_seed_and_example_alone() -> None:
    net, x = model(lambda z, x: torch.tanh(3 * z + 0.1 * x)), inputs()

    def cosines(batches: list[Any], seed: int = 0) -> tuple[float, ...]:
        return align_starts(net, batches, steps=2, starts=["noise 1"], seed=seed).rows[0].cosines

    whole = cosines([(x, None)])
    assert cosines([(x[:7], None), (x[7:], None)]) == pytest.approx(whole, abs=1e-12)
    assert cosines([(x, None)], seed=1) != whole
