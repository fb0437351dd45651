"""What holds of every few-shot task: balanced, shuffled, repeatable episodes, judged by their queries."""

import numpy as np
import pytest
import torch
from scipy import stats

from homeostat.errors import InputError
from homeostat.tasks import FewShotCharacters, FewShotDigits, get_task
from homeostat.tasks.few_shot.episodes import draw_classes, draw_pictures, shuffled, streams
from homeostat.tasks.random_words import candidate_keys

TASKS = [FewShotCharacters(ways=3, queries=2, side=10), FewShotDigits(ways=3, queries=2)]


def leaves(batch):
    return [*batch.inputs.values(), batch.targets]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_shapes_and_balanced_labels(task):
    side = task.picture_side()
    inputs, targets = task.sample(4, 6, split="train", seed=0)
    assert inputs["support_inputs"].shape == (6, 12, 1, side, side)
    assert inputs["query_inputs"].shape == (6, 6, 1, side, side)
    assert inputs["support_inputs"].dtype == inputs["query_inputs"].dtype == torch.float32
    assert inputs["support_targets"].dtype == targets.dtype == torch.int64
    for labels, each in ((inputs["support_targets"], 4), (targets, 2)):
        assert labels.sort(1).values.tolist() == [[label for label in range(3) for _ in range(each)]] * 6
    for pictures in (inputs["support_inputs"], inputs["query_inputs"]):
        assert 0 <= pictures.min() < pictures.max() <= 1


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_first_episodes_never_change_with_the_count(task):
    few, many = (task.sample(2, count, split="test", seed=5) for count in (3, 20))
    assert all(torch.equal(a, b[:3]) for a, b in zip(leaves(few), leaves(many), strict=True))
    again, other = (task.sample(2, 3, split="test", seed=seed) for seed in (5, 6))
    assert all(torch.equal(a, b) for a, b in zip(leaves(few), leaves(again), strict=True))
    assert not torch.equal(few.inputs["support_inputs"], other.inputs["support_inputs"])
    assert not torch.equal(
        few.inputs["support_inputs"], task.sample(2, 3, split="train", seed=5).inputs["support_inputs"]
    )


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_no_picture_is_support_and_query(task):
    inputs, _ = task.sample(5, 20, split="train", seed=0)
    for support, query in zip(inputs["support_inputs"], inputs["query_inputs"], strict=True):
        seen = {picture.numpy().tobytes() for picture in (*support, *query)}
        assert len(seen) == len(support) + len(query)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_places_say_nothing_about_labels(task):
    inputs, targets = task.sample(2, 600, split="train", seed=0)
    for labels in (inputs["support_targets"], targets):
        for place in range(labels.shape[1]):
            found = np.bincount(labels[:, place].numpy(), minlength=3)
            assert stats.chisquare(found).pvalue > 1e-5
    same = (inputs["support_targets"][:, 0] == targets[:, 0]).float().mean()
    assert abs(same - 1 / 3) < 5 * (2 / 9 / 600) ** 0.5


def test_every_class_has_every_label_equally_often():
    classes = draw_classes(candidate_keys(0, 6_000, seed=0, size=1, split=0), 4, 3)
    for label in range(3):
        assert stats.chisquare(np.bincount(classes[:, label], minlength=4)).pvalue > 1e-5
    orders, counts = np.unique(classes, axis=0, return_counts=True)
    assert len(orders) == 4 * 3 * 2
    assert stats.chisquare(counts).pvalue > 1e-5


def test_pictures_are_drawn_without_repetition_from_those_that_are_there():
    keys = candidate_keys(0, 3_000, seed=0, size=1, split=0)
    there = np.array([[5, 2, 3]]).repeat(3_000, axis=0)
    taken = draw_pictures(keys, there, 2)
    assert (taken < there[..., None]).all()
    assert (taken[..., 0] != taken[..., 1]).all()
    for way, count in enumerate(there[0]):
        pairs, counts = np.unique(taken[:, way], axis=0, return_counts=True)
        assert len(pairs) == count * (count - 1)
        assert stats.chisquare(counts).pvalue > 1e-5


def test_orders_are_permutations_and_streams_differ():
    keys = candidate_keys(0, 50, seed=0, size=1, split=0)
    one, other = (shuffled(stream, 3, 4) for stream in streams(keys, 2))
    assert (np.sort(one, axis=1) == np.arange(12)).all()
    assert (one != other).any(axis=1).all()


def test_answers_are_judged_by_queries():
    task = FewShotCharacters(ways=2, queries=1)
    targets = torch.tensor([[0, 1], [1, 0]])
    outputs = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [2.0, 2.0]]])  # (episode, way, query)
    assert task.correct(outputs, targets).tolist() == [True, False]
    assert task.symbols(outputs, targets).tolist() == [1.0, 0.5]
    right, wrong = -np.log(np.exp(2) / (1 + np.exp(2))), -np.log(1 / (1 + np.exp(2)))
    assert task.loss(outputs, targets).numpy() == pytest.approx([right, (right + wrong) / 2], rel=1e-6)


@pytest.mark.parametrize("name", ["few-shot-characters", "few-shot-digits", "omniglot", "mini-imagenet"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 1}, "ways 1 leaves NAME nothing to tell apart: with one class every answer is right"),
        ({"ways": 0}, "ways 0 is impossible: 2 to 100 classes in an episode"),
        ({"ways": 2.0}, "ways 2.0 is impossible: 2 to 100 classes in an episode"),
        ({"queries": 0}, "queries 0 is impossible: 1 to 100 for each class"),
        ({"queries": True}, "queries True is impossible: 1 to 100 for each class"),
    ],
)
def test_impossible_options_of_every_task(name, options, message):
    with pytest.raises(InputError) as caught:
        get_task(name, **options)
    assert str(caught.value) == message.replace("NAME", name)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"size": 0}, "size 0 is impossible for few-shot-characters: 1 to 100 shots"),
        ({"count": 0}, "count 0 is too small: at least 1"),
        ({"count": 10**6}, "count 1000000 is too large: 134,217,728 numbers at once, ask for them in parts"),
        ({"split": "val"}, "unknown split 'val': it is one of train, test"),
        ({"seed": -1}, "seed -1 is out of range: 0 to 2**63 - 1"),
    ],
)
def test_impossible_samples_of_every_task(request_, message):
    with pytest.raises(InputError) as caught:
        FewShotCharacters().sample(**({"size": 1, "count": 3, "split": "train", "seed": 0} | request_))
    assert str(caught.value) == message
