"""Starts: what an example starts from depends on its index and the seed, and on nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from homeostat import Carry
from homeostat.errors import ContractError
from homeostat.models import Mixed, Noise, Own, Start, Zeros
from homeostat.models.starts import stream_seed

DRAWN = [Noise(seed=1), Noise(seed=1, scale=3.0), Mixed(seed=1), Mixed(seed=1, share=0.3)]
TEMPLATE = torch.full((6, 4), 9.0)


@pytest.mark.parametrize("start", DRAWN)
@settings(max_examples=20, deadline=None)
@given(indices=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_an_example_starts_the_same_in_any_batch(start, indices):
    everything = start.like(TEMPLATE)
    some = start.seeded(1, indices).like(TEMPLATE[: len(indices)])
    assert torch.equal(some, everything[indices])


@pytest.mark.parametrize("start", DRAWN)
def test_seeds_and_examples_are_unrelated(start):
    template = torch.zeros(2, 4000)
    draws = torch.cat([start.seeded(seed, (1, 3)).like(template) for seed in (0, 1)])
    draws = draws[draws.abs().sum(1) > 0]
    assert len(draws) >= 2
    off_diagonal = torch.corrcoef(draws) - torch.eye(len(draws))
    assert off_diagonal.abs().max() < 5 / 4000**0.5  # five standard deviations of unrelated noise


def test_noise_is_standard_and_scaled():
    plain, large = Noise(seed=2).like(torch.zeros(200, 200)), Noise(seed=2, scale=4.0).like(torch.zeros(200, 200))
    assert torch.equal(large, 4 * plain)
    assert abs(plain.mean().item()) < 5 / 200
    assert abs(plain.var().item() - 1) < 5 * 2**0.5 / 200
    # Per example too: no two rows share a stream.
    assert torch.unique(plain[:, 0]).numel() == 200


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("first", [0, 37])
def test_mixed_starts_keep_their_share_in_every_stretch(share, first):
    indices = tuple(range(first, first + 200))
    drawn = Mixed(share=share).seeded(0, indices).like(torch.zeros(200, 3))
    noisy = (drawn != 0).all(1)
    assert torch.equal(noisy, (drawn != 0).any(1))  # an example is all noise or all zero
    assert abs(int(noisy.sum()) - 200 * share) <= 1
    assert abs(int(noisy[:40].sum()) - 40 * share) <= 1
    assert torch.equal(drawn[noisy], Noise().seeded(0, indices).like(torch.zeros(200, 3))[noisy])


def test_structure_dtype_and_unmeasured_leaves_are_those_of_the_template():
    template = {
        "z": torch.ones(2, 3, dtype=torch.float64),
        "n": torch.tensor([4, 5]),
        "c": Carry(torch.ones(2)),
        "h": (torch.ones(2, 3, dtype=torch.bfloat16),),
    }
    drawn = Noise().like(template)
    assert drawn["z"].dtype == torch.float64
    assert drawn["h"][0].dtype == torch.bfloat16
    assert torch.equal(drawn["n"], template["n"])
    assert isinstance(drawn["c"], Carry)
    assert torch.equal(drawn["c"].value, torch.ones(2))
    assert not torch.equal(drawn["z"], drawn["h"][0].double())  # leaves have streams of their own
    assert (Zeros().like(template)["z"] == 0).all()
    assert (Own().like(template)["z"] == 1).all()


def test_no_rows():
    for start in (Own(), Zeros(), *DRAWN):
        assert start.like(torch.zeros(0, 3)).shape == (0, 3)


def test_indices_must_match_the_rows():
    with pytest.raises(ContractError, match="the start is for 3 examples, the state has 2 rows"):
        Noise().seeded(0, (0, 1, 2)).like(torch.zeros(2, 1))


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "noise", "scale": 0},
        {"kind": "noise", "scale": -1},
        {"kind": "noise", "scale": float("inf")},
        {"kind": "noise", "scale": float("nan")},
        {"kind": "mixed", "share": 1.1},
        {"kind": "mixed", "share": -0.1},
        {"kind": "zeros", "scale": 1},
        {"kind": "noise", "seed": -1},
        {"kind": "uniform"},
        {},
    ],
)
def test_impossible_starts_are_refused(options):
    with pytest.raises(ValidationError):
        TypeAdapter(Start).validate_python(options)


@pytest.mark.parametrize("start", [Own(), Zeros(), *DRAWN])
def test_a_start_is_data(start):
    adapter = TypeAdapter(Start)
    assert adapter.validate_json(adapter.dump_json(start)) == start


def test_the_streams_are_fixed_for_ever():
    # Recorded runs rely on them.
    assert stream_seed(0, 0, 0) == 5445785145714962951
    assert len({stream_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)}) == 512
    assert 0 <= stream_seed(2**62, 5) < 2**63
