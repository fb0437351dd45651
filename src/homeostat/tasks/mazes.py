"""Mazes: mark the shortest path from the start to the goal.

Perfect mazes have one path between any two rooms; with percolation they have loops. The search that carves a maze is
rooted anywhere, and start and goal are any two rooms: with a search rooted at the start, as in the widely used
generator, every start is a dead end, and models learn to rely on it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from homeostat.checks import plain_numbers
from homeostat.errors import InputError
from homeostat.tasks.base import IGNORE, Batch, Legend, Puzzle, PuzzleTask, Split
from homeostat.tasks.maze_generation import carve, dead_ends, draw_ends, draw_free, percolate, room_pixels
from homeostat.tasks.maze_paths import distances, is_shortest_path, trace
from homeostat.tasks.maze_pictures import is_picture, read_picture, solved_picture
from homeostat.tasks.maze_text import format_maze, read_text
from homeostat.tasks.random_words import Words
from homeostat.tasks.split import collect, in_split, instance_hash

Paths = Literal["unique", "any"]

_PAIRS = 32
"""Proposals of start and goal for each maze; the first that falls into the split is taken, so few mazes are wasted."""

_MOST_ROOMS = 999
_MOST_GOALS = 1024
_CHUNK_PIXELS = 2**19


@dataclass(frozen=True)
class Mazes(PuzzleTask):
    """Shortest paths in mazes of n x n rooms, drawn on (2n+1) x (2n+1) pixels.

    Inputs `(batch, 3, height, width)`: corridors (start and goal included), the start, the goal, each 0 or 1. Targets
    `(batch, height, width)`: 1 on the path with both its ends, 0 on other corridors, `IGNORE` on walls.

    Args:
        percolation: chance that each wall left between neighbouring rooms of the perfect maze is opened.
        paths: `"unique"` keeps only instances with one shortest path (this favours near goals when there are many
            loops); `"any"` keeps all, labels the path that `maze_paths.trace` finds, and accepts every shortest path.
        dead_end_start: starts lie in dead ends only: the artefact of the widely used generator, to measure its effect.
        longest_of: the goal is the farthest of so many, so that paths are longer than between any two rooms. For
            training: in a small maze only the longest paths are like those of a large one.

    Raises:
        InputError: an option outside its range.

    Example:
        >>> task = Mazes()
        >>> inputs, targets = task.sample(3, 2, split="train", seed=0)
        >>> tuple(inputs.shape), tuple(targets.shape)
        ((2, 3, 7, 7), (2, 7, 7))
        >>> puzzle = task.parse(b"#####\\n#S G#\\n#####\\n", name="stdin")[0]
        >>> print(task.text(puzzle.inputs, torch.ones(3, 5, dtype=torch.int64)))
        #####
        #S*G#
        #####
    """

    percolation: float = 0.0
    paths: Paths = "unique"
    dead_end_start: bool = False
    longest_of: int = 1

    name: ClassVar[str] = "mazes"
    summary: ClassVar[str] = "the shortest path from start to goal"
    size_name: ClassVar[str] = "rooms a side"
    sizes: ClassVar[tuple[int, ...]] = (3, 5, 7, 10, 14)
    spatial_dims: ClassVar[int] = 2
    in_channels: ClassVar[int] = 3
    classes: ClassVar[int] = 2
    legend: ClassVar[Legend] = Legend(
        labels=("wall", "corridor", "path, right", "path, missed", "path, wrong", "start", "goal"),
        colours=("#22303c", "#f4f1ea", "#0072b2", "#a9d3ee", "#e66100", "#009e73", "#c2185b"),
    )

    def __post_init__(self) -> None:
        plain_numbers(self)
        number = isinstance(self.percolation, int | float) and not isinstance(self.percolation, bool)
        if not number or not 0 <= self.percolation <= 1:
            raise InputError(f"percolation {self.percolation!r} is not a probability: a number from 0 to 1")
        if self.paths not in get_args(Paths):
            raise InputError(f"unknown paths {self.paths!r}: it is one of {', '.join(get_args(Paths))}")
        if not isinstance(self.dead_end_start, bool):
            raise InputError(f"dead_end_start {self.dead_end_start!r} is neither True nor False")
        whole = isinstance(self.longest_of, int) and not isinstance(self.longest_of, bool)
        if not whole or not 1 <= self.longest_of <= _MOST_GOALS:
            raise InputError(f"longest_of {self.longest_of!r} is not a whole number from 1 to {_MOST_GOALS}")

    def sample(self, size: int, count: int, *, split: Split, seed: int) -> Batch:
        """`count` mazes of `size` x `size` rooms; start and goal are two different rooms.

        Raises:
            InputError: fewer than 2 rooms a side, more than 999, or a size without any instance in this split.
        """
        if not 2 <= size <= _MOST_ROOMS:
            raise InputError(f"size {size} is impossible for {self.name}: 2 to {_MOST_ROOMS} rooms a side")

        def draw(keys: Words) -> tuple[np.ndarray, ...]:
            return self._draw(keys, size, split)

        free, starts, goals, path = collect(
            draw,
            count,
            size=size,
            split=split,
            seed=seed,
            rate=0.95,
            most=max(1, _CHUNK_PIXELS // (2 * size + 1) ** 2),
            what=f"maze of {size}x{size} rooms with these options",
        )
        inputs = np.zeros((count, 3, free[0].size), dtype=np.float32)
        inputs[:, 0] = free.reshape(count, -1)
        inputs[np.arange(count), 1, starts] = 1
        inputs[np.arange(count), 2, goals] = 1
        targets = np.where(free, path.astype(np.int64), IGNORE)
        return Batch(torch.from_numpy(inputs.reshape(count, 3, *free.shape[1:])), torch.from_numpy(targets))

    def _draw(self, keys: Words, size: int, split: Split) -> tuple[np.ndarray, ...]:
        """The instances that these candidates give: corridors, starts and goals as flat pixels, and paths."""
        rooms, walls = size * size, 2 * size * (size - 1)
        doors = carve(keys, size)
        if self.percolation > 0:
            doors = percolate(doors, keys, self.percolation, first=rooms + 1)
        free = draw_free(doors)
        eligible = dead_ends(doors) if self.dead_end_start else np.ones((len(keys), rooms), dtype=np.bool_)
        possible = eligible.any(axis=1, keepdims=True)
        eligible |= ~possible
        start, goal = draw_ends(keys, eligible, _PAIRS, first=rooms + 1 + walls)
        start, goal = room_pixels(start, size), room_pixels(goal, size)
        wanted = in_split(instance_hash(free.reshape(len(free), -1), start, goal), split) & possible
        kept = np.flatnonzero(wanted.any(1))
        pair = wanted[kept].argmax(1)
        free, start, goal = free[kept], start[kept, pair], goal[kept, pair]
        away = distances(free, start)
        if self.longest_of > 1:
            anywhere = np.ones((len(kept), rooms), dtype=np.bool_)
            _, others = draw_ends(keys[kept], anywhere, self.longest_of - 1, first=rooms + 1 + walls + 2 * _PAIRS)
            goals = np.concatenate([goal[:, None], room_pixels(others, size)], axis=1)
            goal = _farthest(goals, free, start, away, split)
        path, unique = trace(away, goal)
        if self.paths == "unique":
            free, start, goal, path = free[unique], start[unique], goal[unique], path[unique]
        return free, start, goal, path

    def asked(self, inputs: Tensor) -> Tensor:
        """`(batch, height, width)` bool: an answer is asked on corridors, not on walls."""
        return inputs[:, 0] > 0

    def in_test_split(self, inputs: Tensor) -> NDArray[np.bool_]:
        """`(batch,)` bool: which instances belong to the test split; `inputs` `(batch, 3, height, width)`."""
        flat = inputs.flatten(2).cpu().numpy()
        return in_split(instance_hash(flat[:, 0] > 0, flat[:, 1].argmax(1), flat[:, 2].argmax(1)), "test")

    def span(self, size: int) -> int:
        """The corners lie `2 * (size - 1)` pixels apart in each direction, which is what a 3x3 convolution counts."""
        return 2 * (size - 1)

    def parse(self, data: bytes, *, name: str) -> list[Puzzle]:
        """Read one maze from a picture, or mazes separated by blank lines from text.

        Raises:
            InputError: see `maze_pictures.read_picture` and `maze_text.read_text`; also a goal out of reach.
        """
        puzzles = [read_picture(data, name=name)] if is_picture(data) else read_text(data, name=name)
        for puzzle in puzzles:
            free, start, goal = (channel.flatten() for channel in puzzle.inputs.numpy())
            grid = free.reshape(1, *puzzle.inputs.shape[1:]) > 0
            if distances(grid, np.array([start.argmax()])).reshape(-1)[goal.argmax()] < 0:
                raise InputError(
                    f"{name}, {puzzle.where}: the goal cannot be reached from the start; open a way between them"
                )
        return puzzles

    def text(self, inputs: Tensor, answer: Tensor) -> str:
        """The maze as ASCII with the marked corridors as `*`."""
        return format_maze(inputs, answer)

    def picture(self, inputs: Tensor, answer: Tensor) -> Image:
        """The maze with the marked corridors in blue, the start in green and the goal in red."""
        return solved_picture(inputs, answer)

    def cells(self, inputs: Tensor, answer: Tensor, target: Tensor) -> np.ndarray:
        """Codes into `legend`: 0 wall, 1 corridor, 2, 3, 4 path right, missed, wrong, 5 start, 6 goal.

        Start and goal show as such whatever the answer says there. With `paths="any"` an answer that is another
        shortest path than the label is compared with itself: all of it is right.
        """
        channels = inputs.cpu().numpy() > 0
        free = channels[0]
        marked, wanted = (answer.cpu().numpy() == 1) & free, target.cpu().numpy() == 1
        if self.paths == "any" and is_shortest_path(marked[None], wanted[None])[0]:
            wanted = marked
        codes = free.astype(np.uint8)
        codes[marked & wanted] = 2
        codes[~marked & wanted] = 3
        codes[marked & ~wanted] = 4
        codes[channels[1]] = 5
        codes[channels[2]] = 6
        return codes

    def solves(self, inputs: Tensor, answer: Tensor) -> bool:
        """Whether the marked corridors are a shortest path from start to goal; any of them, whatever `paths` says.

        Example:
            >>> task = Mazes()
            >>> maze = task.parse(b"#####\\n#S G#\\n#####\\n", name="stdin")[0].inputs
            >>> task.solves(maze, torch.ones(3, 5)), task.solves(maze, torch.zeros(3, 5))
            (True, False)
        """
        free, start, goal = (inputs.cpu().numpy() > 0)[:, None]
        reference, _ = trace(distances(free, np.array([start.argmax()])), np.array([goal.argmax()]))
        return bool(is_shortest_path((answer.cpu().numpy() == 1)[None] & free, reference)[0])

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` bool: the marked corridors are the path; with `paths="any"`, any shortest path."""
        if self.paths == "unique":
            return super().correct(outputs, targets)
        asked, wanted = (targets != IGNORE).cpu().numpy(), (targets == 1).cpu().numpy()
        marked = (self.answers(outputs) == 1).cpu().numpy() & asked
        return torch.from_numpy(is_shortest_path(marked, wanted)).to(targets.device)

    def symbols(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` float32: share of the corridors that agree with the labelled path.

        With `paths="any"` it is 1 where `correct` accepts another path than the label.
        """
        if self.paths == "unique":
            return super().symbols(outputs, targets)
        return torch.where(self.correct(outputs, targets), 1.0, super().symbols(outputs, targets))


def _farthest(
    goals: NDArray[np.int64], free: NDArray[np.bool_], start: NDArray[np.int64], away: NDArray[np.int32], split: Split
) -> NDArray[np.int64]:
    """Of the goals `(batch, k)`, flat pixels, the farthest that keeps its instance in the split; the first one does."""
    starts = np.broadcast_to(start[:, None], goals.shape)
    possible = in_split(instance_hash(free.reshape(len(free), -1), starts, goals), split) & (goals != starts)
    lengths = np.take_along_axis(away.reshape(len(away), -1), goals, axis=1)
    best = np.where(possible, lengths, -1).argmax(1)
    return np.take_along_axis(goals, best[:, None], axis=1)[:, 0]
