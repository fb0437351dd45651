"""P-values and the sequence of tests, against enumeration, simulation and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.inference.learn_then_test import (
    binomial_p_value,
    fewest_examples,
    fixed_sequence,
    hoeffding_bentkus_p_value,
)


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0.001, 0.999))
def test_binomial_tail_is_the_sum(count: int, errors: int, level: float) -> None:
    errors = min(errors, count)
    wanted = math.fsum(math.comb(count, k) * level**k * (1 - level) ** (count - k) for k in range(errors + 1))
    assert binomial_p_value(errors, count, level) == pytest.approx(wanted, abs=1e-9)


def test_no_example_no_evidence() -> None:
    assert binomial_p_value(0, 0, 0.5) == 1.0
    assert hoeffding_bentkus_p_value(0.0, 0, 0.5) == 1.0


@pytest.mark.parametrize("level", [0.001, 0.01, 0.2])
@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.99])
def test_fewest_examples_is_where_none_wrong_is_enough(level: float, confidence: float) -> None:
    count = fewest_examples(level, confidence)
    assert binomial_p_value(0, count, level) <= 1 - confidence < binomial_p_value(0, count - 1, level)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.05, 0.95), st.integers(5, 200), st.integers(0, 2**31))
def test_hoeffding_bentkus_is_valid_at_the_boundary(level: float, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.uniform(0.2, 5)
    losses = rng.beta(a, a * (1 - level) / level, (4000, count))  # mean `level`, anything between 0 and 1
    p = np.array([hoeffding_bentkus_p_value(float(mean), count, level) for mean in losses.mean(1)])
    for alpha in (0.05, 0.2):
        assert (p <= alpha).mean() <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / len(p))


def test_sequence_ends_at_the_first_that_is_not_rejected() -> None:
    assert fixed_sequence([0.05, 0.1, 0.10001, 0.0], confidence=0.9) == 2
    assert fixed_sequence([], confidence=0.9) == 0
    assert fixed_sequence([float("nan"), 0.0], confidence=0.9) == 0


def test_sequence_keeps_the_family_wise_error() -> None:
    """Forty true nulls in a row: promising any of them is an error, and happens at most one time in ten."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(4000):
        errors = rng.binomial(200, 0.05, size=40)
        wrong += fixed_sequence((binomial_p_value(int(k), 200, 0.05) for k in errors), confidence=0.9) > 0
    assert wrong / 4000 <= 0.1 + 4 * math.sqrt(0.09 / 4000)
    assert wrong > 0
