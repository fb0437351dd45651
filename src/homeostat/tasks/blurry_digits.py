"""Blurry digits: which digit is on a blurred and noisy picture.

The one task here with a label for the whole input. Whether thinking longer helps a classifier on pictures worse than
those it was trained on is an open question, not a theorem: there is no distance that information must cross.

The source paper trains on blurry MNIST, but how it blurs could not be read there. The definition here is our own.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from homeostat.checks import plain_numbers
from homeostat.errors import InputError
from homeostat.tasks.base import Batch, LabelTask, Split
from homeostat.tasks.idx_files import read_idx
from homeostat.tasks.picture_sources import MOST_PIXELS, bundled_digits, in_rounds, picture_hash
from homeostat.tasks.random_words import Words, candidate_keys, random_words
from homeostat.tasks.split import check_request, in_split

_MOST_SIZE = 64
_PARTS = ("train", "t10k")


@dataclass(frozen=True)
class BlurryDigits(LabelTask):
    """Digits under a Gaussian blur, which is the difficulty dial, and Gaussian noise.

    A picture has ink from 0 to 1. It is blurred with a standard deviation of `size` / 4 pixels (ink beyond the edge is
    0, the kernel ends at 4 standard deviations), then independent noise is added to each pixel. The blur is in pixels
    of the picture: size 8 wipes out most of an 8 x 8 picture and little of a 28 x 28 one.

    Inputs `(batch, 1, height, width)` float32; targets `(batch,)` int64, the digit; outputs `(batch, 10)` logits.

    The split is a hash of the sharp picture: one of the test split is trained on at no blur. Each of the `count`
    instances is another picture until all of the split have come, in an order that the seed decides.

    Args:
        noise: standard deviation of the noise of a pixel, where full ink is 1.
        folder: with the user's own MNIST, as IDX files under their usual names (`train-images-idx3-ubyte` and
            `train-labels-idx1-ubyte`, or `t10k-...`, with or without `.gz`). All that is there is pooled and split
            anew. None takes the 1,797 digits of 8 x 8 pixels that come with scikit-learn. Nothing is ever downloaded.

    Raises:
        InputError: an option outside its range; scikit-learn or the files are missing; files that cannot be read.

    Example:
        >>> task = BlurryDigits()
        >>> inputs, targets = task.sample(2, 5, split="train", seed=0)
        >>> tuple(inputs.shape), tuple(targets.shape)
        ((5, 1, 8, 8), (5,))
    """

    noise: float = 0.0
    folder: str | None = None

    name: ClassVar[str] = "blurry-digits"
    summary: ClassVar[str] = "the digit on a blurred picture"
    size_name: ClassVar[str] = "quarter pixels of blur"
    sizes: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 5, 6)
    spatial_dims: ClassVar[int] = 2
    in_channels: ClassVar[int] = 1
    classes: ClassVar[int] = 10

    def __post_init__(self) -> None:
        plain_numbers(self)
        number = isinstance(self.noise, int | float) and not isinstance(self.noise, bool)
        if not number or not 0 <= self.noise < math.inf:
            raise InputError(f"noise {self.noise!r} is not a standard deviation: a number of 0 or more")
        if self.folder is not None and not (isinstance(self.folder, str) and self.folder):
            raise InputError(f"folder {self.folder!r} is not the path of a folder with IDX files")

    def sample(self, size: int, count: int, *, split: Split, seed: int) -> Batch:
        """`count` pictures with a blur of `size` / 4 pixels.

        Raises:
            InputError: a size below 1 or above 64; pictures that cannot be had; a split without any of them.
        """
        if not 1 <= size <= _MOST_SIZE:
            raise InputError(f"size {size} is impossible for {self.name}: 1 to {_MOST_SIZE} quarter pixels of blur")
        check_request(split, count)
        images, labels = _digits(self.folder)
        mine = np.flatnonzero(in_split(picture_hash(images), split))
        if not len(mine):
            raise InputError(f"none of the {len(images)} pictures falls into the {split} split; give more of them")
        if count * images[0].size > MOST_PIXELS:
            raise InputError(f"count {count} is too large: {MOST_PIXELS:,} pixels at once, ask for them in parts")
        keys = candidate_keys(0, count, seed=seed, size=size, split=int(split == "test"))
        chosen = mine[in_rounds(len(mine), count, seed)]
        ink = images[chosen].astype(np.float64) / images.max()
        sigma = size / 4
        ink = gaussian_filter(ink, sigma=(0, sigma, sigma), mode="constant", truncate=4.0)
        if self.noise > 0:
            ink += self.noise * _gaussian(keys, ink[0].size).reshape(ink.shape)
        return Batch(torch.from_numpy(ink.astype(np.float32))[:, None], torch.from_numpy(labels[chosen]))


def _gaussian(keys: Words, count: int) -> NDArray[np.float64]:
    """`(len(keys), count)` standard normal numbers by the Box-Muller transform."""
    half = -(-count // 2)
    words = random_words(keys, 2 * half) >> np.uint64(11)
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:, :half])), 2 * np.pi * uniform[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]


@lru_cache(maxsize=2)
def _digits(folder: str | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures `(pictures, height, width)` and the digits on them."""
    if folder is None:
        return bundled_digits("blurry-digits", instead=", or name a folder with MNIST's IDX files")
    return _from_folder(Path(folder).expanduser())


def _from_folder(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = [], []
    for part in _PARTS:
        picture_file = _find(folder, f"{part}-images-idx3-ubyte")
        label_file = _find(folder, f"{part}-labels-idx1-ubyte")
        if picture_file is None and label_file is None:
            continue
        if picture_file is None or label_file is None:
            there, missing = ("labels", "images") if picture_file is None else ("images", "labels")
            raise InputError(f"{folder} has {part}-{there} without {part}-{missing}: both are needed")
        images.append(read_idx(picture_file, 3))
        labels.append(read_idx(label_file, 1))
        if len(images[-1]) != len(labels[-1]):
            raise InputError(
                f"{picture_file} has {len(images[-1]):,} pictures and {label_file.name} {len(labels[-1]):,} labels"
            )
        if labels[-1].max() > 9:
            row = int(labels[-1].argmax())
            raise InputError(f"{label_file}: label {row + 1} is {labels[-1][row]}; labels are the digits 0 to 9")
    if not images:
        raise InputError(
            f"{folder} has no train-images-idx3-ubyte or t10k-images-idx3-ubyte (.gz too); nothing is downloaded"
        )
    if len({found.shape[1:] for found in images}) > 1:
        raise InputError(f"{folder}: the pictures of {' and '.join(_PARTS)} differ in size")
    if not any(found.max() for found in images):
        raise InputError(f"{folder}: every picture is blank")
    return np.concatenate(images), np.concatenate(labels).astype(np.int64)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
