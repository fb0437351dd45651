"""Prefix sums against a plain loop; their text form, pictures and errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import InputError
from homeostat.tasks import PrefixSums

TASK = PrefixSums()


def parity_by_counting(bits: list[int]) -> list[int]:
    return [bits[: position + 1].count(1) % 2 for position in range(len(bits))]


@pytest.mark.parametrize("size", [2, 31, 32, 63, 64, 65, 200])
def test_targets_are_the_running_parity(size):
    inputs, targets = TASK.sample(size, 20, split="train", seed=size)
    assert (inputs.shape, inputs.dtype) == ((20, 1, size), torch.float32)
    assert (targets.shape, targets.dtype) == ((20, size), torch.int64)
    assert set(inputs.unique().tolist()) == {-0.5, 0.5}
    for row, target in zip(inputs[:, 0], targets, strict=True):
        assert target.tolist() == parity_by_counting((row > 0).int().tolist())


def test_bits_are_fair_and_independent():
    bits = (TASK.sample(64, 4_000, split="train", seed=1).inputs[:, 0] > 0).double().numpy()
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / 4_000**0.5
    correlation = np.corrcoef(bits.T) - np.eye(64)
    assert np.abs(correlation).max() < 6 / 4_000**0.5


def test_span_is_the_way_from_the_first_bit_to_the_last():
    assert [TASK.span(size) for size in (1, 32, 1024)] == [0, 31, 1023]


def test_checker_and_shares():
    targets = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    given_answers = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]])
    outputs = torch.nn.functional.one_hot(given_answers, 2).movedim(-1, 1).float()
    assert TASK.correct(outputs, targets).tolist() == [True, False]
    assert TASK.symbols(outputs, targets).tolist() == [1.0, 0.75]


@given(st.lists(st.text("01", min_size=1, max_size=200), min_size=1, max_size=5), st.sampled_from(["\n", "\r\n", "\r"]))
@settings(deadline=None)
def test_reading_what_was_written(strings, newline):
    data = (newline + f"  # note{newline}").join(f" {string}\t" for string in strings).encode()
    puzzles = TASK.parse(data, name="stdin")
    answers = [(puzzle.inputs[0] > 0).long() for puzzle in puzzles]
    assert [TASK.text(puzzle.inputs, answer) for puzzle, answer in zip(puzzles, answers, strict=True)] == strings
    assert [puzzle.where for puzzle in puzzles] == [f"line {1 + 2 * number}" for number in range(len(strings))]


def test_a_byte_order_mark_is_no_character():
    assert TASK.parse(b"\xef\xbb\xbf101", name="x")[0].inputs.tolist() == [[0.5, -0.5, 0.5]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "bits.txt: no bit string found; write one string of 0 and 1 on each line"),
        (b"\n  \n# 0101\n", "bits.txt: no bit string found; write one string of 0 and 1 on each line"),
        (b"0101\n01x1", "bits.txt, line 2, column 3: 'x' is not a bit; write 0 or 1"),
        (b"  012", "bits.txt, line 1, column 5: '2' is not a bit; write 0 or 1"),
        (b"\r\n01 01\r\n", "bits.txt, line 2, column 3: ' ' is not a bit; write 0 or 1"),
        ("0\u0661".encode(), "bits.txt, line 1, column 2: '\u0661' is not a bit; write 0 or 1"),
        (b"01\x0001", "bits.txt, line 1, column 3: '\\x00' is not a bit; write 0 or 1"),
        (b"01\xff", "bits.txt: byte 3 is not UTF-8 text; write one bit string a line"),
    ],
)
def test_bad_text(data, message):
    with pytest.raises(InputError) as caught:
        TASK.parse(data, name="bits.txt")
    assert str(caught.value) == message


@pytest.mark.parametrize("size", [0, -3, 2**24 + 1])
def test_impossible_size(size):
    with pytest.raises(InputError, match=f"size {size} is impossible for prefix-sums: 1 to 16,777,216 bits"):
        TASK.sample(size, 1, split="train", seed=0)


def test_cells_show_what_is_right():
    inputs, target = TASK.sample(70, 1, split="train", seed=0)
    answer = target[0].clone()
    answer[[3, 66]] ^= 1
    codes = TASK.cells(inputs[0], answer, target[0])
    assert (codes.shape, codes.dtype) == ((2, 64), np.uint8)
    assert codes[0, 3] == 2 + answer[3]
    assert codes[1, 2] == 2 + answer[66]
    assert (codes.reshape(-1)[:70] >= 2).sum() == 2
    assert (codes[1, 6:] == 4).all()
    assert codes.max() < len(TASK.legend.labels) == len(TASK.legend.colours)
    assert TASK.cells(inputs[0, :, :5], answer[:5], target[0, :5]).shape == (1, 5)


@pytest.mark.parametrize(("length", "size"), [(1, (24, 36)), (64, (780, 36)), (65, (780, 66))])
def test_picture_wraps_at_64(length, size):
    inputs, target = TASK.sample(length, 1, split="train", seed=0)
    assert TASK.picture(inputs[0], target[0]).size == size
