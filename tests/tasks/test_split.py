"""Train and test never share an instance, and samples begin the same however many are drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import InputError
from homeostat.tasks import Mazes, PrefixSums, Task
from homeostat.tasks.split import collect, in_split, instance_hash

TASKS = [PrefixSums(), Mazes(), Mazes(percolation=0.3, paths="any"), Mazes(percolation=0.2, dead_end_start=True)]


def instances(inputs: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in inputs}


def test_the_hash_is_fixed_for_ever():
    # Checkpoints rely on it: if this fails, instances have moved between train and test.
    bits = np.unpackbits(np.arange(24, dtype=np.uint8).reshape(2, 12), axis=1).astype(bool)
    assert [hex(value) for value in instance_hash(bits)] == ["0xe7eda9ad7d72fe96", "0x83631401f5dafb52"]
    ends = np.array([[5, 6], [7, 8]])
    assert [hex(value) for value in instance_hash(bits, ends, ends + 1).reshape(-1)] == [
        "0x97441630f3989103",
        "0x327712a193479b25",
        "0x51ddb595076466c0",
        "0x46a4572e78a2f097",
    ]


def test_about_one_in_eight_is_test():
    bits = (np.arange(2**14)[:, None] >> np.arange(14) & 1).astype(bool)
    share = in_split(instance_hash(bits), "test").mean()
    # Five standard deviations of a fair draw of 16,384.
    assert abs(share - 1 / 8) < 5 * np.sqrt(1 / 8 * 7 / 8 / 2**14)


def test_every_short_string_is_in_the_split_it_hashes_to():
    task, length = PrefixSums(), 10
    train = instances(task.sample(length, 20_000, split="train", seed=0).inputs)
    test = instances(task.sample(length, 4_000, split="test", seed=1).inputs)
    assert not train & test
    assert len(train | test) == 2**length


def test_every_small_maze_is_in_the_split_it_hashes_to():
    task = Mazes()
    train = instances(task.sample(2, 3_000, split="train", seed=0).inputs)
    test = instances(task.sample(2, 3_000, split="test", seed=1).inputs)
    assert not train & test
    # Four spanning trees of a square, and twelve ordered pairs of rooms in each.
    assert len(train | test) == 4 * 12


@pytest.mark.parametrize("task", TASKS, ids=repr)
@given(size=st.integers(3, 6), seeds=st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1)))
@settings(max_examples=15, deadline=None)
def test_no_seed_brings_a_test_instance_into_training(task: Task, size: int, seeds: tuple[int, int]):
    length = 3 * size if task.name == "prefix-sums" else size
    train = task.sample(length, 60, split="train", seed=seeds[0]).inputs
    test = task.sample(length, 30, split="test", seed=seeds[1]).inputs
    assert not task.in_test_split(train).any()
    assert task.in_test_split(test).all()
    assert not instances(train) & instances(test)


@pytest.mark.parametrize("task", TASKS, ids=repr)
@given(
    seed=st.integers(0, 1000),
    few=st.integers(1, 40),
    more=st.integers(0, 300),
    split=st.sampled_from(["train", "test"]),
)
@settings(max_examples=15, deadline=None)
def test_samples_begin_the_same(task: Task, seed: int, few: int, more: int, split):
    short, long = (task.sample(5, count, split=split, seed=seed) for count in (few, few + more))
    assert len(long) == few + more
    assert torch.equal(short.inputs, long.inputs[:few])
    assert torch.equal(short.targets, long.targets[:few])


def test_chunks_do_not_change_a_sample(monkeypatch):
    whole = Mazes().sample(4, 100, split="test", seed=5)
    monkeypatch.setattr("homeostat.tasks.mazes._CHUNK_PIXELS", 81 * 7)
    pieces = Mazes().sample(4, 100, split="test", seed=5)
    assert torch.equal(whole.inputs, pieces.inputs)
    assert torch.equal(whole.targets, pieces.targets)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_other_seeds_give_other_instances(task: Task):
    size = 64 if task.name == "prefix-sums" else 7
    first, second = (instances(task.sample(size, 50, split="train", seed=seed).inputs) for seed in (0, 1))
    assert len(first) == 50
    assert not first & second


def test_an_empty_split_is_an_error_and_no_endless_loop():
    task = PrefixSums()
    # Both strings of one bit hash into train.
    with pytest.raises(InputError, match=r"^no string of 1 bit in the test split: .* choose a larger size$"):
        task.sample(1, 1, split="test", seed=0)
    assert len(task.sample(1, 1, split="train", seed=0)) == 1


def test_unknown_split_and_impossible_count():
    with pytest.raises(InputError, match="unknown split 'valid': it is one of train, test"):
        PrefixSums().sample(8, 1, split="valid", seed=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="count 0 is too small: at least 1"):
        PrefixSums().sample(8, 0, split="train", seed=0)


def test_collect_stops_where_nothing_is_kept():
    with pytest.raises(InputError, match="no unicorn in the train split"):
        collect(lambda keys: (keys[:0],), 1, size=1, split="train", seed=0, rate=1.0, most=10**5, what="unicorn")
