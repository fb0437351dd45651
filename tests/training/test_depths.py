"""Depth schedules: their distributions against their definitions, and the horizons that they promise."""

import numpy as np
import pytest
from pydantic import ValidationError

from homeostat.training import FixedDepth, LogNormalPoissonDepth, ProgressiveDepth, RandomDepth


def test_lognormal_poisson_has_the_moments_of_its_definition() -> None:
    depth, rng = LogNormalPoissonDepth(mean=8, sigma=0.5, graphed=4), np.random.default_rng(0)
    draws = np.array([depth.draw(1, rng) for _ in range(40_000)])
    steps = draws.sum(1)
    # E = 1 + m; Var = m + m^2 (exp(sigma^2) - 1): Poisson's own variance and that of its rate.
    variance = 8 + 64 * (np.exp(0.25) - 1)
    assert abs(steps.mean() - 9) < 5 * (variance / 40_000) ** 0.5
    assert abs(steps.var() / variance - 1) < 0.1
    assert steps.min() == 1
    assert (draws[:, 1] == np.minimum(steps, 4)).all(), "the last steps keep the graph"


@pytest.mark.parametrize(("mean", "sigma"), [(0.5, 0.3), (8, 0.5), (32, 0.5), (12, 1.0)])
def test_its_horizon_is_the_quantile_of_the_unclipped_draw(mean: float, sigma: float) -> None:
    depth, rng = LogNormalPoissonDepth(mean=mean, sigma=sigma), np.random.default_rng(1)
    rates = np.exp(rng.normal(np.log(mean) - sigma**2 / 2, sigma, size=1_000_000))
    steps = 1 + rng.poisson(rates)
    horizon = depth.horizon(1)
    beyond = [(steps > bound).mean() for bound in (horizon, horizon - 1)]
    error = 5 * (1e-3 / 1e6) ** 0.5
    assert beyond[0] <= 1e-3 + error
    assert beyond[1] > 1e-3 - error
    assert max(sum(depth.draw(1, rng)) for _ in range(5000)) <= horizon


def test_progressive_depth_draws_what_deep_thinking_draws() -> None:
    depth, rng = ProgressiveDepth(steps=4), np.random.default_rng(0)
    draws = [depth.draw(8, rng) for _ in range(8000)]
    for free in range(4):
        for graphed in range(1, 5 - free):  # n ~ U{0..3}, then k ~ U{1..4-n}
            expected = 8000 / 4 / (4 - free)
            assert abs(draws.count((free, graphed)) - expected) < 5 * expected**0.5
    assert len({*draws}) == 10
    assert np.mean([free + graphed for free, graphed in draws]) == pytest.approx(depth.expected(8), abs=0.06)


@pytest.mark.parametrize(("alpha", "weights"), [(0.0, [1.0]), (0.25, [0.25, 0.75]), (1.0, [1.0])])
def test_progressive_runs_are_weighted_and_the_full_one_is_the_last(alpha: float, weights: list[float]) -> None:
    walks = ProgressiveDepth(steps=9, alpha=alpha).walks(3, 2)
    assert [walk.weight for walk in walks] == weights
    if alpha < 1:
        assert walks[-1][1:] == (0, 9)
    if alpha > 0:
        assert walks[0][1:] == (3, 2)


def test_expected_steps_are_the_mean_of_the_draws() -> None:
    rng = np.random.default_rng(0)
    random = RandomDepth(free=(0.5, 2), free_unit="sizes", graphed=(1, 4))
    assert np.mean([sum(random.draw(6, rng)) for _ in range(20_000)]) == pytest.approx(random.expected(6), rel=0.01)
    assert FixedDepth(steps=5).expected(3) == 5
    assert LogNormalPoissonDepth(mean=7).expected(3) == 8
    assert ProgressiveDepth(steps=5, alpha=0.5).expected(3) == 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogNormalPoissonDepth(mean=0),
        lambda: LogNormalPoissonDepth(mean=float("inf")),
        lambda: LogNormalPoissonDepth(mean=4, sigma=0),
        lambda: LogNormalPoissonDepth(mean=4, graphed=0),
        lambda: ProgressiveDepth(steps=0),
        lambda: ProgressiveDepth(steps=3, alpha=1.1),
    ],
)
def test_impossible_depths_are_refused(make) -> None:
    with pytest.raises(ValidationError):
        make()
