"""Episodes of pictures that lie in a user's folder."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import InputError
from homeostat.tasks.base import Split
from homeostat.tasks.few_shot.episodes import draw_classes, draw_pictures, streams, whole
from homeostat.tasks.few_shot.picture_files import LEAST_SIDE, MOST_SIDE, read_picture
from homeostat.tasks.few_shot.task import FewShotTask
from homeostat.tasks.random_words import Words


@dataclass(frozen=True)
class FolderTask(FewShotTask):
    """What the tasks on a user's pictures share. A subclass says `classes` and `values`.

    The list of files is read once for a folder, pictures when an episode has them, and both are kept: a folder that
    changes while a process runs is not read again.
    """

    folder: str = ""
    side: int = 28

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.folder, str) and self.folder):
            raise InputError(f"folder {self.folder!r} is not the path of a folder with {self.name}")
        if not (whole(self.side) and LEAST_SIDE <= self.side <= MOST_SIDE):
            raise InputError(f"side {self.side!r} is impossible: {LEAST_SIDE} to {MOST_SIDE} pixels")

    @abstractmethod
    def classes(self, split: Split) -> dict[str, list[Path]]:
        """The pictures of each class of a split, both in an order that does not depend on the file system."""

    @abstractmethod
    def values(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels from 0 to 255 as the inputs of a network, 0 to 1."""

    def turns(self, split: Split) -> int:
        """How many classes each class makes: itself, and itself turned by so many quarters but one."""
        return 1

    def picture_side(self) -> int:
        return self.side

    def draw(self, keys: Words, each: int, split: Split) -> NDArray[np.float32]:
        classes, turns = self.classes(split), self.turns(split)
        names, files = list(classes), list(classes.values())
        there = np.array([len(found) for found in files])
        self.enough(dict(zip(names, there.tolist(), strict=True)), each)
        first, second = streams(keys, 2)
        chosen = draw_classes(first, turns * len(names), self.ways)
        which, quarters = chosen // turns, chosen % turns
        taken = draw_pictures(second, there[which], each)
        pixels = np.empty((*taken.shape, self.channels, self.side, self.side), dtype=np.uint8)
        for place in np.ndindex(taken.shape):
            picture = read_picture(files[which[place[:2]]][taken[place]], self.side, self.channels == 3)
            pixels[place] = np.rot90(picture, int(quarters[place[:2]]), axes=(1, 2))
        return self.values(pixels)
