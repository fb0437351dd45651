"""The batch solver against a plain recursive one, its rating, and grids and puzzles made with it."""

from functools import cache
from itertools import permutations

import numpy as np
import pytest

from homeostat.tasks.random_words import candidate_keys
from homeostat.tasks.sudoku_generation import add_givens, minimal_puzzles, solved_grids
from homeostat.tasks.sudoku_geometry import BOXES
from homeostat.tasks.sudoku_solver import masks_of, rate, search

# Published by Arto Inkala in 2012 as an especially hard one.
HARD = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."
EASY = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


def digits(text: str) -> np.ndarray:
    return np.array([[int(c) for c in text.replace(".", "0")]], dtype=np.uint8)


def allowed(grid: list[int], cell: int, digit: int, side: int) -> bool:
    """Whether a digit may stand in a cell, said in rows, columns and boxes without the package's own units."""
    height, width = BOXES[side]
    row, column = divmod(cell, side)
    for other, there in enumerate(grid):
        r, c = divmod(other, side)
        same_box = (r // height, c // width) == (row // height, column // width)
        if there == digit and other != cell and (r == row or c == column or same_box):
            return False
    return True


def all_solutions(grid: list[int], side: int, most: int = 1000) -> list[tuple[int, ...]]:
    if 0 not in grid:
        return [tuple(grid)]
    cell, found = grid.index(0), []
    for digit in range(1, side + 1):
        if allowed(grid, cell, digit, side) and len(found) < most:
            found += all_solutions([*grid[:cell], digit, *grid[cell + 1 :]], side, most - len(found))
    return found


@cache
def puzzles(side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    keys = candidate_keys(0, count, seed=3, size=side, split=0)
    grids = solved_grids(keys, side)
    return minimal_puzzles(keys, grids, side), grids


def is_solved(grid: np.ndarray, side: int) -> bool:
    cells = grid.tolist()
    return all(1 <= digit <= side and allowed(cells, cell, digit, side) for cell, digit in enumerate(cells))


def test_all_grids_of_side_four():
    found = all_solutions([0] * 16, 4)
    assert len(found) == 288
    counted = search(masks_of(np.zeros((1, 16), dtype=np.uint8), 4), 4, solutions=1000)
    assert counted.count.tolist() == [288]


@pytest.mark.parametrize("side", [4, 6])
def test_the_number_of_solutions(side):
    # Puzzles with some givens taken out have none, one or several solutions; so do ones with a given changed.
    base, grids = puzzles(side, 12)
    rng = np.random.default_rng(side)
    cases = add_givens(candidate_keys(0, 12, seed=9, size=side, split=0), base, grids, 6 * side // 2 - 2)
    cases[::3] = np.where(rng.random(cases[::3].shape) < 0.1, 0, cases[::3])
    for row in range(1, 12, 3):
        cell = np.flatnonzero(cases[row])[0]
        cases[row, cell] = cases[row, cell] % side + 1
    expected = [all_solutions(case.tolist(), side, most=50) for case in cases]
    found = search(masks_of(cases, side), side, solutions=50)
    assert found.count.tolist() == [len(solutions) for solutions in expected]
    assert {0, 1} <= set(found.count.tolist())
    assert side == 4 or found.count.max() > 1
    for solution, all_of_them in zip(found.solutions, expected, strict=True):
        assert tuple(solution.tolist()) in all_of_them if all_of_them else not solution.any()


@pytest.mark.parametrize("side", [4, 6, 9])
def test_puzzles_are_unique_and_minimal(side):
    base, grids = puzzles(side, 12)
    assert all(is_solved(grid, side) for grid in grids)
    found = search(masks_of(base, side), side)
    assert (found.count == 1).all()
    assert (found.solutions == grids).all()
    for puzzle in base[:3]:
        cells = np.flatnonzero(puzzle)
        without = np.repeat(puzzle[None], len(cells), axis=0)
        without[np.arange(len(cells)), cells] = 0
        assert (search(masks_of(without, side), side).count == 2).all()


def test_a_puzzle_does_not_depend_on_its_batch():
    keys = candidate_keys(0, 6, seed=1, size=6, split=0)
    together, alone = solved_grids(keys, 6), [solved_grids(keys[row : row + 1], 6)[0] for row in range(6)]
    assert (together == alone).all()
    alone = [minimal_puzzles(keys[row : row + 1], together[row : row + 1], 6)[0] for row in range(6)]
    assert (minimal_puzzles(keys, together, 6) == alone).all()


@pytest.mark.parametrize(("text", "least", "most"), [(EASY, 0, 0), (HARD, 10, 10_000)])
def test_known_puzzles(text, least, most):
    found = search(masks_of(digits(text), 9), 9)
    assert found.count.tolist() == [1]
    assert is_solved(found.solutions[0], 9)
    assert least <= rate(digits(text), 9)[0] <= most


def test_the_rating_does_not_depend_on_the_names_of_the_digits():
    ratings = set()
    for order in list(permutations(range(1, 10)))[:: 362880 // 5]:
        ratings.add(int(rate(np.array([0, *order], dtype=np.uint8)[digits(HARD)], 9)[0]))
    assert len(ratings) == 1


def test_a_search_that_is_given_up_says_so():
    found = search(masks_of(digits(HARD), 9), 9, most_guesses=3)
    assert (found.complete.tolist(), found.guesses.tolist()) == ([False], [3])
    assert search(masks_of(digits(HARD), 9), 9).complete.all()


def test_added_givens_come_from_the_solution():
    base, grids = puzzles(6, 12)
    keys = candidate_keys(0, 12, seed=2, size=6, split=0)
    more = add_givens(keys, base, grids, 20)
    assert ((more > 0).sum(1) == 20).all()
    assert (more[base > 0] == base[base > 0]).all()
    assert (more[more > 0] == grids[more > 0]).all()
    assert (add_givens(keys, base, grids, 3) == base).all()
