"""`predict_stream`: examples from an iterator, answered in a batch that stays full, each as soon as it has stopped."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from homeostat.engine import PENDING, Picard, SolutionStream, Status, solve_stream
from homeostat.inference.guided import Guided
from homeostat.inference.policy import Policy


@dataclass(frozen=True, eq=False, repr=False)
class PredictedExample:
    """The answer to one example; fields are those of `Stopped`, of this example alone.

    Attributes:
        index: its place in the input, from 0.
        outputs: with a batch dimension of 1.
    """

    index: int
    outputs: Any
    steps: int
    residual: float
    status: Status
    confidence: float
    abstained: bool

    def __repr__(self) -> str:
        abstained = ", abstained" if self.abstained else ""
        return (
            f"PredictedExample {self.index}: {self.status.name} after {self.steps} steps, relative residual "
            f"{self.residual:.1e}, confidence {self.confidence:.3f}{abstained}"
        )


class PredictionStream(Iterator[PredictedExample]):
    """What `predict_stream` returns: an iterator over finished examples that keeps an account.

    Attributes:
        read, finished, rounds, occupancy: see `SolutionStream`.
        row_evaluations: evaluations of the model's `step` that the finished examples have taken together.
    """

    def __init__(self, guided: Guided, solutions: SolutionStream) -> None:
        self._guided, self._solutions, self.row_evaluations = guided, solutions, 0

    def __iter__(self) -> "PredictionStream":
        return self

    def __next__(self) -> PredictedExample:
        found = next(self._solutions)
        with torch.no_grad():
            read = self._guided.read(found.state, found.context)
        self.row_evaluations += int(read.evaluations)
        return PredictedExample(
            found.index,
            read.outputs,
            int(read.steps),
            float(read.residual),
            Status(int(read.status)),
            float(read.confidence),
            bool(read.abstained),
        )

    def __getattr__(self, name: str) -> Any:
        if name in ("read", "finished", "rounds", "occupancy"):
            return getattr(self._solutions, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def drop(self, index: int) -> None:
        """Let go of one example that is not finished; see `SolutionStream.drop`."""
        self._solutions.drop(index)

    def close(self) -> None:
        """Let go of everything that is unfinished."""
        self._solutions.close()

    def __repr__(self) -> str:
        return repr(self._solutions).replace("SolutionStream", "PredictionStream", 1)


def predict_stream(
    model: Any,
    examples: Iterable[Any],
    *,
    policy: Policy,
    batch_size: int = 64,
    refill: float = 0.125,
    judge: Any = None,
) -> PredictionStream:
    """Answer examples from an iterable by a policy, in a batch that stays full, and yield each as it stops.

    When examples stop, others take their slots, so that hard ones hold up nobody. Examples of different shapes never
    share a batch. Lazy, as `solve_stream` is; the model should be in evaluation mode.

    Args:
        model: anything with the functions of the contract.
        examples: the inputs of one example after the other, as `encode` takes them, with a batch dimension of 1. May
            yield `PENDING` while there is nothing to read and others are under way.
        policy: when to stop.
        batch_size: most examples in the batch.
        refill: share of the slots that has to be free before others join; 0 lets each join at once.
        judge: reads answers where the policy was fitted with one; the model's own object when None.

    Raises:
        PolicyError, ContractError, InputError: see `Guided`.

    Example:
        >>> import homeostat as hs
        >>> heron = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.ones_like(x),
        ...     step=lambda z, x: 0.5 * (z + x / z),
        ...     decode=lambda z, x: z,
        ... )
        >>> policy = hs.Policy(conditions=(hs.Condition("residual", 1e-4),), max_steps=30, reads="none")
        >>> examples = (torch.tensor([[x]]) for x in (1e6, 4.0, 9.0))
        >>> for found in predict_stream(heron, examples, policy=policy, batch_size=2):
        ...     print(found.index, found.steps, round(found.outputs.item(), 2))
        1 5 2.0
        2 5 3.0
        0 14 1000.0
    """
    guided = Guided(model, policy, judge)

    def contexts() -> Iterator[Any]:
        for inputs in examples:
            yield PENDING if inputs is PENDING else guided.context(inputs)

    return PredictionStream(guided, stream_of(guided, guided.start, contexts(), batch_size, refill))


def stream_of(
    guided: Guided, start: Callable[[Any], Any], contexts: Iterable[Any], batch_size: int, refill: float
) -> SolutionStream:
    """The engine's stream over contexts of the guided map; `start` as in `solve_stream`."""
    return solve_stream(
        guided.map.step,
        start,
        contexts,
        batch_size=batch_size,
        refill=refill,
        method=Picard(),
        stop=guided.map.stop,
        sync_every=1,  # the counter tells in no way how near it is to standing still
    )
