"""Train and test instances that cannot meet.

Which split an instance belongs to is a property of the instance: a hash of its canonical bytes, modulo 8, is 0 for
`"test"` and anything else for `"train"`. Sampling draws candidates and keeps those of the split that was asked for, so
no seed, size or option can bring a test instance into training.

The hash is fixed for ever. To change it would silently move instances of existing checkpoints' training data into
their test data: treat a change as a change of the checkpoint format.
"""

from collections.abc import Callable
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import InputError
from homeostat.tasks.base import Split
from homeostat.tasks.random_words import Words, candidate_keys, fold

TEST_ONE_IN = 8
"""One instance in this many belongs to the test split."""

_PATIENCE = 2_048
"""Candidates in a row without a single instance of the split, after which it is called empty.

An instance of the smallest sizes comes once in a hundred candidates or more often, so this misses none.
"""


def instance_hash(bits: NDArray[np.bool_], *extra: NDArray[np.int64]) -> Words:
    """Hash instances for the split.

    Args:
        bits: `(batch, bits)`, the instance itself, without its solution.
        extra: integers that belong to the instance, each `(batch,)` or `(batch, k)` for k variants of each row.

    Returns:
        `(batch,)` uint64, or `(batch, k)`.

    Example:
        >>> one = np.array([[True, False, True]])
        >>> bool(instance_hash(one) == instance_hash(~one))
        False
    """
    batch, length = bits.shape
    packed = np.packbits(bits, axis=1, bitorder="little")
    padded = np.zeros((batch, -(-length // 64) * 8), dtype=np.uint8)
    padded[:, : packed.shape[1]] = packed
    state = np.full(batch, length, dtype=np.uint64)
    # Little-endian on every machine, so that the hash of an instance never depends on where it was computed.
    for word in padded.view("<u8").astype(np.uint64).T:
        state = fold(state, word)
    for number in extra:
        word = number.astype(np.uint64)
        state = fold(state[:, None] if word.ndim > state.ndim else state, word)
    return state


def in_split(hashes: Words, split: Split) -> NDArray[np.bool_]:
    """Which of the hashed instances belong to `split`.

    Example:
        >>> in_split(np.array([0, 1, 8], dtype=np.uint64), "test")
        array([ True, False,  True])
    """
    test = hashes % np.uint64(TEST_ONE_IN) == 0
    return test if split == "test" else ~test


def check_request(split: Split, count: int) -> None:
    """Refuse what no task can give.

    Raises:
        InputError: an unknown split, or a count below 1.
    """
    if split not in get_args(Split):
        raise InputError(f"unknown split {split!r}: it is one of {', '.join(get_args(Split))}")
    if count < 1:
        raise InputError(f"count {count} is too small: at least 1")


def collect(
    draw: Callable[[Words], tuple[np.ndarray, ...]],
    count: int,
    *,
    size: int,
    split: Split,
    seed: int,
    rate: float,
    most: int,
    what: str,
) -> tuple[np.ndarray, ...]:
    """Draw candidates until `count` were kept.

    Args:
        draw: from `(candidates,)` keys to the kept instances, in order, as arrays that are batch first. Whether a
            candidate is kept may depend on its key alone; then the first instances never depend on `count`.
        rate: about the share of candidates that `draw` keeps.
        most: candidates that one call of `draw` may get, for the sake of memory.
        what: the instances in words, for the error.

    Raises:
        InputError: an unknown split, a count below 1, or no instance at all in this split.

    Example:
        >>> draw = lambda keys: (keys[keys % np.uint64(2) == 0],)
        >>> (few,) = collect(draw, 2, size=1, split="train", seed=0, rate=0.5, most=64, what="even numbers")
        >>> (more,) = collect(draw, 9, size=1, split="train", seed=0, rate=0.5, most=8, what="even numbers")
        >>> bool((more[:2] == few).all())
        True
    """
    check_request(split, count)
    kept: list[tuple[np.ndarray, ...]] = []
    have = tried = barren = 0
    while have < count:
        chunk = max(1, min(most, int((count - have) / rate * 1.1) + 16))
        keys = candidate_keys(tried, chunk, seed=seed, size=size, split=get_args(Split).index(split))
        part = draw(keys)
        tried += chunk
        if len(part[0]):
            kept.append(part)
            have += len(part[0])
            barren = 0
        else:
            barren += chunk
            if barren >= _PATIENCE:
                raise InputError(
                    f"no {what} in the {split} split: {barren:,} candidates gave none; choose a larger size"
                )
    return tuple(np.concatenate(column)[:count] for column in zip(*kept, strict=True))
