"""mini-ImageNet from the user's own folder: 100 kinds of things on 60,000 photographs."""

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import InputError
from homeostat.tasks.base import Split
from homeostat.tasks.few_shot.folders import FolderTask
from homeostat.tasks.few_shot.picture_files import existing_folder

_COLUMNS = ("filename", "label")


@dataclass(frozen=True)
class MiniImageNet(FolderTask):
    """Episodes of mini-ImageNet by the split of Ravi and Larochelle, "Optimization as a Model for Few-Shot Learning"
    (2017): 64 classes to train on, 16 to choose a model by, 20 for the test.

    Args:
        folder: with `train.csv`, `test.csv` and, for `held_out="val"`, `val.csv`, each with the columns `filename` and
            `label`, and with the pictures in `images`. The files say the split; nothing is ever downloaded.
        side: pixels a side, 8 to 512; photographs are squeezed to a square.
        held_out: which classes the split `"test"` has; `"val"` to choose settings without looking at the test.

    Raises:
        InputError: an option outside its range; files that are missing or cannot be read; a picture that a csv file
            names and that is not there; a class that is in training and in the test.
    """

    folder: str = "mini-imagenet"
    side: int = 84
    held_out: Literal["test", "val"] = "test"

    name: ClassVar[str] = "mini-imagenet"
    summary: ClassVar[str] = "new classes of mini-ImageNet, from your own folder"
    channels: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_out not in ("test", "val"):
            raise InputError(f"held_out {self.held_out!r} is unknown: it is one of test, val")

    def classes(self, split: Split) -> dict[str, list[Path]]:
        train, held_out = _both(self.folder, self.held_out)
        return train if split == "train" else held_out

    def values(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return pixels.astype(np.float32) / np.float32(255)


@lru_cache(maxsize=4)
def _both(folder: str, held_out: str) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The pictures of each class of training, and of each that is held out."""
    there = existing_folder(folder, f"train.csv, {held_out}.csv and images of mini-ImageNet")
    images = there / "images"
    if not images.is_dir():
        raise InputError(f"{there} has no folder images with the pictures")
    names = {path.name for path in images.iterdir()}
    train, other = (_listed(there / f"{part}.csv", images, names) for part in ("train", held_out))
    both = sorted(train.keys() & other.keys())
    if both:
        raise InputError(f"{there}: class {both[0]} is in train.csv and in {held_out}.csv; a class has one split")
    return train, other


def _listed(path: Path, images: Path, names: set[str]) -> dict[str, list[Path]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise InputError(f"{path} has no columns {' and '.join(_COLUMNS)} in its first line")
            found: dict[str, list[Path]] = {}
            for row in reader:
                name, label = row["filename"], row["label"]
                if not name or not label:
                    raise InputError(f"{path}, line {reader.line_num}: a filename and a label are needed")
                if name not in names:
                    raise InputError(f"{path}, line {reader.line_num}: {name} of class {label} is not in {images}")
                found.setdefault(label, []).append(images / name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        raise InputError(f"{path} lists no pictures")
    return {label: sorted(found[label]) for label in sorted(found)}
