"""Images: which of ten classes a small, clean picture belongs to.

A task on which every picture is as hard as in training, so that what more steps do is a question about the model and
not about the picture. scikit-learn's digits by default; CIFAR-10 from the user's own folder.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from homeostat.errors import InputError
from homeostat.tasks.base import Batch, LabelTask, Split
from homeostat.tasks.picture_sources import (
    MOST_PIXELS,
    Pictures,
    bundled_digits,
    cifar_10,
    in_rounds,
    picture_hash,
)
from homeostat.tasks.random_words import candidate_keys, random_words
from homeostat.tasks.split import check_request, in_split

# Mean and standard deviation of each channel over the training split, of pixels from 0 to 1.
_DIGITS = ((0.3057,), (0.3763,))
_CIFAR_10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclass(frozen=True)
class Images(LabelTask):
    """Pictures with one label each, normalised per channel.

    Size, the difficulty dial, is the number of places a side: a picture stands at one of size x size places, drawn for
    each instance, up to size // 2 pixels away from where it was. Size 1 is the picture as it is. What comes in at an
    edge is black, as in the usual augmentation by shifts (9 for CIFAR-10: 4 pixels in every direction).

    Inputs `(batch, channels, height, width)` float32: (p - mean) / std with p from 0 to 1. For the digits mean .3057
    and std .3763; for CIFAR-10 (.4914, .4822, .4465) and (.2470, .2435, .2616). Targets `(batch,)` int64; outputs
    `(batch, 10)` logits. Each of the `count` instances is another picture until all of the split have come, in an
    order that the seed decides.

    The digits are split by a hash of the picture, the same split as that of blurry digits; CIFAR-10 has its own.

    Args:
        folder: with the user's own CIFAR-10, in the binary version: `data_batch_1.bin` to `data_batch_5.bin` and
            `test_batch.bin`. None takes the 1,797 digits of 8 x 8 pixels that come with scikit-learn. Nothing is ever
            downloaded.

    Raises:
        InputError: a folder that is none; scikit-learn or the files are missing; files that are something else.

    Example:
        >>> task = Images()
        >>> inputs, targets = task.sample(1, 5, split="train", seed=0)
        >>> tuple(inputs.shape), tuple(targets.shape), task.in_channels
        ((5, 1, 8, 8), (5,), 1)
    """

    folder: str | None = None

    name: ClassVar[str] = "images"
    summary: ClassVar[str] = "the class of a small picture"
    size_name: ClassVar[str] = "places a side"
    sizes: ClassVar[tuple[int, ...]] = (1, 3, 5)
    spatial_dims: ClassVar[int] = 2
    classes: ClassVar[int] = 10

    def __post_init__(self) -> None:
        if self.folder is not None and not (isinstance(self.folder, str) and self.folder):
            raise InputError(f"folder {self.folder!r} is not the path of a folder with CIFAR-10's binary version")

    @property
    def in_channels(self) -> int:  # type: ignore[override]
        """1 for the digits, 3 for CIFAR-10."""
        return 1 if self.folder is None else 3

    def sample(self, size: int, count: int, *, split: Split, seed: int) -> Batch:
        """`count` pictures, each at one of size x size places.

        Raises:
            InputError: a size below 1 or above the side of a picture; pictures that cannot be had.
        """
        check_request(split, count)
        pictures, labels = _pictures(self.folder, split)
        side = pictures.shape[-1]
        if not 1 <= size <= side:
            raise InputError(f"size {size} is impossible for {self.name}: 1 to {side} places a side")
        if count * pictures[0].size > MOST_PIXELS:
            raise InputError(f"count {count} is too large: {MOST_PIXELS:,} pixels at once, ask for them in parts")
        chosen = in_rounds(len(pictures), count, seed)
        ink = pictures[chosen].astype(np.float32) / np.float32(16 if self.folder is None else 255)
        if size > 1:
            ink = _shifted(ink, size, candidate_keys(0, count, seed=seed, size=size, split=int(split == "test")))
        mean, std = (np.array(c, dtype=np.float32)[:, None, None] for c in (_CIFAR_10 if self.folder else _DIGITS))
        return Batch(torch.from_numpy((ink - mean) / std), torch.from_numpy(labels[chosen]))


def _shifted(ink: NDArray[np.float32], size: int, keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Each picture at a place of its own: shifts of -((size - 1) // 2) to size // 2 pixels, down and to the right."""
    before, after = (size - 1) // 2, size // 2
    padded = np.pad(ink, ((0, 0), (0, 0), (after, before), (after, before)))
    corners = (random_words(keys, 2) % np.uint64(size)).astype(np.int64)
    height, width = ink.shape[-2:]
    return np.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)])


@lru_cache(maxsize=4)
def _pictures(folder: str | None, split: Split) -> Pictures:
    """Pictures `(pictures, channels, height, width)` of a split, and their labels."""
    if folder is not None:
        return cifar_10(folder, split)
    pictures, labels = bundled_digits(Images.name, instead=", or name a folder with CIFAR-10's binary version")
    mine = in_split(picture_hash(pictures), split)
    return pictures[mine][:, None], labels[mine]
