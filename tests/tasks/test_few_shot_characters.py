"""Generated characters: two splits that share none, drawings that vary, and the picture that the curves say."""

import numpy as np
import pytest
import torch

from homeostat.errors import InputError
from homeostat.tasks import FewShotCharacters
from homeostat.tasks.few_shot.characters import in_test_split, new_characters
from homeostat.tasks.few_shot.strokes import control_points, draw_characters
from homeostat.tasks.random_words import candidate_keys, random_words

KEYS = candidate_keys(0, 400, seed=0, size=1, split=0)


def test_characters_of_the_two_splits_differ():
    seen = {split: new_characters(KEYS, 5, split) for split in ("train", "test")}
    assert not set(seen["train"].flat) & set(seen["test"].flat)
    assert len(set(seen["test"].flat)) == seen["test"].size
    assert in_test_split(seen["test"]).all()
    assert not in_test_split(seen["train"]).any()
    words = random_words(KEYS, 50)
    assert abs(in_test_split(words).mean() - 1 / 8) < 5 * (7 / 64 / words.size) ** 0.5


def test_a_character_does_not_depend_on_those_drawn_with_it():
    assert (new_characters(KEYS, 5, "test")[7:9] == new_characters(KEYS[7:9], 5, "test")).all()
    both = draw_characters(KEYS[:2], KEYS[2:4], 12)
    assert (both[1:] == draw_characters(KEYS[1:2], KEYS[3:4], 12)).all()
    assert (
        draw_characters(np.tile(KEYS[:2], 600), np.tile(KEYS[2:4], 600), 12)[-2:] == both
    ).all()  # more than a chunk


def test_strokes_fill_the_character():
    points, there = control_points(KEYS)
    assert set(there.sum(1)) == {2, 3, 4}
    t = np.linspace(0, 1, 400)[:, None]
    for strokes, exist in zip(points[:40], there, strict=False):
        a, b, c, d = strokes[exist].transpose(1, 0, 2)[:, :, None]
        curve = a * (1 - t) ** 3 + 3 * b * (1 - t) ** 2 * t + 3 * c * (1 - t) * t**2 + d * t**3
        assert np.abs(curve).max() == pytest.approx(1, abs=0.02)


def test_ink_is_where_a_straight_line_is(monkeypatch):
    """A pen of Gaussian profile along one long straight stroke: ink depends on the distance from it alone."""
    straight = np.zeros((1, 4, 4, 2))
    straight[0, 0, :, 0] = np.linspace(-1, 1, 4)
    there = np.array([[True, False, False, False]])
    monkeypatch.setattr("homeostat.tasks.few_shot.strokes.control_points", lambda characters: (straight, there))
    for name in ("_WOBBLE", "_TURN", "_SHEAR", "_SHIFT"):
        monkeypatch.setattr(f"homeostat.tasks.few_shot.strokes.{name}", 0.0)
    monkeypatch.setattr("homeostat.tasks.few_shot.strokes._SCALES", (1.0, 1.0))
    monkeypatch.setattr("homeostat.tasks.few_shot.strokes._PENS", (0.05, 0.05))
    side = 30
    picture = draw_characters(KEYS[:1], KEYS[:1], side)[0]
    rows = np.abs(np.arange(side) + 0.5 - side / 2)
    expected = np.clip(2 * np.exp(-0.5 * (rows / (0.05 * side)) ** 2) - 0.5, 0, 1)
    np.testing.assert_allclose(picture[:, side // 2], expected, atol=2e-3)
    assert picture[:, :2].max() == 0  # beyond its end


def test_drawings_of_one_character_vary_but_less_than_characters():
    characters = KEYS[:20].repeat(10)
    pictures = draw_characters(characters, random_words(KEYS[:20], 10).reshape(-1), 20).reshape(20, 10, -1)
    assert len(np.unique(pictures.reshape(200, -1), axis=0)) == 200
    # Each drawing among the means of the others of every character, after pooling: one in twenty by chance.
    coarse = pictures.reshape(20, 10, 10, 2, 10, 2).mean((3, 5)).reshape(20, 10, 100)
    means = (coarse.sum(1, keepdims=True) - coarse) / 9
    right = [
        np.square(
            coarse[character, drawing]
            - np.where(np.arange(20)[:, None] == character, means[:, drawing], coarse.mean(1))
        )
        .sum(1)
        .argmin()
        == character
        for character, drawing in np.ndindex(20, 10)
    ]
    assert 0.3 < np.mean(right) < 0.95
    ink = pictures.mean(2)
    assert 0.05 < ink.min() < ink.max() < 0.6


def test_an_episode_holds_drawings_of_its_characters():
    task = FewShotCharacters(ways=2, queries=3, side=16)
    inputs, targets = task.sample(2, 30, split="test", seed=0)
    pooled = torch.nn.functional.avg_pool2d(inputs["query_inputs"].flatten(0, 1), 4).reshape(30, 6, -1)
    same = targets[:, :, None] == targets[:, None]
    distances = torch.cdist(pooled, pooled)
    other = ~torch.eye(6, dtype=torch.bool).expand(30, 6, 6)
    assert distances[same & other].mean() < 0.9 * distances[~same].mean()


@pytest.mark.parametrize("side", [7, 129, 20.0])
def test_impossible_sides(side):
    with pytest.raises(InputError, match=f"side {side} is impossible: 8 to 128 pixels"):
        FewShotCharacters(side=side)
