"""Blurry digits against a convolution written out, its split by picture, and a user's own MNIST."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from homeostat.errors import InputError
from homeostat.tasks import BlurryDigits
from homeostat.tasks.blurry_digits import _digits
from homeostat.tasks.picture_sources import picture_hash
from homeostat.tasks.split import in_split


@pytest.fixture(autouse=True)
def _fresh():
    _digits.cache_clear()


def idx(values: np.ndarray) -> bytes:
    values = values.astype(np.uint8)
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def mnist(folder: Path, part: str, count: int, *, seed: int = 0, pixels: int = 6, ending: str = "") -> np.ndarray:
    """Random pictures whose label is their first pixel modulo 10; the last one holds a 255."""
    images = np.random.default_rng(seed).integers(0, 255, (count, pixels, pixels))
    images[-1, -1, -1] = 255
    pack = gzip.compress if ending else bytes
    (folder / f"{part}-images-idx3-ubyte{ending}").write_bytes(pack(idx(images)))
    (folder / f"{part}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(images[:, 0, 0] % 10)))
    return images


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Sum over all pairs of pixels, with the weights of a Gaussian that ends at 4 standard deviations."""
    reach = int(4 * sigma + 0.5)
    weights = {d: np.exp(-0.5 * (d / sigma) ** 2) for d in range(-reach, reach + 1)}
    total, (height, width) = sum(weights.values()), image.shape
    result = np.zeros(image.shape)
    for y, x in np.ndindex(image.shape):
        for dy, wy in weights.items():
            for dx, wx in weights.items():
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    result[y, x] += wy * wx / total**2 * image[y + dy, x + dx]
    return result


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_blur_is_the_one_that_is_stated(tmp_path, size):
    images = mnist(tmp_path, "train", 30)
    inputs, targets = BlurryDigits(folder=str(tmp_path)).sample(size, 3, split="train", seed=1)
    assert (inputs.shape, inputs.dtype) == ((3, 1, 6, 6), torch.float32)
    assert (targets.shape, targets.dtype) == ((3,), torch.int64)
    expected = np.stack([blurred(image / 255, size / 4) for image in images])
    for picture, label in zip(inputs[:, 0].numpy(), targets, strict=True):
        distances = np.abs(expected - picture).max((1, 2))
        assert distances.min() < 1e-6
        assert images[distances.argmin(), 0, 0] % 10 == label


def test_no_picture_of_the_test_split_is_ever_trained_on(tmp_path):
    images = mnist(tmp_path, "train", 60, pixels=3)
    images[1::2] = images[::2]  # every picture twice
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    task = BlurryDigits(folder=str(tmp_path))
    seen = {}
    for split in ("train", "test"):
        found = [task.sample(1, 100, split=split, seed=seed).inputs for seed in range(3)]
        seen[split] = {picture.numpy().tobytes() for picture in torch.cat(found)}
    assert not seen["train"] & seen["test"]
    assert len(seen["train"] | seen["test"]) == len(np.unique(images, axis=0))


def test_about_one_digit_in_eight_is_test():
    images, labels = _digits(None)
    assert (images.shape, images.max(), labels.max()) == ((1797, 8, 8), 16, 9)
    test = in_split(picture_hash(images), "test")
    assert abs(test.mean() - 1 / 8) < 5 * (1 / 8 * 7 / 8 / 1797) ** 0.5
    assert set(labels[test]) == set(range(10))


def test_each_picture_comes_once_before_any_comes_again(tmp_path):
    mnist(tmp_path, "t10k", 40)
    task = BlurryDigits(folder=str(tmp_path))
    count = int(in_split(picture_hash(_digits(str(tmp_path))[0]), "train").sum())
    batch = task.sample(1, 2 * count + 5, split="train", seed=3).inputs
    for first in (0, count):
        assert len({picture.numpy().tobytes() for picture in batch[first : first + count]}) == count
    assert not torch.equal(batch[:count], batch[count : 2 * count])
    assert torch.equal(task.sample(1, 7, split="train", seed=3).inputs, batch[:7])
    assert not torch.equal(task.sample(1, 7, split="train", seed=4).inputs, batch[:7])


