"""Figures over several nets: effects with intervals over seeds and examples, and rank correlations.

Nets trained with different seeds differ more than test strings do, so an interval over examples alone would promise
too much. Here nets and examples are resampled together. With three seeds such an interval is rough; it is shown beside
every single net.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from homeostat.probes.results import Estimate

RESAMPLES = 2000
"""Bootstrap resamples; intervals are from the 2.5 % to the 97.5 % quantile."""


@dataclass(frozen=True)
class RankCorrelation:
    """How well two rankings of the same nets agree: 1 the same, -1 reversed."""

    spearman: Estimate
    kendall: Estimate
    """Tau-b, which allows for ties."""


def rank_correlation(x: ArrayLike, y: ArrayLike, *, seed: int = 0) -> RankCorrelation:
    """Spearman's and Kendall's rank correlation of `(nets,)` pairs, with bootstrap intervals over nets.

    A resample in which one of the two is constant has no correlation and is left out; when either is constant in the
    data themselves, the correlation is not a number.

    Example:
        >>> rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]).spearman
        1.000 [1.000, 1.000] n=5
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"x and y must be vectors of one length, not of shapes {x.shape} and {y.shape}")
    rows = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x))) if len(x) else np.empty((0, 0), int)

    def estimate(of: Callable[[NDArray, NDArray], NDArray]) -> Estimate:
        if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return Estimate(float("nan"), float("nan"), float("nan"), len(x))
        varied = (np.ptp(x[rows], axis=1) > 0) & (np.ptp(y[rows], axis=1) > 0)
        low, high = np.quantile(of(x[rows][varied], y[rows][varied]), [0.025, 0.975])
        return Estimate(float(of(x[None], y[None])[0]), float(low), float(high), len(x))

    return RankCorrelation(estimate(_spearman), estimate(_kendall))


def _spearman(x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Of each row of `(rows, nets)`: the correlation of ranks, ties having their mean rank."""
    a, b = (stats.rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (x, y))
    return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def _kendall(x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Of each row: pairs in the same order less pairs in the other, over the geometric mean of those not tied."""
    a, b = (np.sign(values[:, :, None] - values[:, None, :]) for values in (x, y))
    return (a * b).sum((1, 2)) / np.sqrt((a * a).sum((1, 2)) * (b * b).sum((1, 2)))


def over_seeds(values: Sequence[ArrayLike], *, seed: int = 0) -> Estimate:
    """Mean over nets of per-example values `(examples,)` each, with an interval over nets and examples.

    Of booleans it is a share, whose interval is at least Wilson's over the examples, which all nets have in common: a
    bootstrap of hits alone would have no width, as if no example could be missed.

    Example:
        >>> over_seeds([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
        0.500 [0.500, 0.500] n=2
        >>> over_seeds([[True] * 32] * 3)
        1.000 [0.893, 1.000] n=3
    """
    matrix = _matrix(values)
    found = _interval(float(matrix.mean()), _resampled(matrix, np.random.default_rng(seed), None), len(matrix))
    if any(np.asarray(row).dtype != np.bool_ for row in values):
        return found
    low, high = _wilson(found.value, matrix.shape[1])
    return replace(found, low=min(found.low, low), high=max(found.high, high))


def change(before: Sequence[ArrayLike], after: Sequence[ArrayLike], *, seed: int = 0) -> Estimate:
    """Share of hits `after` minus share `before`, of the same nets on the same examples: bools, nets by examples.

    Nets and examples are resampled together, and before and after stay together. The interval is at least what
    Wilson's for the shares of gained and of lost hits allow over the examples: that none was lost among a few does not
    say that none can be.

    Source:
        Two intervals to that of a difference: Zou, Donner, "Construction of confidence limits about effect measures",
        Statistics in Medicine 27 (2008).

    Example:
        >>> change([[True] * 64] * 3, [[True] * 64] * 3)
        0.000 [-0.057, 0.057] n=3
    """
    a, b = _matrix(before), _matrix(after)
    if a.shape != b.shape:
        raise ValueError(f"both must have the same nets and examples, not {a.shape} and {b.shape}")
    moved = b - a
    gained, lost = float((moved > 0).mean()), float((moved < 0).mean())
    more, less = _wilson(gained, moved.shape[1]), _wilson(lost, moved.shape[1])
    value = float(moved.mean())
    found = _interval(value, _resampled(moved, np.random.default_rng(seed), None), len(moved))
    return replace(
        found,
        low=min(found.low, value - math.hypot(gained - more[0], less[1] - lost)),
        high=max(found.high, value + math.hypot(more[1] - gained, lost - less[0])),
    )


def effect(ours: Sequence[ArrayLike], theirs: Sequence[ArrayLike], *, seed: int = 0) -> Estimate:
    """Mean of `ours` minus mean of `theirs`: nets x per-example values, on the same examples.

    Nets are resampled in each group by itself, examples in both together, since both saw the same ones.

    Example:
        >>> effect([[1, 1, 0], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]).value.__round__(2)
        0.83
    """
    a, b = _matrix(ours), _matrix(theirs)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both must have the same examples, not {a.shape[1]} and {b.shape[1]}")
    rng = np.random.default_rng(seed)
    columns = rng.integers(a.shape[1], size=(RESAMPLES, a.shape[1]))
    found = _resampled(a, rng, columns) - _resampled(b, rng, columns)
    return _interval(float(a.mean() - b.mean()), found, min(len(a), len(b)))


def _matrix(values: Sequence[ArrayLike]) -> NDArray[np.float64]:
    matrix = np.asarray([np.asarray(row, dtype=float) for row in values])
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError("there must be at least one net, and the same number of examples for each")
    return matrix


def _resampled(matrix: NDArray, rng: np.random.Generator, columns: NDArray | None) -> NDArray[np.float64]:
    nets, examples = matrix.shape
    rows = rng.integers(nets, size=(RESAMPLES, nets))
    if columns is None:
        columns = rng.integers(examples, size=(RESAMPLES, examples))
    return np.array([matrix[np.ix_(r, c)].mean() for r, c in zip(rows, columns, strict=True)])


def _wilson(share: float, examples: int) -> tuple[float, float]:
    """Wilson's interval, with the whole number of hits that is nearest to the share."""
    found = stats.binomtest(round(share * examples), examples).proportion_ci(method="wilson")
    return min(share, float(found.low)), max(share, float(found.high))


def _interval(value: float, found: NDArray, count: int) -> Estimate:
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(value, float(low), float(high), count)
