"""Pictures: normalised as stated, at places as stated, split as usual, and files that are something else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from homeostat.errors import InputError
from homeostat.tasks import BlurryDigits, Images
from homeostat.tasks import images as module

_NAMES = (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin")


@pytest.fixture(autouse=True)
def _fresh():
    module._pictures.cache_clear()


def cifar(folder: Path, each: int = 3) -> dict[str, np.ndarray]:
    """Records whose pixels are random, and whose label is their place in the file."""
    found = {}
    for number, name in enumerate(_NAMES):
        records = np.random.default_rng(number).integers(0, 256, (each, 3073)).astype(np.uint8)
        records[:, 0] = np.arange(each)
        (folder / name).write_bytes(records.tobytes())
        found[name] = records
    return found


def test_the_digits_come_normalised_and_each_once_before_any_comes_again():
    pixels, labels = load_digits(return_X_y=True)
    known = {pixel.astype(np.uint8).tobytes(): label for pixel, label in zip(pixels, labels, strict=True)}
    seen = {}
    for split, count in (("train", 1573), ("test", 224)):
        inputs, targets = Images().sample(1, count, split=split, seed=3)
        assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
        ink = ((inputs[:, 0] * 0.3763 + 0.3057) * 16).round().numpy().astype(np.uint8).reshape(count, 64)
        assert [known[picture.tobytes()] for picture in ink] == targets.tolist()
        assert len({picture.tobytes() for picture in ink}) == count
        if split == "train":  # the constants are those of the training split
            assert float(inputs.mean()) == pytest.approx(0, abs=1e-3)
            assert float(inputs.std()) == pytest.approx(1, abs=1e-3)
        seen[split] = {picture.tobytes() for picture in ink}
    assert not seen["train"] & seen["test"]
    blurry = BlurryDigits().sample(1, 224, split="test", seed=3)
    assert torch.equal(blurry.targets, Images().sample(1, 224, split="test", seed=3).targets)  # the same split


def test_the_first_ones_do_not_depend_on_how_many_there_are():
    few, more = (Images().sample(3, count, split="train", seed=1) for count in (4, 9))
    assert torch.equal(few.inputs, more.inputs[:4])
    assert not torch.equal(few.inputs, Images().sample(3, 4, split="train", seed=2).inputs)


@pytest.mark.parametrize(("size", "shifts"), [(2, (0, 1)), (3, (-1, 0, 1)), (4, (-1, 0, 1, 2))])
def test_a_picture_stands_at_one_of_so_many_places(size: int, shifts: tuple[int, ...]):
    still = Images().sample(1, 200, split="train", seed=5).inputs[:, 0]
    moved = Images().sample(size, 200, split="train", seed=5).inputs[:, 0]
    black = (0 - 0.3057) / 0.3763
    padded = torch.nn.functional.pad(still, (4, 4, 4, 4), value=black)
    found = set()
    for whole, picture in zip(padded, moved, strict=True):
        places = [
            (y, x) for y in range(-4, 5) for x in range(-4, 5)
            if torch.allclose(picture, whole[4 - y : 12 - y, 4 - x : 12 - x], atol=1e-5)
        ]  # fmt: skip
        assert places
        found |= set(places) if len(places) == 1 else set()
    assert found == {(y, x) for y in shifts for x in shifts}


def test_cifar_10_is_read_with_its_own_split(tmp_path: Path):
    records = cifar(tmp_path)
    task = Images(folder=str(tmp_path))
    assert task.in_channels == 3
    for split, names in (("train", _NAMES[:5]), ("test", _NAMES[5:])):
        count = 3 * len(names)
        inputs, targets = task.sample(1, count, split=split, seed=0)
        assert inputs.shape == (count, 3, 32, 32)
        mean, std = (np.array(c)[:, None, None] for c in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
        expected = {
            tuple(np.round((record[1:].reshape(3, 32, 32) / 255 - mean) / std, 3)[:, 5, 7]): record[0]
            for name in names
            for record in records[name]
        }
        assert len(expected) == count
        for picture, label in zip(inputs.numpy(), targets.tolist(), strict=True):
            key = min(expected, key=lambda known: float(np.abs(picture[:, 5, 7] - known).max()))
            assert np.abs(picture[:, 5, 7] - key).max() < 2e-3
            assert expected[key] == label


def test_files_that_are_something_else(tmp_path: Path):
    def message(split="train") -> str:
        module._pictures.cache_clear()
        with pytest.raises(InputError) as caught:
            Images(folder=str(tmp_path)).sample(1, 1, split=split, seed=0)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "data_batch_1.bin: No such file" in message()
    (tmp_path / "data_batch_1").write_bytes(b"pickle")
    assert "the Python version is there; the binary version is needed" in message()
    cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(b"\0" * 3074)
    assert "data_batch_3.bin has 3,074 bytes" in message()
    (tmp_path / "test_batch.bin").write_bytes(b"")
    assert "test_batch.bin has 0 bytes" in message("test")
    (tmp_path / "test_batch.bin").write_bytes(b"\0" * 3073 + b"\x0a" + b"\0" * 3072)
    assert "test_batch.bin: picture 2 has label 10; labels are 0 to 9" in message("test")


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"folder": ""}, {}, "folder '' is not the path of a folder"),
        ({"folder": 3}, {}, "folder 3 is not the path of a folder"),
        ({}, {"size": 0}, "size 0 is impossible for images: 1 to 8 places a side"),
        ({}, {"size": 9}, "size 9 is impossible"),
        ({}, {"count": 0}, "count 0 is too small"),
        ({}, {"count": 2**21}, "count 2097152 is too large"),
        ({}, {"split": "dev"}, "unknown split 'dev'"),
    ],
)
def test_impossible_requests(options: dict, arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        Images(**options).sample(**{"size": 1, "count": 1, "split": "train", "seed": 0, **arguments})
