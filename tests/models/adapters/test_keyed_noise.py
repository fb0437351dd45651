"""Noise from keys: its law, and that nothing but the key matters."""

import numpy as np
import torch
from scipy import stats

from homeostat.models.adapters.keyed_noise import fingerprints, mixed, normals, uniforms

KEYS = mixed(torch.arange(8))


def splitmix64(value: int) -> int:
    """The published algorithm, in whole numbers of any size."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def test_the_rounds_are_those_of_splitmix64() -> None:
    values = [0, 1, -1, 2**62, -(2**63), 1234567890123]
    found = mixed(torch.tensor(values)).tolist()
    assert [value % 2**64 for value in found] == [splitmix64(value % 2**64) for value in values]


def test_the_numbers_have_their_laws() -> None:
    drawn = normals(KEYS, (50, 101)).numpy()
    assert drawn.shape == (8, 50, 101)
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    uniform = uniforms(KEYS, (5000,)).numpy()
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    assert 0 < uniform.min() < uniform.max() < 1


def test_keys_and_places_are_unrelated() -> None:
    drawn = normals(torch.arange(8), (5000,)).numpy()  # keys as near as keys can be
    correlations = np.corrcoef(drawn)[np.triu_indices(8, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(5000)
    lagged = [np.corrcoef(drawn[0, :-lag], drawn[0, lag:])[0, 1] for lag in (1, 2, 2500)]
    assert np.abs(lagged).max() < 5 / np.sqrt(2500)


def test_a_row_depends_on_its_key_alone() -> None:
    assert torch.equal(normals(KEYS, (3, 5))[4:6], normals(KEYS[4:6], (3, 5)))


def test_a_fingerprint_tells_examples_apart_and_nothing_else() -> None:
    tokens = torch.tensor([[0, 1, 2], [2, 1, 0], [0, 1, 3], [0, 1, 2]])
    keys = fingerprints(tokens)
    assert keys[0] == keys[3]
    assert len(set(keys.tolist())) == 3
    assert torch.equal(fingerprints(tokens[1:3]), keys[1:3])
    numbers = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
    assert len(set(fingerprints(numbers).tolist())) == 2
    both = fingerprints({"a": tokens[:2], "b": numbers})
    assert not torch.equal(both, fingerprints({"a": tokens[:2], "b": numbers.flip(0)}))
