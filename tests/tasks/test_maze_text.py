"""Mazes as ASCII: what is written is read back, and every mistake is named with its place."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import InputError
from homeostat.tasks import Mazes
from homeostat.tasks.maze_text import format_maze

TASK = Mazes()

CORRIDOR = "#####\n#S G#\n#####"


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 10**6), st.sampled_from(["\n", "\r\n", "\r"]))
@settings(max_examples=30, deadline=None)
def test_reading_what_was_written(size, count, seed, newline):
    inputs = TASK.sample(size, count, split="train", seed=seed).inputs
    text = "\n\n".join(format_maze(maze) for maze in inputs) + "\n"
    puzzles = TASK.parse(text.replace("\n", newline).encode(), name="stdin")
    assert torch.equal(torch.stack([puzzle.inputs for puzzle in puzzles]), inputs)
    assert [puzzle.where for puzzle in puzzles] == [f"line {1 + number * (2 * size + 2)}" for number in range(count)]


@pytest.mark.parametrize(
    "same",
    [
        "#####\n#S.G#\n#####\n",
        "#####\n#s E#\n#####\n",
        "\n \n#####   \n#S e#\n##### \n\n\n",
        "\ufeff#####\n#S g#\n#####",
    ],
)
def test_forms_that_mean_the_same(same):
    (puzzle,) = TASK.parse(same.encode(), name="stdin")
    assert format_maze(puzzle.inputs) == CORRIDOR


def test_corridors_may_reach_the_border():
    (puzzle,) = TASK.parse(b"S \nG#\n", name="stdin")
    assert puzzle.inputs.tolist() == [[[1, 1], [1, 0]], [[1, 0], [0, 0]], [[0, 0], [1, 0]]]


def test_answers_show_the_path_on_corridors_only():
    inputs, targets = TASK.sample(4, 1, split="train", seed=2)
    everywhere = format_maze(inputs[0], torch.ones(9, 9, dtype=torch.int64))
    assert everywhere == format_maze(inputs[0]).replace(" ", "*")
    solved = TASK.text(inputs[0], targets[0])
    assert solved.count("*") == int((targets[0] == 1).sum()) - 2
    assert solved.replace("*", " ") == format_maze(inputs[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.txt: no maze found; draw one with # for walls, S for the start and G for the goal"),
        (" \n\t\n", "m.txt: no maze found; draw one with # for walls, S for the start and G for the goal"),
        ("####\n# G#\n####", "m.txt: the maze at line 1 has no start; put one S into it"),
        (f"{CORRIDOR}\n\n####\n#S #\n####", "m.txt: the maze at line 5 has no goal; put one G into it"),
        (
            "#####\n#S S#\n#  G#",
            "m.txt, line 2, column 4: a second start; the first is at line 2, column 2, and a maze has one",
        ),
        (
            "\n#####\n#S G#\n#  E#",
            "m.txt, line 4, column 4: a second goal; the first is at line 3, column 4, and a maze has one",
        ),
        (
            "###########\n#S   G    #\n#         #\n#       #\n###########",
            "m.txt: line 4 has 9 characters, line 1 has 11; a maze is rectangular",
        ),
        (
            "#####\n#S?G#\n#####",
            "m.txt, line 2, column 3: '?' means nothing in a maze; use # wall, space or . corridor, S start, G goal",
        ),
        (
            "#####\n#S\tG#\n#####",
            "m.txt, line 2, column 3: '\\t' means nothing in a maze; use # wall, space or . corridor, S start, G goal",
        ),
        (
            f"{CORRIDOR}\n\n#####\n#S#G#\n#####",
            "m.txt, line 5: the goal cannot be reached from the start; open a way between them",
        ),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(InputError) as caught:
        TASK.parse(text.encode(), name="m.txt")
    assert str(caught.value) == message


def test_neither_text_nor_picture():
    with pytest.raises(
        InputError, match=r"^m.bin: byte 3 is not UTF-8 text, nor is this a PNG, JPEG, GIF, BMP or WebP"
    ):
        TASK.parse(b"##\xff##", name="m.bin")


@given(st.text(alphabet="#. SG\n?\r\t", max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_maze_or_one_line_of_error(text):
    puzzles, message = [], ""
    try:
        puzzles = TASK.parse(text.encode(), name="m.txt")
    except InputError as error:
        message = str(error)
    assert bool(puzzles) != bool(message)
    assert "\n" not in message
    for puzzle in puzzles:
        assert puzzle.inputs[1].sum() == puzzle.inputs[2].sum() == 1
        assert np.all(puzzle.inputs.numpy()[1:].sum(0) <= puzzle.inputs.numpy()[0])
