"""Distances, traced paths and the checker against a plain search and an enumeration of every shortest path."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from homeostat.tasks.maze_paths import distances, is_shortest_path, path_ends, trace

GRIDS = arrays.arrays(
    np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.sampled_from([True, True, False])
)


def search(free: np.ndarray, source: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Breadth-first search with a queue."""
    found, queue = {source: 0}, deque([source])
    while queue:
        row, column = queue.popleft()
        for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= near[0] < free.shape[0] and 0 <= near[1] < free.shape[1]
            if inside and free[near] and near not in found:
                found[near] = found[row, column] + 1
                queue.append(near)
    return found


def every_shortest_path(free: np.ndarray, start: tuple[int, int], goal: tuple[int, int]) -> list[frozenset]:
    """All shortest paths as sets of pixels, by walking back from the goal in every possible way."""
    found = search(free, start)
    paths = [[goal]]
    for _ in range(found[goal]):
        paths = [
            [*path, near]
            for path in paths
            for near, distance in found.items()
            if distance == found[path[-1]] - 1 and abs(near[0] - path[-1][0]) + abs(near[1] - path[-1][1]) == 1
        ]
    return [frozenset(path) for path in paths]


def as_mask(pixels, shape) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(zip(*pixels, strict=True))] = True
    return mask


def flat(pixel: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    return np.array([np.ravel_multi_index(pixel, shape)])


@given(GRIDS, st.data())
@settings(max_examples=200, deadline=None)
def test_distances_and_paths_agree_with_a_plain_search(free, data):
    pixels = list(zip(*np.nonzero(free), strict=True))
    if not pixels:
        return
    start = data.draw(st.sampled_from(pixels))
    expected = np.full(free.shape, -1)
    found = search(free, start)
    for pixel, distance in found.items():
        expected[pixel] = distance
    distance = distances(free[None], flat(start, free.shape))
    assert (distance[0] == expected).all()

    goal = data.draw(st.sampled_from(sorted(found)))
    paths = every_shortest_path(free, start, goal)
    path, unique = trace(distance, flat(goal, free.shape))
    assert frozenset(zip(*np.nonzero(path[0]), strict=True)) in paths
    assert unique[0] == (len(paths) == 1)


def test_rows_of_a_batch_do_not_touch():
    random = np.random.default_rng(0)
    free = random.random((40, 7, 5)) < 0.7
    source = random.integers(0, 35, 40)
    free.reshape(40, -1)[np.arange(40), source] = True
    together = distances(free, source)
    for number in range(40):
        assert (together[number] == distances(free[number : number + 1], source[number : number + 1])[0]).all()


@given(GRIDS, st.data())
@settings(max_examples=150, deadline=None)
def test_checker_accepts_each_shortest_path_and_nothing_else(free, data):
    pixels = list(zip(*np.nonzero(free), strict=True))
    if not pixels:
        return
    start = data.draw(st.sampled_from(pixels))
    others = sorted(set(search(free, start)) - {start})
    if not others:
        return
    goal = data.draw(st.sampled_from(others))
    paths = every_shortest_path(free, start, goal)
    reference = as_mask(data.draw(st.sampled_from(paths)), free.shape)
    ends = {int(end[0]) for end in path_ends(reference[None])}
    assert ends == {int(flat(start, free.shape)[0]), int(flat(goal, free.shape)[0])}

    for path in paths:
        assert is_shortest_path(as_mask(path, free.shape)[None], reference[None])[0]
    # Any other set of free pixels must be refused: a random one, and each path with one pixel more, less, or moved.
    candidates = [frozenset(data.draw(st.sets(st.sampled_from(pixels))))]
    for path in paths[:3]:
        candidates += [path ^ {pixel} for pixel in pixels]
        candidates += [path - {gone} | {new} for gone in path for new in pixels]
    for candidate in candidates:
        marked = as_mask(candidate, free.shape) if candidate else np.zeros(free.shape, dtype=bool)
        assert is_shortest_path(marked[None], reference[None])[0] == (candidate in paths)


@pytest.mark.parametrize(
    ("drawing", "right"),
    [
        ("***.. ..*.. ..***", True),
        ("*.... *.... *****", True),
        ("***** *...* *****", False),
        ("**... .*... .****", True),
        ("***.. ..... ..***", False),
        ("***.. ..**. ..***", False),
        ("..... ..... .....", False),
        (".**** ....* ....*", False),
    ],
)
def test_checker_on_an_open_field(drawing, right):
    marked = np.array([[letter == "*" for letter in row] for row in drawing.split()])
    reference = np.zeros((3, 5), dtype=bool)
    reference[0] = reference[:, 4] = True
    assert is_shortest_path(marked[None], reference[None])[0] == right
