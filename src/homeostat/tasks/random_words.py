"""Random numbers as a pure function of a key and a counter.

Every candidate instance of a task owns a key, and its numbers depend on nothing else: not on how many instances are
drawn together, nor on the version of numpy. That is what makes samples reproducible and their beginnings stable.
The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, variant 13 of Stafford).
"""

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import InputError

Words = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def mix(words: Words) -> Words:
    """A bijection of 64-bit words in which every input bit flips every output bit about half the time.

    Args:
        words: an array of any shape with at least one dimension (numpy warns when a scalar overflows).

    Example:
        >>> [hex(word) for word in mix(np.array([1, 2], dtype=np.uint64))]
        ['0x5692161d100b05e5', '0xdbd238973a2b148a']
    """
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


def fold(state: Words, word: Words) -> Words:
    """Absorb one more word into each state; both broadcast.

    Example:
        >>> state = np.zeros(1, dtype=np.uint64)
        >>> bool(fold(state, state) == fold(state, state + np.uint64(1)))
        False
    """
    return mix((state ^ word) + _GAMMA)


def candidate_keys(first: int, count: int, *, seed: int, size: int, split: int) -> Words:
    """`(count,)` keys of the candidates `first`, `first + 1`, ... of one stream.

    Raises:
        InputError: a seed outside 0 to 2**63 - 1.

    Example:
        >>> both = candidate_keys(0, 2, seed=7, size=32, split=0)
        >>> bool(both[1] == candidate_keys(1, 1, seed=7, size=32, split=0)[0])
        True
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {seed} is out of range: 0 to 2**63 - 1")
    state = np.zeros(1, dtype=np.uint64)
    for part in (seed, size, split):
        state = fold(state, np.array([part], dtype=np.uint64))
    return fold(state, np.arange(first, first + count, dtype=np.uint64))


def random_words(keys: Words, count: int, *, first: int = 0) -> Words:
    """`(len(keys), count)` random words: those numbered `first`, `first + 1`, ... of every key.

    Example:
        >>> keys = candidate_keys(0, 3, seed=0, size=5, split=0)
        >>> bool((random_words(keys, 4)[:, 2:] == random_words(keys, 2, first=2)).all())
        True
    """
    counters = np.arange(first + 1, first + count + 1, dtype=np.uint64) * _GAMMA
    return mix(keys[:, None] + counters)


def random_below(words: Words, bound: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Integers from 0 to `bound - 1` from the high halves of `words`; uneven by less than `bound` / 2**32.

    Example:
        >>> bool((random_below(random_words(candidate_keys(0, 9, seed=0, size=5, split=0), 9), 24) < 24).all())
        True
    """
    return (((words >> np.uint64(32)) * np.asarray(bound, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)


def random_events(words: Words, probability: float) -> NDArray[np.bool_]:
    """True with the given probability, independently for each word; 0 gives never and 1 always.

    Example:
        >>> random_events(np.array([0, 2**64 - 1], dtype=np.uint64), 0.5)
        array([ True, False])
    """
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53 < probability
