"""Few-shot characters: no two episodes need share a class, as there are 2**64 of them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import InputError
from homeostat.tasks.base import Split
from homeostat.tasks.few_shot.episodes import streams, whole
from homeostat.tasks.few_shot.strokes import draw_characters
from homeostat.tasks.few_shot.task import FewShotTask
from homeostat.tasks.random_words import Words, random_words
from homeostat.tasks.split import in_split, instance_hash

_LEAST_SIDE, _MOST_SIDE = 8, 128


@dataclass(frozen=True)
class FewShotCharacters(FewShotTask):
    """Episodes of characters that are made up of two to four strokes, each drawing a little different.

    A character is a 64-bit word, from which its strokes follow; the split is a hash of the word. Two characters may
    look alike by chance, within an episode or over the split, as some letters of real alphabets do.

    Args:
        side: pixels a side, 8 to 128.

    Example:
        >>> task = FewShotCharacters(ways=3, queries=4)
        >>> inputs, targets = task.sample(2, 5, split="train", seed=0)
        >>> {name: tuple(part.shape) for name, part in inputs.items()}
        {'support_inputs': (5, 6, 1, 20, 20), 'support_targets': (5, 6), 'query_inputs': (5, 12, 1, 20, 20)}
        >>> inputs["support_targets"][0].sort().values
        tensor([0, 0, 1, 1, 2, 2])
    """

    side: int = 20

    name: ClassVar[str] = "few-shot-characters"
    summary: ClassVar[str] = "new made-up characters, told apart after a few drawings of each"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (whole(self.side) and _LEAST_SIDE <= self.side <= _MOST_SIDE):
            raise InputError(f"side {self.side!r} is impossible: {_LEAST_SIDE} to {_MOST_SIDE} pixels")

    def picture_side(self) -> int:
        return self.side

    def draw(self, keys: Words, each: int, split: Split) -> NDArray[np.float32]:
        first, second = streams(keys, 2)
        characters = new_characters(first, self.ways, split)
        drawings = random_words(second, self.ways * each)
        pictures = draw_characters(characters.repeat(each, axis=1).reshape(-1), drawings.reshape(-1), self.side)
        return pictures.reshape(len(keys), self.ways, each, 1, self.side, self.side)


def new_characters(keys: Words, count: int, split: Split) -> Words:
    """`(len(keys), count)` characters of a split: for each place the first random word that belongs to it.

    Example:
        >>> found = new_characters(np.array([3, 4], dtype=np.uint64), 5, "test")
        >>> bool(in_test_split(found).all()), len(np.unique(found))
        (True, 10)
    """
    found = np.empty((len(keys), count), dtype=np.uint64)
    missing = np.ones(found.shape, dtype=bool)
    attempt = 0
    while missing.any():
        words = random_words(keys, count, first=attempt * count)
        fits = missing & (in_test_split(words) == (split == "test"))
        found[fits] = words[fits]
        missing &= ~fits
        attempt += 1
    return found


def in_test_split(characters: Words) -> NDArray[np.bool_]:
    """Which characters, of any shape, belong to the test split: one in eight."""
    bits = np.zeros((characters.size, 0), dtype=bool)
    return in_split(instance_hash(bits, characters.reshape(-1).view(np.int64)), "test").reshape(characters.shape)