def test_noise_has_the_stated_strength_and_is_independent():
    quiet, noisy = (BlurryDigits(noise=noise).sample(2, 1_000, split="train", seed=0) for noise in (0, 0.3))
    noise = (noisy.inputs - quiet.inputs).double().flatten(1)
    assert torch.equal(noisy.targets, quiet.targets)
    assert abs(noise.std() - 0.3) < 5 * 0.3 / (2 * noise.numel()) ** 0.5
    assert abs(noise.mean()) < 5 * 0.3 / noise.numel() ** 0.5
    correlation = torch.corrcoef(noise.T) - torch.eye(64, dtype=torch.float64)
    assert correlation.abs().max() < 6 / 1_000**0.5
    kurtosis = ((noise / 0.3) ** 4).mean()
    assert abs(kurtosis - 3) < 5 * (96 / noise.numel()) ** 0.5


def test_both_parts_and_gzip(tmp_path):
    mnist(tmp_path, "train", 5, ending=".gz")
    mnist(tmp_path, "t10k", 4, seed=1)
    assert len(_digits(str(tmp_path))[1]) == 9


def test_what_can_be_wrong_with_a_folder(tmp_path):
    def message(folder: Path = tmp_path) -> str:
        _digits.cache_clear()
        with pytest.raises(InputError) as caught:
            BlurryDigits(folder=str(folder)).sample(1, 1, split="train", seed=0)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert message(tmp_path / "none").endswith("(.gz too); nothing is downloaded")
    mnist(tmp_path, "train", 5)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.unlink()
    assert message() == f"{tmp_path} has train-images without train-labels: both are needed"
    labels.write_bytes(idx(np.zeros(4)))
    assert message().endswith("train-images-idx3-ubyte has 5 pictures and train-labels-idx1-ubyte 4 labels")
    labels.write_bytes(idx(np.array([0, 1, 10, 2, 3])))
    assert message() == f"{labels}: label 3 is 10; labels are the digits 0 to 9"
    labels.write_bytes((tmp_path / "train-images-idx3-ubyte").read_bytes())
    assert message() == f"{labels} has 3 dimensions where 1 are needed; are images and labels mixed up?"
    labels.write_bytes(idx(np.zeros(5)))
    mnist(tmp_path, "t10k", 3, pixels=7)
    assert message() == f"{tmp_path}: the pictures of train and t10k differ in size"
    for part, count, pixels in (("train", 5, 6), ("t10k", 3, 6)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(np.zeros((count, pixels, pixels))))
    assert message() == f"{tmp_path}: every picture is blank"


def test_a_folder_too_small_for_a_test_split(tmp_path):
    images = mnist(tmp_path, "train", 1)
    empty = "train" if in_split(picture_hash(images.astype(np.uint8)), "test")[0] else "test"
    with pytest.raises(InputError, match=f"none of the 1 pictures falls into the {empty} split; give more of them"):
        BlurryDigits(folder=str(tmp_path)).sample(1, 1, split=empty, seed=0)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"which is not installed: pip install 'homeostat\[digits\]'"):
        BlurryDigits().sample(1, 1, split="train", seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1}, "noise -1 is not a standard deviation: a number of 0 or more"),
        ({"noise": float("inf")}, "noise inf is not a standard deviation: a number of 0 or more"),
        ({"noise": True}, "noise True is not a standard deviation: a number of 0 or more"),
        ({"folder": 3}, "folder 3 is not the path of a folder with IDX files"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(InputError) as caught:
        BlurryDigits(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"size": 0}, "size 0 is impossible for blurry-digits: 1 to 64 quarter pixels of blur"),
        ({"size": 65}, "size 65 is impossible for blurry-digits: 1 to 64 quarter pixels of blur"),
        ({"count": 0}, "count 0 is too small: at least 1"),
        ({"count": 2**21}, "count 2097152 is too large: 67,108,864 pixels at once, ask for them in parts"),
        ({"split": "validation"}, "unknown split 'validation': it is one of train, test"),
        ({"seed": -1}, "seed -1 is out of range: 0 to 2**63 - 1"),
    ],
)
def test_impossible_samples(request_, message):
    with pytest.raises(InputError) as caught:
        BlurryDigits().sample(**({"size": 2, "count": 3, "split": "train", "seed": 0} | request_))
    assert str(caught.value) == message
