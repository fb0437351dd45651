"""Pictures in the user's own folders: read when they are needed, made square and small, and kept."""

import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from homeostat.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
"""Endings of the files that count as pictures."""

LEAST_SIDE, MOST_SIDE = 8, 512
_KEPT = 2**15
"""Pictures that are kept: all of Omniglot, 26 MB at 28 pixels a side, or half of mini-ImageNet, 0.7 GB at 84."""


@lru_cache(maxsize=_KEPT)
def read_picture(path: Path, side: int, colour: bool) -> NDArray[np.uint8]:
    """One picture of `side` x `side` pixels, `(1 or 3, side, side)`; what is not square is squeezed.

    Args:
        colour: three channels, or one of grey levels.

    Raises:
        InputError: a file that is missing or damaged, named.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> Image.new("RGB", (3, 5), (7, 7, 7)).save(path)
        >>> read_picture(path, 2, False).tolist()
        [[[7, 7], [7, 7]]]
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                # Black and white becomes grey before it is made smaller, so that thin strokes fade, not vanish.
                small = image.convert("RGB" if colour else "L").resize((side, side), Image.Resampling.BOX)
        except OSError as error:
            raise InputError(f"cannot read the picture {path}: {error.strerror or 'it is damaged or none'}") from None
        except Exception as error:
            # Decoders of damaged files raise errors of every type, not only OSError.
            raise InputError(f"cannot read the picture {path}: it is damaged ({error})") from None
    pixels = np.asarray(small)
    pixels = pixels.transpose(2, 0, 1) if colour else pixels[None]
    pixels.flags.writeable = False  # it is shared by all who ask for it
    return pixels


def existing_folder(folder: str, what: str) -> Path:
    """The folder that the user named.

    Raises:
        InputError: it is not there.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InputError(f"there is no folder {path} with {what}; nothing is downloaded")
    return path
