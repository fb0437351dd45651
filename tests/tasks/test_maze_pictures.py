"""Mazes as pictures: what is drawn is read back in every mode and scale, and damaged files give one line."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from homeostat.errors import InputError
from homeostat.tasks import Mazes
from homeostat.tasks.maze_pictures import puzzle_picture

TASK = Mazes()


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def maze(size: int = 4, seed: int = 0) -> torch.Tensor:
    return TASK.sample(size, 1, split="train", seed=seed).inputs[0]


@given(st.integers(2, 6), st.integers(0, 10**6), st.integers(1, 9), st.sampled_from(["PNG", "BMP", "GIF", "WEBP"]))
@settings(max_examples=30, deadline=None)
def test_reading_what_was_drawn(size, seed, cell, kind):
    inputs = maze(size, seed)
    options = {"lossless": True} if kind == "WEBP" else {}
    (puzzle,) = TASK.parse(encoded(puzzle_picture(inputs, cell=cell), kind, **options), name="maze")
    assert torch.equal(puzzle.inputs, inputs)


def test_a_jpeg_of_good_quality():
    inputs = maze()
    picture = puzzle_picture(inputs, cell=16)
    (puzzle,) = TASK.parse(encoded(picture, "JPEG", quality=95, subsampling=0), name="maze.jpg")
    assert torch.equal(puzzle.inputs, inputs)


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_other_modes(mode):
    inputs = maze()
    (puzzle,) = TASK.parse(encoded(puzzle_picture(inputs, cell=3).convert(mode)), name="maze.png")
    assert torch.equal(puzzle.inputs, inputs)


def test_transparent_parts_are_corridors():
    inputs = maze()
    pixels = np.asarray(puzzle_picture(inputs).convert("RGBA")).copy()
    pixels[(pixels[..., :3] == 255).all(2)] = (0, 0, 0, 0)
    (puzzle,) = TASK.parse(encoded(Image.fromarray(pixels)), name="maze.png")
    assert torch.equal(puzzle.inputs, inputs)


@pytest.mark.parametrize("start", [(0, 255, 0), (0, 128, 0), (46, 160, 67)])
@pytest.mark.parametrize("goal", [(255, 0, 0), (178, 34, 34), (214, 39, 40)])
def test_everyday_greens_and_reds(start, goal):
    inputs = maze()
    pixels = np.asarray(puzzle_picture(inputs)).copy()
    pixels[inputs[1].numpy() == 1] = start
    pixels[inputs[2].numpy() == 1] = goal
    pixels[inputs[0].numpy() == 0] = (34, 34, 34)
    (puzzle,) = TASK.parse(encoded(Image.fromarray(pixels)), name="maze.png")
    assert torch.equal(puzzle.inputs, inputs)


def test_solved_picture():
    inputs, targets = (part[0] for part in TASK.sample(4, 1, split="train", seed=0))
    picture = TASK.picture(inputs, targets)
    assert picture.size == (9 * 12, 9 * 12)
    colours = np.asarray(picture)[6::12, 6::12]
    blue = (colours == (0, 114, 178)).all(2)
    assert (blue == (targets.numpy() == 1) & (inputs[1:].sum(0).numpy() == 0)).all()
    assert tuple(colours[inputs[1].numpy() == 1][0]) == (0, 170, 0)
    assert tuple(colours[inputs[2].numpy() == 1][0]) == (220, 0, 0)


def test_a_solved_picture_of_a_huge_maze_stays_within_what_can_be_read():
    inputs = torch.zeros(3, 401, 401)
    inputs[0, 1, 1:-1] = inputs[1, 1, 1] = inputs[2, 1, 399] = 1
    picture = TASK.picture(inputs, torch.zeros(401, 401, dtype=torch.int64))
    (puzzle,) = TASK.parse(encoded(picture), name="maze.png")
    assert torch.equal(puzzle.inputs, inputs)


def painted(**cells: tuple[int, int, int]) -> bytes:
    """A 5 x 3 maze; each keyword `c1` to `c3` paints a corridor cell."""
    pixels = np.zeros((3, 5, 3), dtype=np.uint8)
    for cell, colour in cells.items():
        pixels[1, int(cell[1])] = colour
    return encoded(Image.fromarray(pixels))


GREEN, RED, WHITE, BLACK = (0, 255, 0), (255, 0, 0), (255, 255, 255), (0, 0, 0)


def claimed_size(width: int, height: int) -> bytes:
    """A PNG whose header alone promises a huge picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (painted(c1=WHITE, c2=WHITE, c3=RED), "m.png: the picture has no start; paint one cell green"),
        (painted(c1=GREEN, c2=WHITE, c3=WHITE), "m.png: the picture has no goal; paint one cell red"),
        (
            painted(c1=GREEN, c2=GREEN, c3=RED),
            "m.png: the start covers 2 cells; paint one cell green, and draw every cell of the maze as one pixel or as "
            "squares of one size, without margins",
        ),
        (
            painted(c1=GREEN, c2=(128, 128, 128), c3=RED),
            "m.png: pixel (2, 1) has the colour #808080; use black for walls, white for corridors, green for the "
            "start, red for the goal",
        ),
        (
            painted(c1=GREEN, c2=(0, 114, 178), c3=RED),
            "m.png: pixel (2, 1) has the colour #0072b2; use black for walls, white for corridors, green for the "
            "start, red for the goal",
        ),
        (
            painted(c1=GREEN, c2=BLACK, c3=RED),
            "m.png, picture: the goal cannot be reached from the start; open a way between them",
        ),
        (
            claimed_size(3000, 2000),
            "m.png: the picture is 3000 x 2000, more than 4,000,000 pixels; draw each cell with fewer",
        ),
        (claimed_size(60_000, 60_000), "m.png: the picture has more than 4,000,000 pixels; draw it smaller"),
        (
            claimed_size(10_000, 10_000),
            "m.png: the picture is 10000 x 10000, more than 4,000,000 pixels; draw each cell with fewer",
        ),
    ],
    ids=range(9),
)
def test_bad_pictures(data, message):
    with pytest.raises(InputError) as caught:
        TASK.parse(data, name="m.png")
    assert str(caught.value) == message


@pytest.mark.parametrize("mode", ["L", "1", "I;16"])
def test_grey_pictures_are_understood_and_have_no_start(mode):
    levels = np.array([[0, 255, 0]], dtype=np.uint8)
    image = Image.fromarray(levels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(levels).convert(mode)
    assert image.mode == mode
    with pytest.raises(InputError, match="the picture has no start; paint one cell green"):
        TASK.parse(encoded(image), name="m.png")


@given(st.integers(0, 200), st.integers(0, 255), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_damaged_picture_is_read_or_gives_one_line(place, value, cut):
    data = bytearray(encoded(puzzle_picture(maze(), cell=2)))
    place %= len(data)
    data[place] = value
    message = "m.png"
    try:
        TASK.parse(bytes(data[: place + 8] if cut else data), name="m.png")
    except InputError as error:
        message = str(error)
    assert message.startswith("m.png")
    assert "\n" not in message


def test_a_truncated_picture():
    data = encoded(puzzle_picture(maze(), cell=4))
    with pytest.raises(InputError, match=r"^m.png: the picture cannot be decoded \(.*\); save it again as PNG$"):
        TASK.parse(data[:60], name="m.png")


def test_cell_below_one_pixel():
    with pytest.raises(InputError, match="cell 0 is too small: at least 1 pixel"):
        puzzle_picture(maze(), cell=0)
