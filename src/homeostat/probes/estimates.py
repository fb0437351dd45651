"""Means with their 95 % intervals."""

import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from homeostat.probes.results import Estimate

_Z = float(stats.norm.ppf(0.975))
_RESAMPLES = 2000


def _wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's interval (Wilson 1927) for a share; `count` need not be whole."""
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    # At 0 and 1 the ends are exact; rounding must not say otherwise.
    low = 0.0 if share == 0 else max(0.0, float(centre - half))
    return low, 1.0 if share == 1 else min(1.0, float(centre + half))


def share(hits: ArrayLike) -> Estimate:
    """Share of `True` in `(examples,)`, with Wilson's interval.

    Example:
        >>> share([True] * 32)
        1.000 [0.893, 1.000] n=32
        >>> share([])
        nan [0.000, 1.000] n=0
    """
    hits = np.asarray(hits, dtype=bool)
    if len(hits) == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0)
    return Estimate(float(hits.mean()), *_wilson(float(hits.mean()), len(hits)), len(hits))


def clustered_share(shares: ArrayLike, symbols: int) -> Estimate:
    """Mean of per-example shares `(examples,)` of `symbols` symbols each, with Wilson's interval.

    Symbols of one example are not independent, so the interval uses the number of independent symbols that would
    give the variance seen between examples (Kish's effective sample size), at most all of them, at least the number
    of examples.

    Example:
        >>> clustered_share([1.0, 0.5, 1.0, 0.5], symbols=10)  # as good as 9 symbols, not 40
        0.750 [0.427, 0.924] n=4
    """
    shares = np.asarray(shares, dtype=float)
    count = len(shares)
    if count == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0)
    mean = float(shares.mean())
    variance = float(shares.var(ddof=1)) / count if count > 1 else 0.0
    effective = count * symbols if variance == 0 else mean * (1 - mean) / variance
    return Estimate(mean, *_wilson(mean, float(np.clip(effective, count, count * symbols))), count)


def clustered_ratio(hits: ArrayLike, counts: ArrayLike) -> Estimate:
    """Share of all symbols that are right, where examples have different numbers of them, with Wilson's interval.

    As `clustered_share`, but every symbol counts alike, so that an example with more of them counts for more. The
    effective number of symbols comes from the linearised variance of the ratio, the number of examples at least and of
    symbols at most; where all are right or none, it is the number of examples. One example has no interval.

    Args:
        hits, counts: `(examples,)`, right symbols and all symbols of each; no count is 0.

    Source:
        Cochran, "Sampling Techniques", 3rd edition, 6.3 and 9A.

    Example:
        >>> clustered_ratio([10, 5], [10, 10])
        0.750 [0.256, 0.963] n=2
    """
    hits, counts = np.asarray(hits, dtype=float), np.asarray(counts, dtype=float)
    many, total = len(hits), float(counts.sum())
    if many == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0)
    ratio = float(hits.sum() / total)
    if many == 1:
        return Estimate(ratio, float("nan"), float("nan"), 1)
    spread = float(((hits - ratio * counts) ** 2).sum()) * many / (many - 1) / total**2
    effective = ratio * (1 - ratio) / spread if spread > 0 else (many if ratio in (0, 1) else total)
    return Estimate(ratio, *_wilson(ratio, float(np.clip(effective, many, total))), many)


