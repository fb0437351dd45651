"""Sudokus as text: what is written is read back, published lists are read, and every mistake is named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import InputError
from homeostat.tasks import Sudoku

PUZZLE, SOLUTION = "1.....3..4.....2", "1324423124133142"
NINE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


def read(text: str, **options):
    return Sudoku(**options).parse(text.encode(), name="s.txt")


@given(st.sampled_from([4, 6]), st.integers(0, 10**6), st.sampled_from(["0", "."]), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=20, deadline=None)
def test_reading_what_was_written(side, seed, blank, newline):
    inputs = Sudoku(side=side).sample(side, 3, split="train", seed=seed).inputs
    digits = inputs.argmax(1).flatten(1).tolist()
    lines = ["".join(map(str, row)).replace("0", blank) for row in digits]
    puzzles = Sudoku(side=side).parse((newline.join(lines) + newline).encode(), name="s.txt")
    assert torch.equal(torch.stack([puzzle.inputs for puzzle in puzzles]), inputs)
    assert [puzzle.where for puzzle in puzzles] == ["line 1", "line 2", "line 3"]


def test_sides_in_one_file():
    shapes = [tuple(puzzle.inputs.shape) for puzzle in read(f"{PUZZLE}\n{NINE}\n")]
    assert shapes == [(10, 4, 4), (10, 9, 9)]


@pytest.mark.parametrize(
    "text",
    [
        PUZZLE,
        f"\ufeff{PUZZLE}\r\n",
        f"# a list\n\n  {PUZZLE.replace('.', '0')}  # the first\n",
        f"{PUZZLE},{SOLUTION}",
        f"{PUZZLE};{SOLUTION};1.5",
        f"{PUZZLE} {SOLUTION}",
        f"{PUZZLE}\t7.2\tED=1.2/1.2/1.2",
        f'"{PUZZLE}","{SOLUTION}","easy, as it is"',
        f"quizzes,solutions\n{PUZZLE},{SOLUTION}",
        f"source,question,answer,rating\nsomewhere,{PUZZLE},{SOLUTION},0",
        f'"Puzzle","Rating"\n"{PUZZLE}","3"',
    ],
)
def test_forms_of_one_puzzle(text):
    (puzzle,) = read(text, side=4)
    assert "".join(map(str, puzzle.inputs.argmax(0).flatten().tolist())) == PUZZLE.replace(".", "0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.txt: no sudoku found; write one a line, 16 for 4x4, 0 or . for blanks"),
        ("# nothing\n", "s.txt: no sudoku found; write one a line, 16 for 4x4, 0 or . for blanks"),
        ("puzzle,solution\n", "s.txt: no sudoku found; write one a line, 16 for 4x4, 0 or . for blanks"),
        (
            f"{PUZZLE}\n\n {PUZZLE}1",
            "s.txt, line 3, column 2: '1.....3..4.....21' has 17 characters; a puzzle has 16 for 4x4",
        ),
        (NINE, "s.txt, line 1, column 1: '53..7....6..195.....' has 81 characters; a puzzle has 16 for 4x4"),
        (
            "1.....3..4....72",
            "s.txt, line 1, column 15: '7' is too large; a 4x4 sudoku has 1 to 4, and 0 or . for blanks",
        ),
        (
            "1.....3..4....x2",
            "s.txt, line 1, column 15: 'x' is no digit; a 4x4 sudoku has 1 to 4, and 0 or . for blanks",
        ),
        (
            "1...............\n1..1............",
            "s.txt, line 2, column 4: a second 1 in row 1; the first is at column 1",
        ),
        ("2...1.......1...", "s.txt, line 1, column 13: a second 1 in column 1; the first is at column 5"),
        ("1....1..........", "s.txt, line 1, column 6: a second 1 in box 1; the first is at column 1"),
        ("12....3.........", "s.txt, line 1: the puzzle has no solution; check its givens"),
        (
            f"{PUZZLE},1324423124133143",
            "s.txt, line 1, column 18: the solution beside the puzzle does not solve it; correct or remove it",
        ),
        (
            f"{PUZZLE},2314413213244231",
            "s.txt, line 1, column 18: the solution beside the puzzle does not solve it; correct or remove it",
        ),
        (
            f"puzzle,answer\n{PUZZLE},none",
            "s.txt, line 2, column 18: the solution beside the puzzle does not solve it; correct or remove it",
        ),
        ("id,puzzle\n7", "s.txt, line 2: 1 fields; the header names the puzzle as field 2"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(InputError) as caught:
        read(text, side=4)
    assert str(caught.value) == message


def test_not_text():
    with pytest.raises(InputError, match=r"^s.txt: byte 2 is not UTF-8 text; write one sudoku a line$"):
        Sudoku().parse(b"1\xff", name="s.txt")


def test_several_solutions_are_said_and_each_is_right():
    task = Sudoku(side=4)
    one, other = read(f"{SOLUTION}\n{'.' * 16}", side=4)
    assert (one.where, other.where) == ("line 1", "line 2 (several solutions)")
    for grid in (SOLUTION, SOLUTION[::-1]):
        answer = torch.tensor([int(c) - 1 for c in grid]).reshape(4, 4)
        assert task.solves(other.inputs, answer)
        assert task.solves(one.inputs, answer) == (grid == SOLUTION)


@given(st.text(alphabet='01234.,;"# \tx\n', max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_is_puzzles_or_one_line_of_error(text):
    puzzles, message = [], ""
    try:
        puzzles = read(text, side=4)
    except InputError as error:
        message = str(error)
    assert bool(puzzles) != bool(message)
    assert "\n" not in message
