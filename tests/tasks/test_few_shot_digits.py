"""Few-shot digits: which digits are in which split, and that an episode's pictures are those of its digits."""

import sys

import pytest
from sklearn.datasets import load_digits

from homeostat.errors import InputError
from homeostat.tasks import FewShotDigits
from homeostat.tasks.few_shot.digits import _by_digit

PIXELS, LABELS = load_digits(return_X_y=True)
DIGIT_OF = {(row / 16).astype("float32").tobytes(): int(label) for row, label in zip(PIXELS, LABELS, strict=True)}


@pytest.mark.parametrize(("split", "digits"), [("train", {0, 1, 2, 3, 4}), ("test", {5, 6, 7, 8, 9})])
def test_digits_of_the_splits(split, digits):
    inputs, targets = FewShotDigits(ways=3, queries=4).sample(2, 40, split=split, seed=0)
    seen, labels = set(), set()
    for row in range(40):
        meaning = {}
        for pictures, of in (
            (inputs["support_inputs"][row], inputs["support_targets"][row]),
            (inputs["query_inputs"][row], targets[row]),
        ):
            for picture, label in zip(pictures, of.tolist(), strict=True):
                digit = DIGIT_OF[picture.numpy().tobytes()]
                assert meaning.setdefault(label, digit) == digit
                labels.add((label, digit))
        assert len(set(meaning.values())) == 3
        seen |= set(meaning.values())
    assert seen == digits
    assert len(labels) == 15  # every digit has had every label


def test_more_than_there_are():
    with pytest.raises(InputError, match="ways 6 is too many for few-shot-digits: each split has 5 digits"):
        FewShotDigits(ways=6)
    task = FewShotDigits(queries=100)
    assert len(task.sample(74, 1, split="test", seed=0).targets[0]) == 500
    with pytest.raises(InputError) as caught:
        task.sample(75, 1, split="test", seed=0)
    assert str(caught.value) == (
        "digit 8 has 174 pictures, and an episode needs 175 of every class: 75 shots and 100 queries"
    )


def test_without_scikit_learn(monkeypatch):
    _by_digit.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError) as caught:
        FewShotDigits().sample(1, 1, split="train", seed=0)
    assert str(caught.value) == (
        "the digits of few-shot-digits come with scikit-learn, which is not installed: pip install 'homeostat[digits]'"
    )
