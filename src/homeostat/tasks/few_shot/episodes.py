"""Episodes: which classes make a few-shot instance, which of their pictures, and in which order.

All of it is a pure function of the key of the instance, so that an episode does not depend on those drawn with it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from homeostat.checks import is_whole
from homeostat.errors import InputError
from homeostat.tasks.random_words import Words, fold, random_words


def streams(keys: Words, count: int) -> list[Words]:
    """`count` independent keys for each key: one for each thing that an episode draws.

    Example:
        >>> first, second = streams(np.array([3, 4], dtype=np.uint64), 2)
        >>> bool((first != second).all())
        True
    """
    return [fold(keys, np.array([number], dtype=np.uint64)) for number in range(count)]


def draw_classes(keys: Words, classes: int, ways: int) -> NDArray[np.int64]:
    """`(episodes, ways)` different classes out of 0 to `classes` - 1; the place of a class is its label.

    Every ordered choice is equally likely, so that a class has each label as often as any other: nothing can be learned
    from a label beyond the pictures that carry it in the same episode.

    Raises:
        InputError: fewer classes than `ways`.

    Example:
        >>> draw_classes(np.array([3, 4], dtype=np.uint64), 5, 3)
        array([[3, 0, 4],
               [4, 0, 3]])
    """
    if classes < ways:
        raise InputError(f"{ways} ways need {ways} classes, there are only {classes}")
    return random_words(keys, classes).argsort(axis=1, kind="stable")[:, :ways]


def draw_pictures(keys: Words, there: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`(episodes, ways, count)` different pictures of each class, out of 0 to `there` - 1.

    Args:
        there: `(episodes, ways)`, how many pictures the class has, `count` at least.

    Example:
        >>> there = np.array([[4, 2]])
        >>> draw_pictures(np.array([3], dtype=np.uint64), there, 2)
        array([[[3, 0],
                [0, 1]]])
    """
    ways, most = there.shape[1], int(there.max())
    words = random_words(keys, ways * most).reshape(-1, ways, most)
    words[np.broadcast_to(np.arange(most), words.shape) >= there[..., None]] = np.uint64(2**64 - 1)
    # Stable, so that a picture that is there comes before the places beyond the last one.
    return words.argsort(axis=2, kind="stable")[..., :count]


def shuffled(keys: Words, ways: int, each: int) -> NDArray[np.int64]:
    """`(episodes, ways * each)` order of an episode's pictures, so that no place says anything about a label.

    Picture number p is of the class `p // each`.

    Example:
        >>> shuffled(np.array([3], dtype=np.uint64), 2, 2)
        array([[3, 0, 2, 1]])
    """
    return random_words(keys, ways * each).argsort(axis=1, kind="stable")


def whole(value: Any) -> bool:
    """Whether an option is a whole number; a bool is none."""
    return is_whole(value)
