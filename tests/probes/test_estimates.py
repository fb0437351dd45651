"""Intervals and paired tests against scipy's own."""

import math

import numpy as np
import pytest
from scipy import stats

from homeostat.probes import estimates


@pytest.mark.parametrize("count", [1, 2, 7, 32, 1000])
def test_shares_have_wilsons_interval(count: int) -> None:
    for hits in {0, 1, count // 3, count - 1, count}:
        found = estimates.share([True] * hits + [False] * (count - hits))
        want = stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert found.value == hits / count
        assert found.low == pytest.approx(want.low, abs=1e-12)
        assert found.high == pytest.approx(want.high, abs=1e-12)
        assert found.count == count


def test_clustered_shares_lie_between_symbols_and_examples() -> None:
    rng = np.random.default_rng(0)
    count, symbols = 50, 20
    independent = rng.random((count, symbols)) < 0.7
    found = estimates.clustered_share(independent.mean(1), symbols)
    whole = stats.binomtest(int(independent.sum()), count * symbols).proportion_ci(method="wilson")
    assert found.high - found.low == pytest.approx(whole.high - whole.low, rel=0.25)
    together = np.repeat(rng.random(count) < 0.7, symbols).reshape(count, symbols)  # all right or all wrong
    found = estimates.clustered_share(together.mean(1), symbols)
    alone = stats.binomtest(int(together[:, 0].sum()), count).proportion_ci(method="wilson")
    assert (found.low, found.high) == (pytest.approx(alone.low, abs=0.01), pytest.approx(alone.high, abs=0.01))


def test_means_have_a_bootstrap_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found = estimates.mean(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.05)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05)
    assert estimates.mean(values, seed=0) == estimates.mean(values, seed=0)


def test_means_of_little() -> None:
    assert math.isnan(estimates.mean([]).value)
    one = estimates.mean([0.5])
    assert one.value == 0.5
    assert math.isnan(one.low)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (6, 0), (5, 5), (3, 12)])
def test_paired_changes_are_mcnemars_exact_test(gained: int, lost: int) -> None:
    before = [False] * gained + [True] * lost + [True, False]
    after = [True] * gained + [False] * lost + [True, False]
    # Two-sided binomial p from its definition, for a fair coin.
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    assert estimates.paired_change(before, after) == (gained, lost, pytest.approx(min(1.0, 2 * tail)))
