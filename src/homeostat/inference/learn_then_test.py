"""Learn then Test: which of several rules may be promised to keep a risk, from one calibration set.

For each candidate the null hypothesis is that its risk exceeds the level. A p-value that holds for any sample size is
found for it, and candidates are tested in an order that was fixed without these data, until one is not rejected: then
the chance that any candidate is wrongly promised is at most 1 - confidence, however many there are (fixed-sequence
testing). All this asks of the data is that calibration examples and later ones are drawn alike and independently.

Source:
    Angelopoulos, Bates, Candès, Jordan, Lei, "Learn then Test", arXiv 2110.01052; the order by a first split:
    Laufer-Goldshtein, Fisch, Barzilay, Jaakkola, "Efficiently Controlling Multiple Risks with Pareto Testing", 2023.
"""

import math
from collections.abc import Iterable

from scipy import stats


def binomial_p_value(errors: int, count: int, level: float) -> float:
    """Chance of so few errors, or fewer, if their true share were `level`: exact for losses of 0 and 1.

    Where examples are drawn in fixed shares of several kinds, their risk is the mean over these; the number of errors
    then varies less, and the value errs on the safe side (Hoeffding 1956) below the mean.

    Example:
        >>> round(binomial_p_value(0, 100, 0.03), 4)  # 0.97 ** 100
        0.0476
    """
    return float(stats.binom.cdf(errors, count, level)) if count else 1.0


def hoeffding_bentkus_p_value(mean: float, count: int, level: float) -> float:
    """The same for losses between 0 and 1 with this mean.

    Source:
        Bates, Angelopoulos, Lei, Malik, Jordan, "Distribution-Free, Risk-Controlling Prediction Sets", 2021, section 3.

    Example:
        >>> hoeffding_bentkus_p_value(0.5, 100, 0.4)
        1.0
        >>> hoeffding_bentkus_p_value(0.2, 100, 0.4) < 1e-3
        True
    """
    if level >= 1:
        return 0.0  # no mean of such losses is above it
    if not count or mean >= level:
        return 1.0
    gap = 0.0
    for share, true in ((mean, level), (1 - mean, 1 - level)):
        gap += share * math.log(share / true) if share > 0 else 0.0
    bentkus = math.e * float(stats.binom.cdf(math.ceil(count * mean), count, level))
    return min(1.0, math.exp(-count * gap), bentkus)


def fewest_examples(level: float, confidence: float) -> int:
    """Examples without a single error from which a risk of `level` can be promised: below that, nothing can.

    Example:
        >>> fewest_examples(0.001, 0.9)
        2302
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-level))


def fixed_sequence(p_values: Iterable[float], confidence: float) -> int:
    """How many of the candidates, from the first on, can be promised.

    Example:
        >>> fixed_sequence([0.01, 0.08, 0.3, 0.001], confidence=0.9)
        2
    """
    promised = 0
    for p in p_values:
        if not p <= (1 - confidence) * (1 + 1e-12):  # 1 - 0.9 is a little less than 0.1
            break
        promised += 1
    return promised
