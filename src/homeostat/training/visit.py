"""What one training step is to do with its rows, and where its random numbers come from."""

from collections.abc import Sequence
from enum import IntEnum

from torch import Tensor

from homeostat.models.starts import stream_seed


class Stream(IntEnum):
    """Streams of random numbers that a training draws from, each for itself.

    None of them has a state that would have to be saved: every draw is found from the seed of the training and the
    number of the training step.
    """

    WEIGHTS = 0
    SCHEDULE = 1
    DATA = 2
    STARTS = 3
    NOISE = 4
    POOL = 5
    PENALTIES = 6
    INSTANCES = 7

    def seed(self, *numbers: int) -> int:
        """A seed from the training's own seed and whatever else it depends on."""
        return stream_seed(numbers[0], int(self), *numbers[1:])


class Carried:
    """States that rows of a pool bring along.

    Attributes:
        state: leaves of the state, in the order of the rows; none where every row begins.
        new: `(k,)` int64, the rows that begin with a start.
    """

    def __init__(self, state: Sequence[Tensor], new: Tensor) -> None:
        self.state, self.new = state, new


class Visit:
    """One training step on the rows of one process.

    Not a dataclass: Fabric takes those apart to convert the tensors in them.

    Attributes:
        seed: of the training.
        step: which training step, from 0.
        progress: share of the training that is done, 0 to 1.
        free, graphed: steps of the model without a graph, and then with one.
        indices: place of each row among all examples, of all processes.
        carried: what the rows bring along in segment training.
    """

    def __init__(
        self, seed: int, step: int, progress: float, free: int, graphed: int, indices: Sequence[int] = ()
    ) -> None:
        self.seed, self.step, self.progress = seed, step, progress
        self.free, self.graphed = free, graphed
        self.indices = indices
        self.carried: Carried | None = None

    def stream(self, stream: Stream) -> int:
        """The seed of a stream at this training step."""
        return stream.seed(self.seed, self.step)
