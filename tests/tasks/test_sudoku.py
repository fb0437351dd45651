"""Sampled sudokus: splits, options, codes, checkers and pictures."""

import numpy as np
import pytest
import torch

from homeostat.errors import InputError
from homeostat.tasks import Sudoku
from homeostat.tasks.sudoku_solver import masks_of, search
from homeostat.tasks.sudoku_symmetry import grid_hash

SOLVED = torch.tensor([[0, 2, 1, 3], [3, 1, 2, 0], [1, 3, 0, 2], [2, 0, 3, 1]])


def digits(inputs: torch.Tensor) -> np.ndarray:
    return inputs.argmax(1).flatten(1).numpy().astype(np.uint8)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("side", [4, 6])
def test_instances_and_their_labels(side, split):
    task = Sudoku(side=side)
    inputs, targets = task.sample(side, 40, split=split, seed=1)
    assert (inputs.shape, inputs.dtype) == ((40, side + 1, side, side), torch.float32)
    assert (targets.shape, targets.dtype) == ((40, side, side), torch.int64)
    assert ((inputs == 0) | (inputs == 1)).all()
    assert (inputs.sum(1) == 1).all()
    found = search(masks_of(digits(inputs), side), side)
    assert (found.count == 1).all()
    assert (found.solutions == targets.flatten(1).numpy() + 1).all()
    assert all(task.solves(*instance) for instance in zip(inputs, targets, strict=True))
    assert (task.in_test_split(inputs) == (split == "test")).all()
    few, _ = task.sample(side, 3, split=split, seed=1)
    assert torch.equal(few, inputs[:3])
    other, _ = task.sample(side, 3, split=split, seed=2)
    assert not torch.equal(few, other)


def test_no_grid_of_a_test_class_is_in_training():
    task = Sudoku(side=6)
    hashes = {
        split: {
            value
            for seed in range(3)
            for value in grid_hash(
                task.sample(6, 200, split=split, seed=seed).targets.flatten(1).numpy().astype(np.uint8) + 1, 6
            )
        }
        for split in ("train", "test")
    }
    assert not hashes["train"] & hashes["test"]
    assert len(hashes["test"]) > 3
    assert len(hashes["train"]) > 20


def test_all_sides_share_one_shape_unless_one_is_chosen():
    assert Sudoku().sizes == (4, 6, 9)
    assert Sudoku().sample(4, 2, split="train", seed=0).inputs.shape == (2, 10, 4, 4)
    one = Sudoku(side=6)
    assert (one.sizes, one.in_channels, one.classes) == ((6,), 7, 6)
    with pytest.raises(InputError, match=r"^size 9 is impossible for sudoku: it is 6$"):
        one.sample(9, 1, split="train", seed=0)
    with pytest.raises(InputError, match=r"^size 5 is impossible for sudoku: it is one of 4, 6, 9$"):
        Sudoku().sample(5, 1, split="train", seed=0)
    with pytest.raises(InputError, match="unknown split"):
        one.sample(6, 1, split="all", seed=0)


def test_givens_and_ratings_are_as_asked_for():
    inputs, _ = Sudoku(side=6, givens=18).sample(6, 30, split="train", seed=0)
    assert ((digits(inputs) > 0).sum(1) == 18).all()
    task = Sudoku(side=6, least_rating=1, most_rating=1)
    assert set(task.rate(task.sample(6, 20, split="train", seed=0).inputs)) == {1}
    with pytest.raises(InputError, match=r"^no sudoku of 4x4 rated 9 or more in the train split"):
        Sudoku(side=4, least_rating=9).sample(4, 1, split="train", seed=0)
    with pytest.raises(InputError, match=r"^no sudoku of 6x6 with 3 givens in the train split"):
        Sudoku(side=6, givens=3).sample(6, 1, split="train", seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 5}, "side 5 is impossible for sudoku: it is one of 4, 6, 9"),
        ({"givens": -1}, "givens -1 is not a whole number from 0 to 81"),
        ({"side": 4, "givens": 17}, "givens 17 is not a whole number from 0 to 16"),
        ({"least_rating": None}, "least_rating None is not a whole number from 0 on"),
        ({"most_rating": 1.5}, "most_rating 1.5 is not a whole number from 0 on"),
        ({"least_rating": 3, "most_rating": 2}, "least_rating 3 is above most_rating 2"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(InputError) as caught:
        Sudoku(**options)
    assert str(caught.value) == message


def test_checkers_and_codes():
    task = Sudoku(side=4)
    inputs = task.parse(b"1.....3..4.....2", name="x")[0].inputs
    assert task.cells(inputs, SOLVED, SOLVED).tolist() == [[0, 1, 1, 1], [1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 0]]
    wrong = SOLVED.clone()
    wrong[0, 0], wrong[0, 1] = 3, 0
    assert task.cells(inputs, wrong, SOLVED)[0].tolist() == [3, 2, 1, 1]
    assert (task.solves(inputs, SOLVED), task.solves(inputs, wrong)) == (True, False)
    renamed = SOLVED[[1, 0, 2, 3]]  # a valid grid that changes givens
    assert not task.solves(inputs, renamed)
    logits = torch.nn.functional.one_hot(torch.stack([SOLVED, wrong]), 4).movedim(-1, 1).float()
    targets = torch.stack([SOLVED, SOLVED])
    assert task.correct(logits, targets).tolist() == [True, False]
    assert task.symbols(logits, targets).tolist() == [1, 14 / 16]
    assert task.text(inputs, SOLVED) == "1324423124133142"


def test_a_puzzle_without_solution_is_in_no_split():
    task = Sudoku(side=4)
    grid = np.zeros((1, 16), dtype=np.uint8)
    grid[0, [0, 1, 6]] = 1, 2, 3
    assert not task.in_test_split(task._encode(grid, 4))


def test_pictures_show_givens_in_black_and_answers_in_blue():
    task = Sudoku(side=4)
    inputs = task.parse(b"1.....3..4.....2", name="x")[0].inputs

    def colours(row: int, column: int, answer: torch.Tensor) -> set:
        image = task.picture(inputs, answer)
        cell = image.crop((10 + 40 * column + 3, 10 + 40 * row + 3, 10 + 40 * column + 37, 10 + 40 * row + 37))
        return {colour for _, colour in cell.getcolors(5000)}

    black, blue, orange = (0, 0, 0), (0, 114, 178), (213, 94, 0)
    assert colours(0, 0, SOLVED) & {black, blue, orange} == {black}
    assert colours(0, 1, SOLVED) & {black, blue, orange} == {blue}
    changed = SOLVED.clone()
    changed[0, 0] = 3
    assert colours(0, 0, changed) & {black, blue, orange} == {black, orange}
