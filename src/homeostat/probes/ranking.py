"""How well a number tells right from wrong, or foretells another one: the area under the ROC curve, risk by coverage,
rank correlation.

Larger numbers stand for more trust. Infinite ones are numbers like others, ties count half.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from homeostat.probes.results import Estimate

_Z = float(stats.norm.ppf(0.975))
_RESAMPLES = 1000


def auc(signal: ArrayLike, right: ArrayLike) -> Estimate | None:
    """Chance that a right example has the larger signal than a wrong one (Mann-Whitney, ties half), with Newcombe's
    interval; None where all examples are right, or all are wrong: then there is nothing to tell apart.

    The interval is Wilson's in spirit: all areas a for which the estimate is within 1.96 standard errors *at a*, by
    Hanley and McNeil's variance with the mean of both counts. So it does not shrink to a point at 0 and 1.

    Args:
        signal: `(examples,)`, NaN nowhere.
        right: `(examples,)` bool.

    Source:
        Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2",
        Statistics in Medicine 25 (2006), method 5.

    Example:
        >>> auc([0.9, 0.8, 0.3, 0.1], [True, True, False, False])
        1.000 [0.386, 1.000] n=4
        >>> auc([0.9, 0.8], [True, True]) is None
        True
    """
    signal, right = np.asarray(signal, dtype=float), np.asarray(right, dtype=bool)
    hits, misses = int(right.sum()), int((~right).sum())
    if hits == 0 or misses == 0:
        return None
    ranks = stats.rankdata(signal)
    # The sum of ranks counts pairs, and the pairs of right ones among themselves are taken out again.
    area = float((ranks[right].sum() - hits * (hits + 1) / 2) / (hits * misses))
    low = 0.0 if area == 0 else _end(area, hits, misses, 0.0)
    high = 1.0 if area == 1 else _end(area, hits, misses, 1.0)
    return Estimate(area, low, high, len(right))


def _end(area: float, hits: int, misses: int, side: float) -> float:
    """Where the estimate is 1.96 standard errors away, between it and 0 or 1."""
    spare = (hits + misses) / 2 - 1

    def excess(a: float) -> float:
        variance = a * (1 - a) * (1 + spare * ((1 - a) / (2 - a) + a / (1 + a))) / (hits * misses)
        return (area - a) ** 2 - _Z**2 * variance

    # At the estimate itself nothing is in excess; at 0 and 1 there is no variance, so that something is.
    inner = min(max(area, 1e-12), 1 - 1e-12)
    return float(optimize.brentq(excess, inner, side))  # type: ignore[arg-type]


@dataclass(frozen=True)
class RiskCoverage:
    """Risk, the share of wrong ones among the examples that are kept, by coverage, the share that is kept."""

    points: tuple[tuple[float, float], ...]
    """(coverage, risk), the most trusted first; examples with the same signal are kept together."""
    area: Estimate
    """Mean risk over all coverages (AURC), with a bootstrap interval over examples. Lower is better."""


def risk_coverage(signal: ArrayLike, right: ArrayLike, *, seed: int = 0) -> RiskCoverage:
    """Keep the examples of the largest signals, and see how many of them are wrong.

    The area is the mean, over k from 1 to n, of the risk among the k most trusted; within a tie that is the mean over
    all its orders.

    Args:
        signal: `(examples,)`, NaN nowhere; one example or more.
        right: `(examples,)` bool.
        seed: of the bootstrap (1,000 resamples, percentiles).

    Source:
        Geifman, El-Yaniv, "Selective classification for deep neural networks", arXiv 1705.08500; the area: Geifman,
        Uziel, El-Yaniv, arXiv 1805.08206.

    Example:
        >>> risk_coverage([3.0, 2.0, 1.0], [True, False, True]).points
        ((0.3333333333333333, 0.0), (0.6666666666666666, 0.5), (1.0, 0.3333333333333333))
        >>> round(risk_coverage([3.0, 2.0, 1.0], [True, False, True]).area.value, 4)  # (0 + 1/2 + 1/3) / 3
        0.2778
    """
    signal, wrong = np.asarray(signal, dtype=float), ~np.asarray(right, dtype=bool)
    _, group = np.unique(-signal, return_inverse=True)  # 0 is the most trusted
    groups = int(group.max()) + 1
    sizes = np.bincount(group, minlength=groups)
    errors = np.bincount(group, weights=wrong, minlength=groups)
    kept, failed = sizes.cumsum(), errors.cumsum()
    points = tuple(zip((kept / len(wrong)).tolist(), (failed / kept).tolist(), strict=True))
    value = _area(sizes, errors)
    draw = np.random.default_rng(seed)
    count = len(wrong)
    areas = []
    if count > 1:
        for _ in range(_RESAMPLES):
            chosen = draw.integers(0, count, count)
            sizes = np.bincount(group[chosen], minlength=groups)
            errors = np.bincount(group[chosen], weights=wrong[chosen], minlength=groups)
            areas.append(_area(sizes, errors))
    low, high = np.quantile(areas, [0.025, 0.975]).tolist() if areas else (float("nan"), float("nan"))
    return RiskCoverage(points, Estimate(value, low, high, count))


def _area(sizes: np.ndarray, errors: np.ndarray) -> float:
    """Mean risk, from the number of examples and of wrong ones in each group of ties, the most trusted first."""
    share = np.divide(errors, sizes, out=np.zeros(len(sizes)), where=sizes > 0)
    running = np.repeat(share, sizes).cumsum()
    return float((running / np.arange(1, len(running) + 1)).mean())


def rank_correlation(first: ArrayLike, second: ArrayLike) -> Estimate | None:
    """Spearman's rank correlation of `(examples,)` each, with an interval by Fisher's transformation; None where one
    of them does not vary, or with fewer than four examples.

    Source:
        Bonett, Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations",
        Psychometrika 65 (2000): variance (1 + r^2 / 2) / (n - 3) of the transformed correlation.

    Example:
        >>> rank_correlation([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 4, 3, 5, 6, 8, 7])
        0.952 [0.664, 0.994] n=8
        >>> rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None
        True
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    count = len(first)
    if count < 4 or np.all(first == first[0]) or np.all(second == second[0]):
        return None
    value = float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])
    inner = float(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    centre, half = np.arctanh(inner), _Z * np.sqrt((1 + inner**2 / 2) / (count - 3))
    return Estimate(value, float(np.tanh(centre - half)), float(np.tanh(centre + half)), count)


def least_area(wrong: int, count: int) -> float:
    """The area of a perfect signal: every wrong example is trusted less than every right one.

    Example:
        >>> least_area(1, 2)  # risk 0 at half coverage, 1/2 at full coverage
        0.25
    """
    return _area(np.array([count - wrong, *[1] * wrong]), np.array([0, *[1] * wrong]))
