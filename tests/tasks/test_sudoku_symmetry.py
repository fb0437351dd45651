"""Symmetric copies and the hash of the split, against every symmetry written out."""

from itertools import permutations, product

import numpy as np
import pytest

from homeostat.tasks.random_words import candidate_keys
from homeostat.tasks.sudoku_generation import minimal_puzzles, solved_grids
from homeostat.tasks.sudoku_geometry import BOXES
from homeostat.tasks.sudoku_solver import masks_of, search
from homeostat.tasks.sudoku_symmetry import grid_hash, symmetric_copies


def keys_of(side: int, count: int, seed: int = 0) -> np.ndarray:
    return candidate_keys(0, count, seed=seed, size=side, split=0)


def orders(side: int, thick: int) -> np.ndarray:
    """Every order of lines that keeps bands together."""
    bands = side // thick
    return np.array(
        [
            [band * thick + line for band, lines in zip(outer, inner, strict=True) for line in lines]
            for outer in permutations(range(bands))
            for inner in product(permutations(range(thick)), repeat=bands)
        ]
    )


def canonical(grid: np.ndarray, side: int) -> tuple[int, ...]:
    """The least symmetric copy, by trying all of them."""
    height, width = BOXES[side]
    square = grid.reshape(side, side).astype(int)
    copies = []
    for view in [square, square.T] if height == width else [square]:
        all_rows = view[orders(side, height)]
        copies.append(all_rows[:, :, orders(side, width)].transpose(0, 2, 1, 3).reshape(-1, side * side))
    every = np.concatenate(copies)
    names = np.zeros((len(every), side + 1), dtype=int)
    np.put_along_axis(names, every[:, :side], np.arange(1, side + 1)[None], 1)
    every = np.take_along_axis(names, every, 1)
    return tuple(every[np.lexsort(every.T[::-1])[0]].tolist())


def test_the_numbers_of_symmetries():
    assert [len(orders(4, 2)), len(orders(6, 2)), len(orders(6, 3))] == [8, 48, 72]


@pytest.mark.parametrize("side", [4, 6, 9])
def test_copies_are_sudokus_with_the_copied_solution(side):
    grids = solved_grids(keys_of(side, 20), side)
    puzzles = minimal_puzzles(keys_of(side, 20), grids, side)
    more_puzzles, more_grids = symmetric_copies(keys_of(side, 20, seed=5), side, puzzles, grids)
    assert ((more_puzzles > 0).sum(1) == (puzzles > 0).sum(1)).all()
    found = search(masks_of(more_puzzles, side), side)
    assert (found.count == 1).all()
    assert (found.solutions == more_grids).all()
    assert (more_grids != grids).any(1).mean() > 0.8


def test_copies_stay_in_their_class_and_reach_all_of_it():
    grid = solved_grids(keys_of(4, 1), 4)
    (copies,) = symmetric_copies(keys_of(4, 3000), 4, np.repeat(grid, 3000, axis=0))
    forms = {canonical(copy, 4) for copy in np.unique(copies, axis=0)}
    assert len(forms) == 1
    # The two classes of 4x4 grids have 96 and 192 members.
    assert len(np.unique(copies, axis=0)) in (96, 192)


@pytest.mark.parametrize("side", [6, 9])
def test_the_hash_is_the_same_for_symmetric_copies(side):
    grids = solved_grids(keys_of(side, 30), side)
    hashes = grid_hash(grids, side)
    for seed in range(5):
        (copies,) = symmetric_copies(keys_of(side, 30, seed=seed), side, grids)
        assert (grid_hash(copies, side) == hashes).all()
    assert len(np.unique(hashes)) > (10 if side == 6 else 29)


@pytest.mark.parametrize(("side", "height", "width"), [(6, 2, 3), (9, 3, 3)])
def test_each_generator_of_the_symmetries_leaves_the_hash(side, height, width):
    grid = solved_grids(keys_of(side, 1), side).reshape(side, side)
    line = np.arange(side)
    swapped, moved, columns, stacks = line.copy(), line.copy(), line.copy(), line.copy()
    swapped[:2] = [1, 0]
    moved[: 2 * height] = [*range(height, 2 * height), *range(height)]
    columns[:2] = [1, 0]
    stacks[: 2 * width] = [*range(width, 2 * width), *range(width)]
    copies = [grid[swapped], grid[moved], grid[:, columns], grid[:, stacks], np.array([0, 2, 1, *range(3, 10)])[grid]]
    copies += [grid.T] if height == width else []
    hashes = grid_hash(np.stack([grid, *copies]).reshape(-1, side * side).astype(np.uint8), side)
    assert len(set(hashes.tolist())) == 1
    # Not a symmetry: it breaks the boxes, and the hash knows the bands from other rows.
    broken = line.copy()
    broken[[0, height]] = [height, 0]
    assert grid_hash(grid[broken].reshape(1, -1).astype(np.uint8), side) != hashes[0]


def test_grids_of_one_class_share_a_hash():
    grids = solved_grids(keys_of(6, 60, seed=1), 6)
    hash_of: dict[tuple[int, ...], set[int]] = {}
    for grid, value in zip(grids, grid_hash(grids, 6).tolist(), strict=True):
        hash_of.setdefault(canonical(grid, 6), set()).add(value)
    assert max(map(len, hash_of.values())) == 1
    assert 15 < len(hash_of) <= 49


def test_the_hash_is_fixed_for_ever():
    six = np.array([int(c) for c in "123456456123231564564231312645645312"], dtype=np.uint8)[None]
    text = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
    nine = np.array([int(c) for c in text], dtype=np.uint8)[None]
    found = [hex(grid_hash(six, 6)[0]), hex(grid_hash(nine, 9)[0])]
    assert found == ["0x81ca475d8d3e1b0f", "0x30a226165683d359"]
