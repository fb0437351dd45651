"""Mazes as pictures: black walls, white corridors, a green start and a red goal; a path is drawn in blue."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from homeostat.errors import InputError
from homeostat.tasks.base import Puzzle
from homeostat.tasks.maze_text import decode, encode

MOST_PIXELS = 4_000_000
"""A picture with more pixels is refused before it is decoded."""

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM")

# In the order of the kinds of cells: wall, corridor, start, goal, and the path of an answer.
_PAINT = np.array([[0, 0, 0], [255, 255, 255], [0, 170, 0], [220, 0, 0], [0, 114, 178]], dtype=np.uint8)
# Several greens and reds are at home in paint programs; a pixel belongs to the nearest colour.
_COLOURS = np.array(
    [[0, 0, 0], [255, 255, 255], [0, 255, 0], [0, 170, 0], [0, 128, 0], [255, 0, 0], [220, 0, 0], [178, 34, 34]],
    dtype=np.int32,
)
_KINDS = np.array([0, 1, 2, 2, 2, 3, 3, 3], dtype=np.uint8)
_FARTHEST = 110
"""Euclidean distance in RGB beyond which a colour is not guessed: mid-grey and blue lie outside."""

_READABLE_CELL = 12
_LONGEST_SIDE = 1990


def is_picture(data: bytes) -> bool:
    """Whether data begins like a picture file rather than like text.

    Example:
        >>> is_picture(b"\\x89PNG\\r\\n"), is_picture(b"#####")
        (True, False)
    """
    return data.startswith(_MAGIC) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")


def read_picture(data: bytes, *, name: str) -> Puzzle:
    """Read one maze; each of its cells may be one pixel or a square of k x k pixels.

    Transparent parts count as white; palettes and grey levels are converted.

    Args:
        data: a PNG, JPEG, GIF, BMP or WebP file.
        name: where it came from, for the errors.

    Raises:
        InputError: a damaged file, more than 4 million pixels, a colour that is none of the four, or a start or goal
            that is missing or is not one cell.

    Example:
        >>> stream = io.BytesIO()
        >>> puzzle_picture(encode(np.array([[2, 1, 3, 0]])), cell=5).save(stream, "png")
        >>> decode(read_picture(stream.getvalue(), name="maze.png").inputs).tolist()
        [[2, 1, 3, 0]]
    """
    kinds = _reduce(_classify(_pixels(data, name), name))
    for kind, what, colour in ((2, "start", "green"), (3, "goal", "red")):
        count = int((kinds == kind).sum())
        if count == 0:
            raise InputError(f"{name}: the picture has no {what}; paint one cell {colour}")
        if count > 1:
            raise InputError(
                f"{name}: the {what} covers {count:,} cells; paint one cell {colour}, and draw every cell of the "
                "maze as one pixel or as squares of one size, without margins"
            )
    return Puzzle(encode(kinds), "picture")


def puzzle_picture(inputs: Tensor, *, cell: int = 1) -> Image.Image:
    """An unsolved maze as a picture that `read_picture` reads back; `inputs` `(3, height, width)`.

    Args:
        cell: pixels a side of each cell.

    Raises:
        InputError: a cell below one pixel.

    Example:
        >>> puzzle_picture(encode(np.array([[2, 1, 3, 0]])), cell=10).size
        (40, 10)
    """
    if cell < 1:
        raise InputError(f"cell {cell} is too small: at least 1 pixel")
    return _paint(decode(inputs), cell)


def solved_picture(inputs: Tensor, answer: Tensor) -> Image.Image:
    """A maze with the corridors where `answer` is 1 in blue, 12 pixels to a cell or fewer in very large mazes.

    Args:
        inputs: `(3, height, width)`.
        answer: `(height, width)`; what it says about walls, start and goal is not shown.

    Example:
        >>> import torch
        >>> solved_picture(encode(np.array([[2, 1, 3, 0]])), torch.ones(1, 4)).getpixel((18, 6))
        (0, 114, 178)
    """
    kinds = decode(inputs)
    kinds[(kinds == 1) & (answer.cpu().numpy() == 1)] = 4
    return _paint(kinds, max(1, min(_READABLE_CELL, _LONGEST_SIDE // max(kinds.shape))))


def _paint(kinds: np.ndarray, cell: int) -> Image.Image:
    return Image.fromarray(_PAINT[kinds].repeat(cell, axis=0).repeat(cell, axis=1))


def _pixels(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode a picture to `(height, width, 3)`, transparent parts on white."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            width, height = image.size
            if width * height <= MOST_PIXELS:
                if image.mode.startswith("I"):
                    # Pillow clips 16-bit grey levels at 255 where it should scale them.
                    image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
        except Image.DecompressionBombError:
            raise InputError(f"{name}: the picture has more than {MOST_PIXELS:,} pixels; draw it smaller") from None
        except Exception as error:
            # Decoders of damaged files raise errors of every type, not only OSError.
            raise InputError(f"{name}: the picture cannot be decoded ({error}); save it again as PNG") from None
    raise InputError(
        f"{name}: the picture is {width} x {height}, more than {MOST_PIXELS:,} pixels; draw each cell with fewer"
    )


def _classify(pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """The kind of cell that each pixel shows, by its nearest colour."""
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    found, where = np.unique(packed, return_inverse=True)
    colours = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
    apart = ((colours[:, None] - _COLOURS) ** 2).sum(2)
    where = where.reshape(packed.shape)
    unknown = apart.min(1) > _FARTHEST**2
    if unknown.any():
        rows, columns = np.nonzero(unknown[where])
        raise InputError(
            f"{name}: pixel ({columns[0]}, {rows[0]}) has the colour #{packed[rows[0], columns[0]]:06x}; "
            "use black for walls, white for corridors, green for the start, red for the goal"
        )
    return _KINDS[apart.argmin(1)][where]


def _reduce(kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One cell for each k x k pixels.

    The greatest common divisor of the sides and of every place where the kind changes is k: the start is one cell, so
    its two edges alone rule out any larger divisor.
    """
    height, width = kinds.shape
    rows = np.flatnonzero((kinds[1:] != kinds[:-1]).any(1)) + 1
    columns = np.flatnonzero((kinds[:, 1:] != kinds[:, :-1]).any(0)) + 1
    cell = int(np.gcd.reduce(np.concatenate([rows, columns, [height, width]])))
    return kinds[::cell, ::cell]
