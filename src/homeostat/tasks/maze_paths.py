"""Shortest paths on pixels: distances, one path and whether it is the only one, and a checker for any shortest path.

Two pixels are neighbours when they share a side. All functions work on a batch and touch each free pixel about once.
"""

import numpy as np
from numpy.typing import NDArray


def _framed(free: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64], int]:
    """A frame of walls around each grid, so that neighbours are plain offsets in one flat array.

    Returns:
        The flat array, each grid's offset in it, and the width of a framed row.
    """
    batch, height, width = free.shape
    framed = np.zeros((batch, height + 2, width + 2), dtype=np.bool_)
    framed[:, 1:-1, 1:-1] = free
    return framed.reshape(-1), np.arange(batch) * ((height + 2) * (width + 2)), width + 2


def _enter(pixels: NDArray[np.int64], base: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Flat pixel numbers of each grid as positions in the framed flat array."""
    inner = width - 2
    return base + (pixels // inner + 1) * width + pixels % inner + 1


def distances(free: NDArray[np.bool_], source: NDArray[np.int64]) -> NDArray[np.int32]:
    """Breadth-first distance of every pixel from a source, in moves; -1 for walls and what cannot be reached.

    Args:
        free: `(batch, height, width)`, True where one can stand.
        source: `(batch,)` flat pixel numbers.

    Example:
        >>> distances(np.array([[[True, True, False, True]]]), np.array([0]))[0, 0].tolist()
        [0, 1, -1, -1]
    """
    batch, height, _ = free.shape
    unreached, base, width = _framed(free)
    offsets = np.array([-width, 1, width, -1])
    found = np.full(len(unreached), -1, dtype=np.int32)
    owner = np.zeros(len(unreached), dtype=np.int64)
    front = _enter(source, base, width)
    wave = 0
    while len(front):
        found[front] = wave
        unreached[front] = False
        near = (front[:, None] + offsets).reshape(-1)
        near = near[unreached[near]]
        # A pixel reached from two sides stays once: the one that wrote last.
        number = np.arange(len(near))
        owner[near] = number
        front = near[owner[near] == number]
        wave += 1
    return found.reshape(batch, height + 2, width)[:, 1:-1, 1:-1]


def trace(distance: NDArray[np.int32], goal: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Follow falling distances from the goal back to the source.

    Where several neighbours are nearer, the first of up, right, down, left is taken, so the path is a function of the
    maze alone. If no pixel on the way had such a choice, the shortest path is the only one.

    Args:
        distance: `(batch, height, width)` from `distances`.
        goal: `(batch,)` flat pixel numbers, each reachable.

    Returns:
        The path `(batch, height, width)` with both ends, and `(batch,)` whether it is the only shortest one.

    Example:
        >>> open_square = distances(np.ones((1, 2, 2), dtype=bool), np.array([0]))
        >>> path, unique = trace(open_square, np.array([3]))
        >>> path[0].astype(int).tolist(), bool(unique[0])
        ([[1, 1], [0, 1]], False)
    """
    batch, height, columns = distance.shape
    width = columns + 2
    framed = np.full((batch, height + 2, width), -1, dtype=np.int32)
    framed[:, 1:-1, 1:-1] = distance
    flat = framed.reshape(-1)
    base = np.arange(batch) * ((height + 2) * width)
    offsets = np.array([-width, 1, width, -1])
    path = np.zeros(len(flat), dtype=np.bool_)
    unique = np.ones(batch, dtype=np.bool_)
    here = _enter(goal, base, width)
    rows = np.arange(batch)
    path[here] = True
    while True:
        going = flat[here] > 0
        here, rows = here[going], rows[going]
        if not len(here):
            break
        near = here[:, None] + offsets
        nearer = flat[near] == flat[here][:, None] - 1
        unique[rows[nearer.sum(1) > 1]] = False
        here = near[np.arange(len(near)), nearer.argmax(1)]
        path[here] = True
    return path.reshape(batch, height + 2, width)[:, 1:-1, 1:-1], unique


def path_ends(path: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both ends of shortest paths, as `(batch,)` flat pixel numbers: the pixels with one neighbour on the path.

    Example:
        >>> path_ends(np.array([[[True, True], [False, True]]]))
        (array([0]), array([3]))
    """
    flat, _, width = _framed(path)
    near = np.zeros(len(flat), dtype=np.int8)
    positions = np.flatnonzero(flat)
    for offset in (-width, 1, width, -1):
        near[positions] += flat[positions + offset]
    batch, height, _ = path.shape
    ends = (flat & (near == 1)).reshape(batch, height + 2, width)[:, 1:-1, 1:-1].reshape(batch, -1)
    return ends.argmax(1), ends.shape[1] - 1 - ends[:, ::-1].argmax(1)


def is_shortest_path(marked: NDArray[np.bool_], reference: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the marked pixels are exactly a shortest path between the ends of a known shortest path.

    They are when they are as many as the reference has, and within them alone the ends lie as far apart as on the
    reference: then nothing is left over for a branch or a detour.

    Args:
        marked: `(batch, height, width)`, corridors only.
        reference: `(batch, height, width)`, one shortest path of each maze, of two pixels at least.

    Example:
        >>> one = np.array([[[True, True], [False, True]]])
        >>> other = np.array([[[True, False], [True, True]]])
        >>> bool(is_shortest_path(other, one)[0]), bool(is_shortest_path(one | other, one)[0])
        (True, False)
    """
    batch = len(marked)
    start, goal = path_ends(reference)
    length = reference.reshape(batch, -1).sum(1)
    flat = marked.reshape(batch, -1)
    rows = np.arange(batch)
    right = (flat.sum(1) == length) & flat[rows, start] & flat[rows, goal]
    some = np.flatnonzero(right)
    if len(some):
        within = distances(marked[some], start[some]).reshape(len(some), -1)
        right[some] = within[np.arange(len(some)), goal[some]] == length[some] - 1
    return right
