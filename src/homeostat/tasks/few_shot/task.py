"""What the few-shot tasks share: an instance is an episode, a small training set with questions about its classes.

The protocol is that of Vinyals et al., "Matching Networks for One Shot Learning" (2016): of some classes that are new
there are a few labelled pictures each, the support, and other pictures of theirs, the queries, are to be classified.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from homeostat.checks import plain_numbers
from homeostat.errors import InputError
from homeostat.tasks.base import Batch, ClassificationTask, Split
from homeostat.tasks.few_shot.episodes import shuffled, streams, whole
from homeostat.tasks.random_words import Words, candidate_keys
from homeostat.tasks.split import check_request

_MOST_WAYS, _MOST_EACH = 100, 100
_MOST_NUMBERS = 2**27


@dataclass(frozen=True)
class FewShotTask(ClassificationTask):
    """Episodes of `ways` classes with `size` labelled pictures, the shots, and `queries` others of each.

    Inputs, a dict: `support_inputs` `(batch, ways * size, channels, height, width)` float32 from 0 to 1,
    `support_targets` `(batch, ways * size)` int64, `query_inputs` `(batch, ways * queries, channels, height, width)`;
    targets `(batch, ways * queries)` int64; outputs `(batch, ways, ways * queries)` logits. Support and queries are
    in random order, without a picture in common, and each label is there equally often.

    No class of the split `"test"` is ever a class of the split `"train"`. Which class has which label is drawn anew
    for each episode, so that a network cannot know a class by its label. More shots are easier. `correct` asks for all
    queries of an episode, `symbols` is the usual accuracy; chance is 1 / `ways`.

    Args:
        ways: classes of an episode, 2 to 100.
        queries: of each class, 1 to 100.

    Raises:
        InputError: an option outside its range.
    """

    ways: int = 5
    queries: int = 5

    size_name: ClassVar[str] = "shots"
    sizes: ClassVar[tuple[int, ...]] = (5, 2, 1)
    channels: ClassVar[int] = 1

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.ways == 1:
            raise InputError(f"ways 1 leaves {self.name} nothing to tell apart: with one class every answer is right")
        if not (whole(self.ways) and 2 <= self.ways <= _MOST_WAYS):
            raise InputError(f"ways {self.ways!r} is impossible: 2 to {_MOST_WAYS} classes in an episode")
        if not (whole(self.queries) and 1 <= self.queries <= _MOST_EACH):
            raise InputError(f"queries {self.queries!r} is impossible: 1 to {_MOST_EACH} for each class")

    def sample(self, size: int, count: int, *, split: Split, seed: int) -> Batch:
        """`count` episodes of `size` shots.

        Raises:
            InputError: a size below 1 or above 100; too many pictures at once; classes or pictures that cannot be had.
        """
        if not 1 <= size <= _MOST_EACH:
            raise InputError(f"size {size} is impossible for {self.name}: 1 to {_MOST_EACH} shots")
        check_request(split, count)
        each = size + self.queries
        side = self.picture_side()
        if count * self.ways * each * self.channels * side**2 > _MOST_NUMBERS:
            raise InputError(f"count {count} is too large: {_MOST_NUMBERS:,} numbers at once, ask for them in parts")
        keys = candidate_keys(0, count, seed=seed, size=size, split=int(split == "test"))
        content, support_order, query_order = streams(keys, 3)
        pictures = self.draw(content, each, split)
        shape = (count, -1, self.channels, side, side)
        support, support_targets = _ordered(pictures[:, :, :size].reshape(shape), support_order, self.ways, size)
        query, targets = _ordered(pictures[:, :, size:].reshape(shape), query_order, self.ways, self.queries)
        inputs = {"support_inputs": support, "support_targets": support_targets, "query_inputs": query}
        return Batch(inputs, targets)

    def enough(self, there: Mapping[str, int], each: int) -> None:
        """Refuse classes that have fewer pictures, `there`, than the `each` that an episode takes of them.

        Raises:
            InputError: naming the first such class.
        """
        short = next((name for name, count in there.items() if count < each), None)
        if short is not None:
            raise InputError(
                f"{short} has {there[short]} pictures, and an episode needs {each} of every class: "
                f"{each - self.queries} shots and {self.queries} queries"
            )

    @abstractmethod
    def picture_side(self) -> int:
        """Pixels a side of every picture."""

    @abstractmethod
    def draw(self, keys: Words, each: int, split: Split) -> NDArray[np.float32]:
        """`(episodes, ways, each, channels, side, side)`: `each` different pictures of `ways` classes of a split.

        What an episode has depends on its key alone, and each class has every label equally often.
        """


def _ordered(pictures: NDArray[np.float32], keys: Words, ways: int, each: int) -> tuple[Any, Any]:
    order = shuffled(keys, ways, each)
    taken = np.take_along_axis(pictures, order[:, :, None, None, None], axis=1)
    return torch.from_numpy(taken), torch.from_numpy(order // each)
