"""Mazes by depth-first search, a whole batch at a time.

A maze of size n has n x n rooms on a grid of (2n+1) x (2n+1) pixels: rooms at odd rows and columns, doors between
them, walls elsewhere. All mazes of a batch are carved in lockstep, one move of every search per pass, so that the cost
of numpy's calls is shared by the batch.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from homeostat.tasks.random_words import Words, random_below, random_events, random_words

Doors = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""Open doors: to the right `(batch, n, n-1)` and down `(batch, n-1, n)`."""

_BACK = 4


def _choices() -> NDArray[np.int8]:
    """For each of 24 orders of the four directions and each set of visited neighbours: where to go, or back."""
    table = np.full((24, 16), _BACK, dtype=np.int8)
    for order, directions in enumerate(itertools.permutations(range(4))):
        for visited in range(16):
            # np.packbits puts the first of four flags into the highest bit.
            free = [direction for direction in directions if not visited >> (3 - direction) & 1]
            if free:
                table[order, visited] = free[0]
    return table.reshape(-1)


_CHOICES = _choices()


def carve(keys: Words, size: int) -> Doors:
    """Perfect mazes: spanning trees of the rooms by randomised depth-first search from a random root.

    Each room draws one order of its four neighbours; the search takes the first that is unvisited. This gives the same
    distribution as a fresh choice at each visit, because what remains of a shuffled list is still shuffled.
    Uses the random words 0 to `size**2` of each key.

    Example:
        >>> from homeostat.tasks.random_words import candidate_keys
        >>> right, down = carve(candidate_keys(0, 3, seed=0, size=5, split=0), 5)
        >>> (right.sum((1, 2)) + down.sum((1, 2))).tolist()  # a tree of 25 rooms
        [24, 24, 24]
    """
    batch, rooms, width = len(keys), size * size, size + 2
    words = random_words(keys, rooms + 1)
    inside = (slice(None), slice(1, -1), slice(1, -1))
    # A frame of visited rooms around the maze keeps the search inside without any test for borders.
    visited = np.ones((batch, width, width), dtype=np.bool_)
    visited[inside] = False
    orders = np.zeros((batch, width, width), dtype=np.int16)
    orders[inside] = (random_below(words[:, :rooms], 24) * 16).reshape(batch, size, size)
    base = np.arange(batch) * (width * width)
    root = random_below(words[:, rooms], rooms)
    here = base + (root // size + 1) * width + root % size + 1
    steps = np.array([-width, 1, width, -1, 0])
    parent = np.zeros(batch * width * width, dtype=np.int64)
    parent[here] = here
    flat_visited, flat_orders = visited.reshape(-1), orders.reshape(-1)
    flat_visited[here] = True
    for _ in range(2 * (rooms - 1)):
        around = np.packbits(flat_visited[here[:, None] + steps[:4]], axis=1)[:, 0] >> 4
        direction = _CHOICES[flat_orders[here] + around]
        forward = direction != _BACK
        ahead = here + steps[direction]
        # Searches that go back write into a corner of the frame, where it does no harm.
        mark = np.where(forward, ahead, base)
        back = parent[here]
        parent[mark] = here
        flat_visited[mark] = True
        here = np.where(forward, ahead, back)
    towards = (parent - np.arange(len(parent))).reshape(batch, width, width)[inside]
    right = (towards[:, :, :-1] == 1) | (towards[:, :, 1:] == -1)
    down = (towards[:, :-1] == width) | (towards[:, 1:] == -width)
    return right, down


def percolate(doors: Doors, keys: Words, probability: float, *, first: int) -> Doors:
    """Open each wall that is left between neighbouring rooms with the given probability: the maze gains loops.

    Uses the random words from number `first` on, one for each pair of neighbouring rooms.

    Example:
        >>> from homeostat.tasks.random_words import candidate_keys
        >>> keys = candidate_keys(0, 1, seed=0, size=5, split=0)
        >>> right, down = percolate(carve(keys, 5), keys, 1.0, first=26)
        >>> bool(right.all() and down.all())
        True
    """
    right, down = doors
    count = right[0].size
    opened = random_events(random_words(keys, count + down[0].size, first=first), probability)
    return right | opened[:, :count].reshape(right.shape), down | opened[:, count:].reshape(down.shape)


def draw_free(doors: Doors) -> NDArray[np.bool_]:
    """Doors as pixels: `(batch, 2n+1, 2n+1)`, True where one can stand.

    Example:
        >>> free = draw_free((np.array([[[True], [True]]]), np.array([[[True, False]]])))
        >>> print("\\n".join("".join(".#"[not pixel] for pixel in row) for row in free[0]))
        #####
        #...#
        #.###
        #...#
        #####
    """
    right, down = doors
    batch, size = len(right), right.shape[1]
    free = np.zeros((batch, 2 * size + 1, 2 * size + 1), dtype=np.bool_)
    free[:, 1::2, 1::2] = True
    free[:, 1::2, 2:-1:2] = right
    free[:, 2:-1:2, 1::2] = down
    return free


def dead_ends(doors: Doors) -> NDArray[np.bool_]:
    """`(batch, n*n)`: rooms with a single door.

    Example:
        >>> dead_ends((np.array([[[True], [True]]]), np.array([[[True, False]]])))
        array([[False,  True, False,  True]])
    """
    right, down = doors
    count = np.zeros((len(right), right.shape[1], right.shape[1]), dtype=np.int8)
    for part in (count[:, :, :-1], count[:, :, 1:]):
        part += right
    for part in (count[:, :-1], count[:, 1:]):
        part += down
    return (count == 1).reshape(len(right), -1)


def draw_ends(
    keys: Words, eligible: NDArray[np.bool_], pairs: int, *, first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Proposals of a start and a goal: two `(batch, pairs)` arrays of room numbers, start never equal to goal.

    Args:
        eligible: `(batch, rooms)`, rooms where a start may lie, at least one in each row; the goal may be any other.
        first: uses the random words from this number on, two for each pair.

    Example:
        >>> from homeostat.tasks.random_words import candidate_keys
        >>> keys = candidate_keys(0, 1, seed=0, size=2, split=0)
        >>> start, goal = draw_ends(keys, np.array([[False, False, True, False]]), 8, first=0)
        >>> set(start[0].tolist()), sorted(set(goal[0].tolist()))
        ({2}, [0, 1, 3])
    """
    words = random_words(keys, 2 * pairs, first=first)
    rooms = eligible.shape[1]
    chosen = random_below(words[:, :pairs], eligible.sum(1, keepdims=True))
    start = np.take_along_axis(np.argsort(~eligible, axis=1, kind="stable"), chosen, axis=1)
    goal = (start + 1 + random_below(words[:, pairs:], rooms - 1)) % rooms
    return start, goal


def room_pixels(rooms: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Room numbers as flat pixel numbers on the grid of (2n+1) x (2n+1) pixels.

    Example:
        >>> room_pixels(np.array([0, 3]), 2).tolist()
        [6, 18]
    """
    return (2 * (rooms // size) + 1) * (2 * size + 1) + 2 * (rooms % size) + 1
