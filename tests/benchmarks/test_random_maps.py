"""The maps that acceleration is held against: drawn from their seed, and what they claim to be."""

import pytest
import torch
from benchmarks.acceleration import Race
from benchmarks.maps import FAMILIES, random_map, shift


@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_follows_from_its_family_and_seed(family: str) -> None:
    once, again, other = random_map(family, 3), random_map(family, 3), random_map(family, 4)
    assert once.name == again.name != other.name
    assert torch.equal(once.step(once.state, once.source), again.step(again.state, again.source))
    assert once.state.dtype == torch.float64


def test_scales_cover_six_decades() -> None:
    sizes = []
    for seed in range(60):
        given = random_map("tanh", seed)
        sizes.append(float(given.step(given.state, given.source).abs().max()))
    assert min(sizes) < 1e-2
    assert max(sizes) > 1e2


@pytest.mark.parametrize("length", [32, 128])
def test_a_shift_needs_as_many_steps_as_it_is_long(length: int) -> None:
    given = shift(length)
    state, steps = given.state, 0
    while not torch.equal(after := given.step(state, given.source), state):
        state, steps = after, steps + 1
    assert steps == length


def test_a_race_is_bounded_by_one_and_a_half_times_picard_and_five() -> None:
    assert Race("m", plain=10, fast=20, converged=True).bounded
    assert not Race("m", plain=10, fast=21, converged=True).bounded
    assert not Race("m", plain=10, fast=5, converged=False).bounded
    assert Race("m", plain=10, fast=15, converged=True).near
    assert not Race("m", plain=10, fast=16, converged=True).near
