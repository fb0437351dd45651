"""Omniglot from the user's own folder: 1,623 hand-drawn characters of 50 alphabets, 20 drawings each."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import InputError
from homeostat.tasks.base import Split
from homeostat.tasks.few_shot.folders import FolderTask
from homeostat.tasks.few_shot.picture_files import PICTURES, existing_folder

_PARTS: dict[Split, str] = {"train": "images_background", "test": "images_evaluation"}


@dataclass(frozen=True)
class Omniglot(FolderTask):
    """Episodes of Omniglot by the split of its authors (Lake, Salakhutdinov, Tenenbaum 2015).

    The 964 characters of the 30 alphabets in `images_background` are the classes of training, the 659 of the 20
    alphabets in `images_evaluation` those of the test. The split of Vinyals et al. (2016), 1,200 characters against
    the others, mixes the alphabets and is an easier one: figures under one are not comparable with the other.

    Args:
        folder: with `images_background/ALPHABET/CHARACTER/*.png` and `images_evaluation/...`, as the authors' archives
            unpack. Nothing is ever downloaded.
        side: pixels a side, 8 to 512. Drawings of 105 pixels are averaged down; ink is 1, paper 0.
        rotations: a training character turned by 90, 180 and 270 degrees makes three more classes. The test has none.

    Raises:
        InputError: an option outside its range; folders or pictures that are missing or cannot be read.
    """

    folder: str = "omniglot"
    side: int = 28
    rotations: bool = False

    name: ClassVar[str] = "omniglot"
    summary: ClassVar[str] = "new characters of Omniglot, from your own folder"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rotations, bool):
            raise InputError(f"rotations {self.rotations!r} is neither true nor false")

    def classes(self, split: Split) -> dict[str, list[Path]]:
        return _characters(self.folder, split)

    def turns(self, split: Split) -> int:
        return 4 if self.rotations and split == "train" else 1

    def values(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.float32(1) - pixels.astype(np.float32) / np.float32(255)


@lru_cache(maxsize=4)
def _characters(folder: str, split: Split) -> dict[str, list[Path]]:
    part = existing_folder(folder, f"{_PARTS['train']} and {_PARTS['test']} of Omniglot") / _PARTS[split]
    if not part.is_dir():
        raise InputError(f"{part.parent} has no {part.name}, which holds the characters of the {split} split")
    found: dict[str, list[Path]] = {}
    for character in sorted(path for path in part.glob("*/*") if path.is_dir()):
        found[f"{character.parent.name}/{character.name}"] = sorted(
            path for path in character.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith(".")
        )
    if not found:
        raise InputError(f"{part} has no characters: folders ALPHABET/CHARACTER with pictures are needed")
    return found
