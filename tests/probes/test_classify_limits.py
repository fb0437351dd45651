"""Limit classes with their precision, on maps for which precision and batch change what is true."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import homeostat as hs
from homeostat.errors import ContractError, InputError
from homeostat.probes import Limit, classify_limits
from homeostat.probes.limits.limit_test import LimitTest


def model(step: Any, start: Any = torch.zeros_like) -> Any:
    return hs.from_functions(encode=lambda x: x, initial_state=start, step=step, decode=lambda z, x: z)


def noise(rows: int, width: int) -> Tensor:
    return torch.rand(rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("period", range(2, 17))
def test_cycles_up_to_period_16_in_both_precisions_and_any_batch(period: int) -> None:
    found = classify_limits(model(lambda z, x: z.roll(1, 1), lambda x: x), [(noise(5, period), None)], steps=100)
    shares = found.of("all examples")
    assert [example.limit for example in found.examples] == [Limit("cycle", period)] * 5
    assert shares.periods == {period: 5}
    assert shares.shares["cycle"].value == 1
    assert shares.same_in_other_dtype is not None
    assert shares.same_in_other_batch is not None
    assert shares.same_in_other_dtype.value == shares.same_in_other_batch.value == 1
    assert all(e.repeat == 0 and e.residual > 0.1 for e in found.examples)
    assert found.unstable == ()
    assert f"5 of {period}" in repr(found)


def test_a_period_of_17_is_unsettled() -> None:
    found = classify_limits(model(lambda z, x: z.roll(1, 1), lambda x: x), [(noise(5, 17), None)], steps=100)
    assert {str(example.limit) for example in found.examples} == {"unsettled"}


def test_doubling_ends_at_zero_when_the_bits_run_out() -> None:
    """z <- 2z mod 1 shifts the binary digits: nothing is left of 24 after 24 steps, and of 53 there is after 40."""
    x = noise(6, 4) + 0.1
    net = model(lambda z, x: 2 * z % 1, lambda x: x.sqrt() % 1)
    found = classify_limits(net, [(x, None)], steps=40)
    assert (found.dtype, found.other_dtype) == ("float32", "float64")
    for example in found.examples:
        assert (str(example.limit), str(example.in_other_dtype)) == ("fixed point", "unsettled")
        assert example.in_other_batch == example.limit
    shares = found.of("all examples")
    assert shares.same_in_other_dtype is not None
    assert shares.same_in_other_dtype.value == 0
    assert len(found.unstable) == 6
    assert "example 0: fixed point in float32, unsettled in float64" in repr(found)
    assert "and 1 more whose class is not stable" in repr(found)
    # The other way round: what float64 finds is compared with float32.
    found = classify_limits(net, [(x.double(), None)], steps=40)
    assert (found.dtype, found.other_dtype) == ("float64", "float32")
    assert {str(e.limit) for e in found.examples} == {"unsettled"}
    assert {str(e.in_other_dtype) for e in found.examples} == {"fixed point"}


def test_a_step_that_depends_on_its_batch_is_found_out() -> None:
    net = model(lambda z, x: -z if len(z) == 8 else 0.5 * z + x, lambda x: x)
    found = classify_limits(net, [(noise(8, 3), None)], steps=60)
    assert {str(e.limit) for e in found.examples} == {"cycle of 2"}
    assert {str(e.in_other_batch) for e in found.examples} == {"fixed point"}
    shares = found.of("all examples")
    assert shares.same_in_other_batch is not None
    assert shares.same_in_other_dtype is not None
    assert (shares.same_in_other_batch.value, shares.same_in_other_dtype.value) == (0, 1)
    assert "cycle of 2 in float32, fixed point in another batch" in repr(found)


def test_rows_of_a_split_batch_find_their_place_again() -> None:
    def step(z: Tensor, x: Tensor) -> Tensor:
        maps = torch.stack([0.5 * z + 1, -z, z + 1, 10 * z], dim=1)
        return maps[torch.arange(len(z)), x[:, 0].long()]

    kinds = torch.tensor([0, 1, 2, 3, 3, 2, 1]).float()[:, None]
    found = classify_limits(model(step, torch.ones_like), {"a": [(kinds, None)], "b": [(kinds[:3], None)]}, steps=90)
    names = ["fixed point", "cycle of 2", "drift", "divergence", "divergence", "drift", "cycle of 2"]
    assert [str(e.limit) for e in found.examples] == names + names[:3]
    assert found.unstable == ()
    assert [(e.difficulty, e.index) for e in found.examples[-3:]] == [("b", 0), ("b", 1), ("b", 2)]
    assert found.of("a").shares["drift"].value == pytest.approx(2 / 7)
    assert sum(estimate.value for estimate in found.of("a").shares.values()) == pytest.approx(1)
    assert math.isinf(found.examples[3].residual)


def test_the_tolerance_is_never_finer_than_rounding() -> None:
    def cell(z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * z + x

    found = classify_limits(model(cell), [(noise(4, 3).bfloat16(), None)], steps=50)
    assert found.noise_floor == found.tolerance == 4 * 2**-7
    found = classify_limits(model(cell), [(noise(4, 3), None)], steps=50, rtol=1e-12)
    assert found.noise_floor == found.tolerance == 4 * 2**-23
    found = classify_limits(model(cell), [(noise(4, 3), None)], steps=50)
    assert (found.noise_floor, found.tolerance) == (4 * 2**-23, 1e-3)
    assert "at a relative residual of 1.0e-03 (rounding makes up to 4.8e-07)" in repr(found)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 0.5))
        self.seen: set[torch.dtype] = set()

    def encode(self, x: Tensor) -> Tensor:
        return x

    def initial_state(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def step(self, z: Tensor, x: Tensor) -> Tensor:
        self.seen.add(self.weight.dtype)
        return self.weight * z + x

    def decode(self, z: Tensor, x: Tensor) -> Tensor:
        return z


def test_modules_are_copied_and_left_alone() -> None:
    net = Affine()
    found = classify_limits(net, [(noise(4, 3), None)], steps=50)
    assert net.seen == {torch.float32}
    assert net.training
    assert found.of("all examples").same_in_other_dtype is not None
    assert found.notes == ()


def test_what_cannot_be_repeated_is_told() -> None:
    weight = 0.1 * torch.ones(3, 3)
    found = classify_limits(model(lambda z, x: z @ weight + x), [(noise(4, 3), None), (noise(1, 3), None)], steps=50)
    shares = found.of("all examples")
    assert shares.same_in_other_dtype is None
    assert shares.same_in_other_batch is not None
    assert shares.same_in_other_batch.count == 4
    assert "not repeated in float64: " in found.notes[0]
    assert "not repeated in another batch where a batch has one example" in found.notes
    stubborn = model(lambda z, x: 0.5 * z + x.float(), lambda x: torch.zeros(x.shape))
    found = classify_limits(stubborn, [(noise(4, 3), None)], steps=50)
    assert found.notes == ("not repeated in float64: the model makes states in float32 whatever its inputs are",)


def test_checks_can_be_left_out() -> None:
    x = noise(4, 2)
    turn = model(
        lambda z, x: torch.stack([0.6 * z[:, 0] - 0.8 * z[:, 1], 0.8 * z[:, 0] + 0.6 * z[:, 1]], 1), lambda x: x
    )
    costs = [classify_limits(turn, [(x, None)], steps=40, checks=c).evaluations for c in ((), ("dtype",), ("batch",))]
    assert costs == [160, 320, 320]
    found = classify_limits(turn, [(x, None)], steps=40, checks=())
    assert found.of("all examples").same_in_other_batch is None
    assert (found.examples[0].in_other_dtype, found.examples[0].stable) == (None, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"checks": ["float64"]}, "no check 'float64'"), ({"steps": 0}, "steps must"), ({"rtol": math.nan}, "rtol must")],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"steps": 4} | options
    with pytest.raises(InputError, match=message):
        classify_limits(model(lambda z, x: z), [(noise(2, 2), None)], **arguments)


def test_random_numbers_and_starts_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ContractError, match="draws random numbers"):
        classify_limits(model(lambda z, x: torch.randn_like(z)), [(noise(2, 2), None)], steps=9)
    with pytest.raises(ContractError, match="not finite before the first step"):
        classify_limits(model(lambda z, x: z, lambda x: x / 0), [(noise(2, 2), None)], steps=9)


def test_the_repeat_of_a_row_that_rested_early_is_not_known() -> None:
    assert LimitTest(2, 40, torch.device("cpu")).repeat.tolist() == [math.inf, math.inf]
