"""Intervals over nets and examples, and rank correlations, against what can be known otherwise."""

import numpy as np
import pytest
from scipy import stats

from homeostat.studies.statistics import change, effect, over_seeds, rank_correlation


def test_rank_correlations_are_those_counted_by_hand() -> None:
    found = rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    # Squared rank differences sum to 4: 1 - 6 * 4 / (5 * 24) = 0.8. Of ten pairs two are swapped: (8 - 2) / 10 = 0.6.
    assert found.spearman.value == pytest.approx(0.8)
    assert found.kendall.value == pytest.approx(0.6)
    assert found.spearman.count == 5


def test_rank_correlations_with_ties_are_scipys() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(5, size=20), rng.integers(4, size=20)
    found = rank_correlation(x, y)
    assert found.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.kendall.value == pytest.approx(stats.kendalltau(x, y).statistic)


def test_a_rank_correlation_does_not_depend_on_scale() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=24), rng.normal(size=24)  # without ties, which exp could make
    assert rank_correlation(x, y) == rank_correlation(np.exp(x), 3 * y + 1)


def test_the_interval_of_a_rank_correlation_holds_the_truth_as_often_as_it_says() -> None:
    hits, rng = 0, np.random.default_rng(1)
    for trial in range(60):
        x = rng.normal(size=24)
        y = 0.6 * x + 0.8 * rng.normal(size=24)  # correlation 0.6; Spearman's is (6 / pi) asin(0.3) = 0.582
        found = rank_correlation(x, y, seed=trial).kendall
        hits += found.low <= 2 / np.pi * np.arcsin(0.6) <= found.high
    assert 50 <= hits <= 60


@pytest.mark.parametrize(("x", "y"), [([1, 1, 1], [1, 2, 3]), ([1, 2], [1, 2]), ([], [])])
def test_no_correlation_without_variation(x: list[float], y: list[float]) -> None:
    assert np.isnan(rank_correlation(x, y).spearman.value)


def test_nets_that_differ_widen_the_interval() -> None:
    same = over_seeds([[1, 0] * 50] * 3)
    different = over_seeds([[1] * 100, [0] * 100, [1, 0] * 50])
    assert same.value == different.value == pytest.approx(0.5)
    assert same.high - same.low == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.15)  # examples alone
    assert different.high - different.low > 2 * (same.high - same.low)


def test_an_effect_on_the_same_examples_is_paired() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)  # what an example brings, whichever the net
    ours = [hard + 0.5, hard + 0.5]
    theirs = [hard, hard, hard]
    found = effect(ours, theirs)
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5)
    assert found.count == 2


def test_different_examples_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="the same examples, not 3 and 2"):
        effect([[1, 2, 3]], [[1, 2]])
    with pytest.raises(ValueError, match="at least one net"):
        over_seeds([])


def test_a_share_without_a_miss_has_an_interval() -> None:
    found = over_seeds([[True] * 40] * 3)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(40 / (40 + 1.959964**2))  # Wilson's at 40 of 40
    assert over_seeds([[1.0] * 40] * 3).low == 1.0  # a cosine of 1 is a measurement, not a hit


def test_that_nothing_was_lost_among_a_few_does_not_say_that_nothing_can_be() -> None:
    few, many = (change([[True] * n] * 3, [[True] * n] * 3) for n in (64, 1000))
    assert few.value == many.value == 0
    assert few.low == pytest.approx(-(1.959964**2) / (64 + 1.959964**2))
    assert few.low < -0.05 < -0.02 < many.low


def test_a_change_keeps_before_and_after_together() -> None:
    rng = np.random.default_rng(0)
    before = rng.random((3, 400)) < 0.5
    found = change(list(before), list(before & (np.arange(400) % 10 > 0)))  # loses every tenth
    lost = float((before & (np.arange(400) % 10 == 0)).mean())
    assert found.value == pytest.approx(-lost)
    assert found.low < -lost < found.high < 0
    assert found.high - found.low < 0.06  # of two independent shares it would be 0.14
    with pytest.raises(ValueError, match="the same nets and examples"):
        change([[True, False]], [[True]])
