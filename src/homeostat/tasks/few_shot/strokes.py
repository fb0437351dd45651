"""Characters out of strokes: a class is a few curves, a drawing is how a hand gets them onto paper.

Everything here is made up, down to the pen; there is no alphabet behind it and no end of characters.
"""

import numpy as np
from numpy.typing import NDArray

from homeostat.tasks.random_words import Words, random_below, random_words

Floats = NDArray[np.float64]

_STROKES = 4
"""Most strokes of a character; it has at least two, so that two characters rarely look alike."""
_POINTS = 32
"""Points on a stroke, through which the pen goes."""
_FLATTEST = 0.5
_CANDIDATES = 3
_WORDS = 6 + 2 * _CANDIDATES
"""Random words that a stroke takes."""
_CHUNK = 1024

# How much two drawings of one character differ, in half sides of the character: of every control point by itself,
# then of the whole drawing.
_WOBBLE, _TURN, _SHEAR, _SHIFT = 0.13, 0.4, 0.3, 0.4
_SCALES = (0.7, 1.1)
_PENS = (0.026, 0.042)
"""Standard deviation of the pen's profile, in sides of the picture."""


def control_points(characters: Words) -> tuple[Floats, NDArray[np.bool_]]:
    """The strokes of each character as cubic Bezier curves.

    A stroke begins anywhere or, two times in three, at the beginning, middle or end of the one before it. It goes to
    the farthest of three random points, straight one time in three, else bent once or twice.

    Returns:
        `(characters, 4, 4, 2)` control points, such that the character fills -1 to 1 along both sides or, if it is
        flatter than 2 to 1, becomes twice as thick; and `(characters, 4)`, which of the strokes are there.

    Example:
        >>> points, there = control_points(np.array([1, 2], dtype=np.uint64))
        >>> points.shape, there.sum(1).tolist()
        ((2, 4, 4, 2), [3, 3])
    """
    words = random_words(characters, 1 + _STROKES * _WORDS)
    there = np.arange(_STROKES) < 2 + random_below(words[:, :1], _STROKES - 1)
    drawn = words[:, 1:].reshape(-1, _STROKES, _WORDS)
    uniform = _uniform(drawn)
    points = np.empty((len(characters), _STROKES, 4, 2))
    rows = np.arange(len(characters))
    for stroke in range(_STROKES):
        begin = 2 * uniform[:, stroke, :2] - 1
        if stroke:
            attached = random_below(drawn[:, stroke, 2], 9)
            before = points[:, stroke - 1]
            places = np.stack([before[:, 0], _curve(before, 3)[:, 1], before[:, 3]], axis=1)
            begin = np.where((attached < 6)[:, None], places[rows, attached % 3], begin)
        ends = 2 * uniform[:, stroke, 6:].reshape(-1, _CANDIDATES, 2) - 1
        far = np.square(ends - begin[:, None]).sum(2).argmax(1)
        chord = ends[rows, far] - begin
        bends = 2 * uniform[:, stroke, 3:5] - 1
        bends[random_below(drawn[:, stroke, 5], 3) == 0] = 0
        across = np.stack([-chord[:, 1], chord[:, 0]], axis=1)
        for place in range(4):
            points[:, stroke, place] = begin + chord * (place / 3)
        points[:, stroke, 1:3] += 1.2 * bends[..., None] * across[:, None]
    return _fitted(points, there), there


def draw_characters(characters: Words, drawings: Words, side: int) -> NDArray[np.float32]:
    """One drawing of each character, a picture of `side` x `side` pixels with ink from 0 to 1.

    The control points wobble; the drawing is turned by up to 23 degrees, sheared, scaled along each axis, shifted, and
    drawn with a thicker or thinner pen. The pen has a Gaussian profile along the curve, cut off above and below,
    which gives smooth edges; as a Gaussian is a product of one along each axis, a picture is a product of matrices.

    Args:
        characters: `(n,)`, one word that is the character.
        drawings: `(n,)`, one word that is the drawing of it.

    Returns:
        `(n, side, side)` float32.

    Example:
        >>> picture = draw_characters(np.array([4], dtype=np.uint64), np.array([5], dtype=np.uint64), 12)[0]
        >>> for row in picture[2:-1]:
        ...     print("".join("-.o#"[round(3 * ink)] for ink in row))
        --##---#----
        ---##--#----
        --#-#--#----
        --o--.-#----
        --#--#-.----
        ---####-----
        -----####.--
        -----##-----
        -------#----
    """
    parts = []
    for first in range(0, len(characters), _CHUNK):
        some = slice(first, first + _CHUNK)
        parts.append(_draw(characters[some], drawings[some], side))
    return np.concatenate(parts)


def _draw(characters: Words, drawings: Words, side: int) -> NDArray[np.float32]:
    points, there = control_points(characters)
    shape = points.shape[1:]
    wobbles = int(np.prod(shape))
    signed = 2 * _uniform(random_words(drawings, wobbles + 7)) - 1
    points = points + _WOBBLE * signed[:, :wobbles].reshape(-1, *shape)
    turn, shear, *rest = signed[:, wobbles:].T
    low, high = _SCALES
    wide, tall = ((low + high) / 2 + (high - low) / 2 * value for value in rest[:2])
    turn, shear = _TURN * turn, _SHEAR * shear
    cosine, sine = np.cos(turn), np.sin(turn)
    turned = np.array([[cosine, -sine], [sine, cosine]]).transpose(2, 0, 1)
    zero = np.zeros_like(wide)
    matrix = turned @ np.array([[wide, shear], [zero, tall]]).transpose(2, 0, 1)
    moved = np.einsum("nij,nskj->nski", matrix, points) + _SHIFT * np.stack(rest[2:4], axis=1)[:, None, None]
    pen = side * (sum(_PENS) / 2 + (_PENS[1] - _PENS[0]) / 2 * rest[4])
    # The middle of the picture is 0; at rest a character fills two thirds of it.
    path = side / 2 * (1 + 0.65 * _curve(moved, _POINTS))
    lengths = np.linalg.norm(np.gradient(path, axis=2), axis=3) * there[..., None]
    path, lengths = path.reshape(len(path), -1, 2), lengths.reshape(len(path), -1)
    pixels = np.arange(side) + 0.5
    profile = np.exp(-0.5 * np.square((path[..., None] - pixels) / pen[:, None, None, None]))  # (n, points, 2, side)
    weights = lengths / (np.sqrt(2 * np.pi) * pen[:, None])
    ink = np.einsum("nk,nky,nkx->nyx", weights, profile[:, :, 1], profile[:, :, 0], optimize=True)
    return np.clip(2 * ink - 0.5, 0, 1).astype(np.float32)


def _uniform(words: Words) -> Floats:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _curve(points: Floats, count: int) -> Floats:
    """`(..., 4, 2)` control points to `(..., count, 2)` points of the curve."""
    t = np.linspace(0, 1, count)
    weights = np.stack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], axis=1)
    return weights @ points


def _fitted(points: Floats, there: NDArray[np.bool_]) -> Floats:
    curve = _curve(points, _POINTS)
    low = np.where(there[..., None, None], curve, np.inf).min((1, 2))
    high = np.where(there[..., None, None], curve, -np.inf).max((1, 2))
    reach = (high - low) / 2
    # A flat one is stretched across, as by a hand that fills the line, but a straight one stays straight.
    reach = np.maximum(reach, _FLATTEST * reach.max(1, keepdims=True))
    return (points - ((low + high) / 2)[:, None, None]) / reach[:, None, None]
