"""Carved mazes are spanning trees, loops come at the rate asked for, and roots, starts and goals lie anywhere."""

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from homeostat.tasks.maze_generation import carve, dead_ends, draw_ends, draw_free, percolate, room_pixels
from homeostat.tasks.random_words import candidate_keys


def keys(count: int, size: int, seed: int = 0):
    return candidate_keys(0, count, seed=seed, size=size, split=0)


def edges(right: np.ndarray, down: np.ndarray) -> np.ndarray:
    """`(edges, 2)` room numbers of one maze, from its doors."""
    size = len(right)
    number = np.arange(size * size).reshape(size, size)
    across = np.stack([number[:, :-1][right], number[:, 1:][right]], axis=1)
    along = np.stack([number[:-1][down], number[1:][down]], axis=1)
    return np.concatenate([across, along])


@pytest.mark.parametrize("size", [2, 3, 7, 12])
def test_perfect_mazes_are_spanning_trees(size):
    rooms = size * size
    for right, down in zip(*carve(keys(50, size), size), strict=True):
        pairs = edges(right, down)
        assert len(pairs) == rooms - 1
        graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(rooms, rooms))
        assert connected_components(graph, directed=False)[0] == 1


def test_a_maze_depends_on_its_own_key_only():
    all_keys = keys(40, 6)
    together, alone = carve(all_keys, 6), carve(all_keys[17:18], 6)
    assert (together[0][17] == alone[0][0]).all()
    assert (together[1][17] == alone[1][0]).all()


def test_every_tree_of_four_rooms_comes_equally_often():
    right, down = carve(keys(4_000, 2), 2)
    codes = np.concatenate([right.reshape(-1, 2), down.reshape(-1, 2)], axis=1) @ np.array([1, 2, 4, 8])
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 4
    assert stats.chisquare(counts).pvalue > 1e-4


def test_depth_first_search_prefers_no_direction():
    right, down = carve(keys(3_000, 5), 5)
    # Reflections and transposition map the search onto itself, so doors at mirrored places are equally frequent.
    share, other = right.mean(0), down.mean(0).T
    for mirrored in (share[::-1], share[:, ::-1], other):
        assert np.abs(share - mirrored).max() < 6 * 0.5 * (2 / 3_000) ** 0.5


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_percolation_opens_its_share_of_the_walls_that_are_left(probability):
    size, count = 8, 300
    some = keys(count, size)
    before = carve(some, size)
    after = percolate(before, some, probability, first=size * size + 1)
    for old, new in zip(before, after, strict=True):
        assert (new | ~old).all()
        closed = (~old).sum()
        share = (new & ~old).sum() / closed
        assert abs(share - probability) < 5 * (probability * (1 - probability) / closed) ** 0.5


def test_pixels_agree_with_doors():
    right, down = carve(keys(1, 4), 4)
    free = draw_free((right, down))[0]
    assert free.shape == (9, 9)
    assert not np.concatenate([free[0], free[-1], free[:, 0], free[:, -1]]).any()
    assert not free[::2, ::2].any()
    assert free.reshape(-1)[room_pixels(np.arange(16), 4)].all()
    for one, other in edges(right[0], down[0]):
        ends = room_pixels(np.array([one, other]), 4)
        assert free.reshape(-1)[ends.sum() // 2]
    assert free.sum() == 16 + 15


def test_dead_ends_have_one_free_neighbour():
    right, down = doors = carve(keys(20, 5), 5)
    for number, pixels in enumerate(draw_free(doors)):
        around = pixels[:-2, 1:-1].astype(int) + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
        assert ((around[::2, ::2] == 1).reshape(-1) == dead_ends((right, down))[number]).all()


def test_starts_and_goals_are_even_and_never_equal():
    eligible = np.ones((500, 9), dtype=bool)
    start, goal = draw_ends(keys(500, 3), eligible, 40, first=0)
    assert (start != goal).all()
    counts = np.bincount((start * 9 + goal).reshape(-1), minlength=81).reshape(9, 9)
    assert stats.chisquare(counts[~np.eye(9, dtype=bool)]).pvalue > 1e-4


def test_starts_lie_in_eligible_rooms():
    eligible = np.zeros((300, 9), dtype=bool)
    eligible[:, [2, 7]] = True
    start, goal = draw_ends(keys(300, 3), eligible, 4, first=0)
    assert set(np.unique(start)) == {2, 7}
    assert set(np.unique(goal)) == set(range(9))
