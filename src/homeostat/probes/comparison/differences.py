"""Differences between two models on the same examples, with intervals that hold."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from homeostat.probes import estimates
from homeostat.probes.results import Estimate

_RESAMPLES = 2000


def paired_difference(ours: ArrayLike, theirs: ArrayLike, *, seed: int = 0) -> Estimate:
    """Share of hits of `ours` minus that of `theirs`, `(examples,)` bool each, with a paired percentile bootstrap over
    examples (2,000 resamples).

    The interval is at least what Wilson's intervals for the share of examples that only `ours` has right, and for that
    which only `theirs` has, allow: where two models agree on forty examples, a bootstrap has no width, as if they could
    never differ.

    Source:
        Two intervals to that of a difference: Zou, Donner, "Construction of confidence limits about effect measures",
        Statistics in Medicine 27 (2008).

    Example:
        >>> paired_difference([True] * 64, [True] * 64)
        0.000 [-0.057, 0.057] n=64
    """
    moved = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    value = float(moved.mean())
    low = high = value
    if len(moved) > 1 and np.ptp(moved):
        found = stats.bootstrap(
            (moved,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    return _widened(Estimate(value, low, high, len(moved)), moved)


def differences_at_once(ours: ArrayLike, theirs: ArrayLike, *, seed: int = 0) -> list[Estimate]:
    """The same for the columns of `(examples, costs)`, with intervals that hold for all costs at once (see
    `estimates.together`), so that whoever looks for the cost at which two models differ is not led by chance.

    Example:
        >>> differences_at_once([[True, True]] * 64, [[True, True]] * 64)
        [0.000 [-0.057, 0.057] n=64, 0.000 [-0.057, 0.057] n=64]
    """
    moved = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    found = estimates.together(moved, seed=seed)
    return [_widened(one, column) for one, column in zip(found, moved.T, strict=True)]


def _widened(found: Estimate, moved: np.ndarray) -> Estimate:
    gained, lost = estimates.share(moved > 0), estimates.share(moved < 0)
    low = found.value - math.hypot(gained.value - gained.low, lost.high - lost.value)
    high = found.value + math.hypot(gained.high - gained.value, lost.value - lost.low)
    return replace(
        found,
        low=max(-1.0, low if math.isnan(found.low) else min(found.low, low)),
        high=min(1.0, high if math.isnan(found.high) else max(found.high, high)),
    )
