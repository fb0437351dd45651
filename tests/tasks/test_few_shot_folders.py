"""Omniglot and mini-ImageNet from small folders in the layouts of their authors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from homeostat.errors import InputError
from homeostat.tasks import MiniImageNet, Omniglot

LEVELS = range(0, 250, 10)


def omniglot(root: Path, *, characters: int = 3, drawings: int = 4) -> dict[str, set[int]]:
    """Each drawing has a grey level of its own in the upper left quarter, on white; gives the levels of each split."""
    levels, found = iter(LEVELS), {}
    for part, alphabets in (("images_background", ("Greek", "Latin")), ("images_evaluation", ("Tengwar",))):
        found[part] = set()
        for alphabet in alphabets:
            for character in range(characters if part == "images_evaluation" else 1):
                folder = root / part / alphabet / f"character{character + 1:02d}"
                folder.mkdir(parents=True)
                for drawing in range(drawings):
                    level = next(levels)
                    pixels = np.full((16, 16), 255, dtype=np.uint8)
                    pixels[:8, :8] = level
                    Image.fromarray(pixels).save(folder / f"{drawing:04d}.png")
                    found[part].add(level)
    return found


def mini(root: Path, *, pictures: int = 3) -> None:
    """Pictures in one colour each: red says the class, green the picture."""
    images = root / "images"
    images.mkdir(parents=True)
    for part, first in (("train", 0), ("val", 3), ("test", 6)):
        lines = ["filename,label"]
        for label in range(first, first + 3):
            for picture in range(pictures):
                name = f"n{label:02d}{picture:03d}.png"
                Image.new("RGB", (12, 9), (10 * label, 10 * picture, 200)).save(images / name)
                lines.append(f"{name},n{label:02d}")
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")


def levels(pictures: torch.Tensor) -> torch.Tensor:
    """The grey level that `omniglot` gave each drawing: the darkest corner holds it."""
    return (255 * (1 - pictures.flatten(-3).max(-1).values)).round().long()


def test_omniglot_splits_by_its_two_folders(tmp_path):
    there = omniglot(tmp_path)
    task = Omniglot(folder=str(tmp_path), ways=2, queries=2, side=8)
    for split, part in (("train", "images_background"), ("test", "images_evaluation")):
        inputs, targets = task.sample(2, 30, split=split, seed=0)
        assert inputs["support_inputs"].shape == (30, 4, 1, 8, 8)
        support, query = levels(inputs["support_inputs"]), levels(inputs["query_inputs"])
        assert set(support.flatten().tolist()) | set(query.flatten().tolist()) == there[part]
        # Drawings of one character are four neighbouring levels: label and character agree within an episode.
        for row in range(30):
            of = dict(zip(inputs["support_targets"][row].tolist(), (support[row] // 40).tolist(), strict=True))
            assert len(of) == len(set(of.values())) == 2
            assert [of[label] for label in targets[row].tolist()] == (query[row] // 40).tolist()
    quarter = torch.zeros(8, 8)
    quarter[:4, :4] = 1
    picture = inputs["query_inputs"][0, 0, 0]
    assert torch.equal(picture > 0, quarter > 0)


def test_turned_characters_are_classes_of_training_alone(tmp_path):
    omniglot(tmp_path)
    task = Omniglot(folder=str(tmp_path), ways=8, queries=1, side=8, rotations=True)
    inputs, _ = task.sample(1, 20, split="train", seed=0)
    for row in range(20):  # two characters in four turns: every class is there once
        corners = [
            (int(p[0].nonzero().float().mean(0) @ torch.tensor([2.0, 1.0])), int(levels(p)) // 40)
            for p in inputs["support_inputs"][row]
        ]
        assert len(set(corners)) == 8
    by_label = {}
    for row in range(20):
        for picture, label in zip(inputs["support_inputs"][row], inputs["support_targets"][row].tolist(), strict=True):
            by_label.setdefault((row, label), set()).add(tuple(picture[0].nonzero().float().mean(0).tolist()))
    assert all(len(places) == 1 for places in by_label.values())
    with pytest.raises(InputError, match="8 ways need 8 classes, there are only 3"):
        task.sample(1, 1, split="test", seed=0)
    with pytest.raises(InputError, match="8 ways need 8 classes, there are only 2"):
        Omniglot(folder=str(tmp_path), ways=8, queries=1).sample(1, 1, split="train", seed=0)


def test_mini_imagenet_splits_by_its_lists(tmp_path):
    mini(tmp_path)
    for held_out, first in (("test", 6), ("val", 3)):
        task = MiniImageNet(folder=str(tmp_path), ways=3, queries=2, side=8, held_out=held_out)
        for split, lowest in (("train", 0), ("test", first)):
            inputs, targets = task.sample(1, 25, split=split, seed=0)
            assert inputs["query_inputs"].shape == (25, 6, 3, 8, 8)
            colour = (inputs["query_inputs"] * 255).round()
            assert (colour == colour[..., :1, :1]).all()
            assert (colour[:, :, 2] == 200).all()
            classes, pictures = (colour[:, :, channel, 0, 0] / 10 for channel in (0, 1))
            assert set(classes.flatten().tolist()) == set(map(float, range(lowest, lowest + 3)))
            assert set(pictures.flatten().tolist()) == {0.0, 1.0, 2.0}
            support = inputs["support_inputs"][:, :, 0, 0, 0] * 25.5
            for row in range(25):
                of = dict(zip(inputs["support_targets"][row].tolist(), support[row].round().tolist(), strict=True))
                assert [of[label] for label in targets[row].tolist()] == classes[row].tolist()


@pytest.mark.parametrize("kind", [Omniglot, MiniImageNet])
def test_episodes_from_folders_are_repeatable(tmp_path, kind):
    (omniglot if kind is Omniglot else mini)(tmp_path)
    task = kind(folder=str(tmp_path), ways=2, queries=1, side=8)
    few, many = (task.sample(2, count, split="test", seed=3) for count in (2, 9))
    assert torch.equal(few.inputs["support_inputs"], many.inputs["support_inputs"][:2])
    assert torch.equal(few.inputs["query_inputs"], many.inputs["query_inputs"][:2])
    assert torch.equal(few.targets, many.targets[:2])
    assert not torch.equal(few.targets, task.sample(2, 2, split="test", seed=4).targets) or not torch.equal(
        few.inputs["query_inputs"], task.sample(2, 2, split="test", seed=4).inputs["query_inputs"]
    )


def message(task, **request) -> str:
    with pytest.raises(InputError) as caught:
        task.sample(**({"size": 1, "count": 30, "split": "train", "seed": 0} | request))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_can_be_wrong_with_omniglot(tmp_path):
    def task(name: str, **options) -> Omniglot:
        return Omniglot(**({"folder": str(tmp_path / name), "ways": 2, "queries": 2, "side": 8} | options))

    assert message(task("none")) == (
        f"there is no folder {tmp_path / 'none'} with images_background and images_evaluation of Omniglot; "
        "nothing is downloaded"
    )
    (tmp_path / "empty").mkdir()
    assert message(task("empty"), split="test") == (
        f"{tmp_path / 'empty'} has no images_evaluation, which holds the characters of the test split"
    )
    (tmp_path / "bare" / "images_background").mkdir(parents=True)
    assert message(task("bare")) == (
        f"{tmp_path / 'bare' / 'images_background'} has no characters: "
        "folders ALPHABET/CHARACTER with pictures are needed"
    )
    omniglot(tmp_path / "good")
    assert message(task("good"), size=3) == (
        "Greek/character01 has 4 pictures, and an episode needs 5 of every class: 3 shots and 2 queries"
    )
    assert message(task("good", ways=3)) == "3 ways need 3 classes, there are only 2"
    omniglot(tmp_path / "damaged")
    first, second = sorted((tmp_path / "damaged" / "images_background" / "Greek" / "character01").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:40])
    second.write_bytes(b"no picture")
    assert message(task("damaged")).startswith(f"cannot read the picture {first.parent}/000")


@pytest.mark.parametrize("content", [b"", b"no picture", "cut"], ids=["empty", "text", "cut"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path, content):
    mini(tmp_path, pictures=2)
    path = tmp_path / "images" / "n01000.png"
    path.write_bytes(path.read_bytes()[:50] if content == "cut" else content)
    task = MiniImageNet(folder=str(tmp_path), ways=3, queries=1, side=8)
    assert message(task).startswith(f"cannot read the picture {path}: it is damaged")


def test_what_can_be_wrong_with_mini_imagenet(tmp_path):
    def task(name: str) -> MiniImageNet:
        return MiniImageNet(folder=str(tmp_path / name), ways=2, queries=1, side=8)

    def made(name: str) -> Path:
        mini(tmp_path / name)
        return tmp_path / name

    assert message(task("none")).startswith(f"there is no folder {tmp_path / 'none'} with train.csv, test.csv and ")
    (made("pictureless") / "images").rename(tmp_path / "pictures")
    assert message(task("pictureless")) == f"{tmp_path / 'pictureless'} has no folder images with the pictures"
    missing = made("missing") / "test.csv"
    missing.unlink()
    assert message(task("missing")) == f"cannot read {missing}: No such file or directory"
    lists = made("lists") / "train.csv"
    lists.write_text("file,class\na.png,b\n")
    assert message(task("lists")) == f"{lists} has no columns filename and label in its first line"
    blank = made("blank") / "train.csv"
    blank.write_text("filename,label\n")
    assert message(task("blank")) == f"{blank} lists no pictures"
    short = made("short") / "train.csv"
    short.write_text("filename,label\nn00000.png\n")
    assert message(task("short")) == f"{short}, line 2: a filename and a label are needed"
    gone = made("gone")
    (gone / "images" / "n02001.png").unlink()
    assert message(task("gone")) == f"{gone / 'train.csv'}, line 9: n02001.png of class n02 is not in {gone / 'images'}"
    overlap = made("overlap")
    (overlap / "test.csv").write_text((overlap / "train.csv").read_text())
    assert message(task("overlap")) == f"{overlap}: class n00 is in train.csv and in test.csv; a class has one split"
    made("few")
    assert message(task("few"), size=3) == (
        "n00 has 3 pictures, and an episode needs 4 of every class: 3 shots and 1 queries"
    )


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (Omniglot, {"folder": ""}, "folder '' is not the path of a folder with omniglot"),
        (MiniImageNet, {"folder": 3}, "folder 3 is not the path of a folder with mini-imagenet"),
        (Omniglot, {"side": 4}, "side 4 is impossible: 8 to 512 pixels"),
        (Omniglot, {"rotations": 1}, "rotations 1 is neither true nor false"),
        (MiniImageNet, {"held_out": "train"}, "held_out 'train' is unknown: it is one of test, val"),
    ],
)
def test_impossible_options_of_folders(kind, options, said):
    with pytest.raises(InputError) as caught:
        kind(**options)
    assert str(caught.value) == said
