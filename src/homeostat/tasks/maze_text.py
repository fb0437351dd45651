"""Mazes as ASCII: `#` wall, space or `.` corridor, `S` start, `G` goal, and `*` for a path in an answer."""

import numpy as np
import torch
from torch import Tensor

from homeostat.errors import InputError
from homeostat.tasks.base import Puzzle

_WALL, _FREE, _START, _GOAL = range(4)
_MEANING = {"#": _WALL, " ": _FREE, ".": _FREE, "S": _START, "s": _START}
# Many generators and tutorials call the goal the end or the exit.
_MEANING |= dict.fromkeys("GgEe", _GOAL)


def encode(kinds: np.ndarray) -> Tensor:
    """Kinds of cells `(height, width)` (0 wall, 1 corridor, 2 start, 3 goal) as inputs `(3, height, width)`.

    Example:
        >>> encode(np.array([[2, 1, 3, 0]]))[:, 0].int().tolist()
        [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]]
    """
    return torch.from_numpy(np.stack([kinds != _WALL, kinds == _START, kinds == _GOAL]).astype(np.float32))


def decode(inputs: Tensor) -> np.ndarray:
    """Inputs `(3, height, width)` as kinds of cells, the inverse of `encode`.

    Example:
        >>> decode(encode(np.array([[2, 1, 3, 0]]))).tolist()
        [[2, 1, 3, 0]]
    """
    free, start, goal = inputs.cpu().numpy() > 0
    return np.where(start, _START, np.where(goal, _GOAL, np.where(free, _FREE, _WALL)))


def format_maze(inputs: Tensor, answer: Tensor | None = None) -> str:
    """One maze as ASCII without a newline at the end; corridors where `answer` is 1 become `*`.

    Args:
        inputs: `(3, height, width)`.
        answer: `(height, width)`; what it says about walls, start and goal is not shown.

    Example:
        >>> format_maze(encode(np.array([[2, 1, 3, 0]])))
        'S G#'
        >>> format_maze(encode(np.array([[2, 1, 3, 0]])), torch.ones(1, 4))
        'S*G#'
    """
    letters = np.array(list("# SG*"))
    kinds = decode(inputs)
    if answer is not None:
        kinds[(kinds == _FREE) & (answer.cpu().numpy() == 1)] = 4
    return "\n".join("".join(row) for row in letters[kinds])


def read_text(data: bytes, *, name: str) -> list[Puzzle]:
    """Read mazes that are separated by blank lines; each one rectangular, with one start and one goal.

    Blanks after the right wall are ignored where that makes the lines equally long.

    Args:
        data: UTF-8 text.
        name: where it came from, for the errors.

    Raises:
        InputError: text that cannot be decoded, an unknown character, lines of different length, a start or goal that
            is missing or stands twice, or no maze at all.

    Example:
        >>> [puzzle.where for puzzle in read_text(b"####\\n#SG#\\n####\\n\\nS.G\\n", name="stdin")]
        ['line 1', 'line 5']
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: byte {error.start + 1} is not UTF-8 text, nor is this a PNG, JPEG, GIF, BMP or WebP picture"
        ) from None
    blocks: list[list[tuple[int, str]]] = [[]]
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if line.strip():
            blocks[-1].append((number, line))
        elif blocks[-1]:
            blocks.append([])
    puzzles = [_read_block(block, name) for block in blocks if block]
    if not puzzles:
        raise InputError(f"{name}: no maze found; draw one with # for walls, S for the start and G for the goal")
    return puzzles


def _read_block(block: list[tuple[int, str]], name: str) -> Puzzle:
    first = block[0][0]
    trimmed = [(number, line.rstrip(" ")) for number, line in block]
    if len({len(line) for _, line in trimmed}) == 1:
        block = trimmed
    kinds = []
    for number, line in block:
        for column, character in enumerate(line, start=1):
            if character not in _MEANING:
                raise InputError(
                    f"{name}, line {number}, column {column}: {character!r} means nothing in a maze; "
                    "use # wall, space or . corridor, S start, G goal"
                )
        kinds.append([_MEANING[character] for character in line])
    width = len(kinds[0])
    for (number, _), row in zip(block, kinds, strict=True):
        if len(row) != width:
            raise InputError(
                f"{name}: line {number} has {len(row)} characters, line {first} has {width}; a maze is rectangular"
            )
    grid = np.array(kinds)
    for kind, what, letter in ((_START, "start", "S"), (_GOAL, "goal", "G")):
        rows, columns = np.nonzero(grid == kind)
        if len(rows) == 0:
            raise InputError(f"{name}: the maze at line {first} has no {what}; put one {letter} into it")
        if len(rows) > 1:
            raise InputError(
                f"{name}, line {first + rows[1]}, column {columns[1] + 1}: a second {what}; "
                f"the first is at line {first + rows[0]}, column {columns[0] + 1}, and a maze has one"
            )
    return Puzzle(encode(grid), f"line {first}")