def mean(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean of `(examples,)` with a percentile bootstrap interval over examples (2,000 resamples).

    Example:
        >>> mean([1.0, 1.0, 1.0])
        1.000 [1.000, 1.000] n=3
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    centre = float(values.mean())
    if len(values) == 1 or np.ptp(values) == 0:
        low, high = (centre, centre) if len(values) > 1 else (float("nan"), float("nan"))
        return Estimate(centre, low, high, len(values))
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Estimate(centre, float(found.low), float(found.high), len(values))


def together(values: ArrayLike, *, per: ArrayLike | None = None, seed: int = 0) -> list[Estimate]:
    """Means of the columns of `(examples, columns)`, with intervals that hold for *all* columns at once.

    Who looks at twelve intervals of 95 % and picks the one that lies beyond 0 is wrong far more often than once in
    twenty; of these the whole row holds in 95 of 100 repeats. Examples are resampled whole (2,000 times), so that
    columns that move together cost little; the half-width is a multiple of each column's standard error, the same
    one for all: the 95 % quantile of the largest |deviation| / standard error, with Student's factor for few examples.

    Args:
        values: NaN where a column lacks an example: left out of that column, and of its count.
        per: `(examples,)`; the figure is then mean of the column / mean of `per`, over the examples of both.
        seed: of the bootstrap.

    Source:
        Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, 12 (the largest deviation in place of one).

    Example:
        >>> together([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0]])  # with three examples, next to nothing is known
        [1.000 [-1.689, 3.689] n=3, 2.000 [-0.775, 4.775] n=3]
    """
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    counts = known.sum(0).tolist()
    weight = np.ones(len(values)) if per is None else np.asarray(per, dtype=float)
    parts = np.where(known, values, 0.0), known * weight[:, None]

    def figures(draws: np.ndarray) -> np.ndarray:
        draws = draws.astype(float)
        above, below = draws @ parts[0], draws @ parts[1]
        return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)

    if len(values) == 0:
        return [Estimate(float("nan"), float("nan"), float("nan"), 0) for _ in counts]
    centre = figures(np.ones((1, len(values))))[0]
    rng, chance = np.random.default_rng(seed), np.full(len(values), 1 / len(values))
    parts_of_draws = [_RESAMPLES // 20] * 20  # one after the other, so that memory stays bounded
    found = np.concatenate([figures(rng.multinomial(len(values), chance, size=many)) for many in parts_of_draws])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without an example has no spread
        spread = np.nanstd(found, axis=0)
    moving = spread > 0
    half = np.where(np.isnan(spread), np.nan, 0.0)
    if moving.any():
        # A resample that lacks a column altogether says nothing of it.
        largest = np.nan_to_num(np.abs(found - centre)[:, moving] / spread[moving]).max(1)
        least = max(2, min(count for count, moves in zip(counts, moving, strict=True) if moves))
        student = float(stats.t.ppf(0.975, least - 1)) / _Z * np.sqrt(least / (least - 1))
        half = half + np.where(moving, np.quantile(largest, 0.95) * student * spread, 0.0)
    half = np.where(np.asarray(counts) < 2, np.nan, half)
    ends = zip(centre.tolist(), half.tolist(), counts, strict=True)
    return [Estimate(value, value - width, value + width, count) for value, width, count in ends]


def paired_change(before: ArrayLike, after: ArrayLike) -> tuple[int, int, float]:
    """Examples gained and lost between two budgets, and the p-value of McNemar's exact test that both are as likely.

    Example:
        >>> paired_change([False] * 10 + [True], [True] * 10 + [True])
        (10, 0, 0.001953125)
    """
    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    gained, lost = int((~before & after).sum()), int((before & ~after).sum())
    p = 1.0 if gained + lost == 0 else float(stats.binomtest(gained, gained + lost).pvalue)
    return gained, lost, p


def median(values: ArrayLike) -> Estimate:
    """Median of `(examples,)` with the interval between two order statistics, which holds whatever the distribution.

    Infinite values are values like others; NaN counts as the largest, since it stands for a failure. Below six
    examples there is no 95 % interval.

    Source:
        Conover, "Practical Nonparametric Statistics", 3rd edition, 3.2.

    Example:
        >>> median([1.0, 2.0, 2.0, 3.0, 4.0, float("inf"), 9.0])
        3.000 [1.000, inf] n=7
    """
    values = np.asarray(values, dtype=float)
    count = len(values)
    if count == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    ordered = np.sort(np.where(np.isnan(values), np.inf, values))
    lower, upper = ordered[(count - 1) // 2], ordered[count // 2]
    centre = float(lower) if lower == upper else float((lower + upper) / 2)
    rank = int(stats.binom.ppf(0.025, count, 0.5))  # so many values, at most, may be left out on either side
    if rank < 1:
        return Estimate(centre, float("nan"), float("nan"), count)
    return Estimate(centre, float(ordered[rank - 1]), float(ordered[count - rank]), count)
