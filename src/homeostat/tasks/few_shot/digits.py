"""Few-shot digits: five digits to learn to learn from, five others to be tested on."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import InputError
from homeostat.tasks.base import Split
from homeostat.tasks.few_shot.episodes import draw_classes, draw_pictures, streams
from homeostat.tasks.few_shot.task import FewShotTask
from homeostat.tasks.picture_sources import bundled_digits
from homeostat.tasks.random_words import Words

_DIGITS: dict[Split, range] = {"train": range(5), "test": range(5, 10)}


@dataclass(frozen=True)
class FewShotDigits(FewShotTask):
    """Episodes of scikit-learn's digits, 8 x 8 pixels: 0 to 4 are the classes of training, 5 to 9 those of the test.

    Ten classes are few: what is learned from five of them need not carry over, and intervals over episodes do not
    say how the result would be with other digits.

    Args:
        ways: 2 to 5.

    Raises:
        InputError: more ways than digits of a split; scikit-learn is missing.

    Example:
        >>> inputs, targets = FewShotDigits(ways=3, queries=2).sample(1, 4, split="test", seed=0)
        >>> inputs["query_inputs"].shape, targets[0].sort().values
        (torch.Size([4, 6, 1, 8, 8]), tensor([0, 0, 1, 1, 2, 2]))
    """

    name: ClassVar[str] = "few-shot-digits"
    summary: ClassVar[str] = "digits that training never saw, told apart after a few pictures of each"

    def __post_init__(self) -> None:
        super().__post_init__()
        most = len(_DIGITS["train"])
        if self.ways > most:
            raise InputError(f"ways {self.ways} is too many for {self.name}: each split has {most} digits")

    def picture_side(self) -> int:
        return 8

    def draw(self, keys: Words, each: int, split: Split) -> NDArray[np.float32]:
        pictures, places = _by_digit()
        digits = _DIGITS[split]
        there = np.array([len(places[digit]) for digit in digits])
        self.enough({f"digit {digit}": len(places[digit]) for digit in digits}, each)
        first, second = streams(keys, 2)
        chosen = draw_classes(first, len(digits), self.ways)
        taken = draw_pictures(second, there[chosen], each)
        found = np.empty(taken.shape, dtype=np.int64)
        for place, digit in enumerate(digits):
            found[chosen == place] = places[digit][taken[chosen == place]]
        return pictures[found][:, :, :, None]


@lru_cache(maxsize=1)
def _by_digit() -> tuple[NDArray[np.float32], list[NDArray[np.int64]]]:
    """Pictures from 0 to 1, and for each digit where its pictures are."""
    pictures, labels = bundled_digits("few-shot-digits")
    return (pictures / 16).astype(np.float32), [np.flatnonzero(labels == digit) for digit in range(10)]
