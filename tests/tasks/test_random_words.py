"""Counter-based random numbers: reference values, independence of how many are drawn, and even distribution."""

import numpy as np
import pytest
from scipy import stats

from homeostat.errors import InputError
from homeostat.tasks.random_words import candidate_keys, mix, random_below, random_events, random_words


def test_mix_agrees_with_the_reference_splitmix64():
    # The first outputs of SplitMix64 from seed 1234567, as published with its reference implementation.
    gamma = np.uint64(0x9E3779B97F4A7C15)
    states = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * gamma
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_words_depend_on_key_and_counter_only():
    keys = candidate_keys(0, 10, seed=3, size=7, split=1)
    words = random_words(keys, 20)
    assert (random_words(keys[4:6], 5, first=9) == words[4:6, 9:14]).all()
    assert len(np.unique(words)) == words.size


@pytest.mark.parametrize("other", [{"seed": 4}, {"size": 8}, {"split": 0}])
def test_every_part_of_the_address_changes_the_keys(other):
    address = {"seed": 3, "size": 7, "split": 1}
    assert not np.intersect1d(candidate_keys(0, 99, **address), candidate_keys(0, 99, **(address | other))).size


def test_numbers_are_even():
    words = random_words(candidate_keys(0, 100, seed=0, size=1, split=0), 480).reshape(-1)
    counts = np.bincount(random_below(words, 24), minlength=24)
    assert stats.chisquare(counts).pvalue > 1e-4
    assert abs(random_events(words, 0.3).mean() - 0.3) < 0.01
    assert not random_events(words, 0.0).any()
    assert random_events(words, 1.0).all()


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range(seed):
    with pytest.raises(InputError, match=f"seed {seed} is out of range"):
        candidate_keys(0, 1, seed=seed, size=1, split=0)
