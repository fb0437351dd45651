"""Sudokus as pictures: givens in black, answers in blue."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from homeostat.tasks.sudoku_geometry import geometry

_CELL, _MARGIN, _THIN, _THICK = 40, 10, 1, 3
_BLACK, _BLUE, _RED, _GREY, _WHITE = (0, 0, 0), (0, 114, 178), (213, 94, 0), (150, 150, 150), (255, 255, 255)


def draw_grid(givens: np.ndarray, answer: np.ndarray) -> Image.Image:
    """A grid of `(side, side)` givens, blanks 0, with the answer in blue where it is blank.

    Where an answer changes a given, the given stands and its cell is framed in orange.

    Example:
        >>> draw_grid(np.eye(4, dtype=int), np.full((4, 4), 2)).size
        (180, 180)
    """
    geo = geometry(len(givens))
    length = geo.side * _CELL
    image = Image.new("RGB", (length + 2 * _MARGIN, length + 2 * _MARGIN), _WHITE)
    pen = ImageDraw.Draw(image)
    for step, thick in ((1, False), (0, True)):  # thick lines last, over the thin ones
        for line in range(geo.side + 1):
            at = _MARGIN + line * _CELL
            for box, vertical in ((geo.box_rows, False), (geo.box_columns, True)):
                if (line % box == 0) != thick:
                    continue
                ends = (at, _MARGIN, at, _MARGIN + length) if vertical else (_MARGIN, at, _MARGIN + length, at)
                pen.line(ends, fill=_GREY if step else _BLACK, width=_THICK if thick else _THIN)
    font = ImageFont.load_default(size=_CELL * 0.6)
    for row, column in np.ndindex(givens.shape):
        given, filled = int(givens[row, column]), int(answer[row, column])
        left, top = _MARGIN + column * _CELL, _MARGIN + row * _CELL
        centre = (left + _CELL / 2, top + _CELL / 2)
        pen.text(centre, str(given or filled), fill=_BLACK if given else _BLUE, font=font, anchor="mm")
        if given and given != filled:
            pen.rectangle((left + 4, top + 4, left + _CELL - 4, top + _CELL - 4), outline=_RED, width=2)
    return image
