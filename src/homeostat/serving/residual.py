"""Without a policy: each example stops at a residual tolerance, as `homeostat predict` has it, in a batch that stays
full.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from homeostat.engine import PENDING, Picard, Status, Stop, solve_stream
from homeostat.engine.nest import flatten
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import own_start
from homeostat.probes.courses.watched import bare_context


@dataclass(frozen=True, eq=False, repr=False)
class ResidualAnswer:
    """One example, finished.

    Attributes:
        index: its place in the input, `PENDING` not counted.
        outputs: what the model's `decode` gives, one row.
        residual: RMS(f(z) - z) / RMS(f(z)) of the last step.
        abstained: it did not converge. confidence: a tolerance alone says nothing about it.
    """

    index: int
    outputs: Any
    steps: int
    residual: float
    status: Status
    abstained: bool
    confidence: float | None = None


class ResidualStream(Iterator[ResidualAnswer]):
    """Answers in the order in which they finish.

    Args:
        model: the model.
        examples: inputs of one example each, with `PENDING` where there is nothing to read now.
        stop: from the inputs of an example to when it stops.
        batch_size: examples that are iterated at the same time.

    Example:
        >>> import homeostat as hs
        >>> heron = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.ones_like(x),
        ...     step=lambda z, x: 0.5 * (z + x / z),
        ...     decode=lambda z, x: z,
        ... )
        >>> inputs = [torch.tensor([[4.0]]), torch.tensor([[1e6]])]
        >>> for found in ResidualStream(heron, inputs, stop=lambda inputs: Stop(rtol=1e-5), batch_size=8):
        ...     print(found.index, found.outputs.item(), found.steps, found.status)
        0 2.0 5 CONVERGED
        1 1000.0 14 CONVERGED
    """

    def __init__(
        self,
        model: IteratedModel,
        examples: Iterable[Any],
        *,
        stop: Callable[[Any], Stop],
        batch_size: int,
    ) -> None:
        self._model, self._stop_of = model, stop
        self._now = Stop()  # of the example that was read last: its context does not say what its inputs were
        self._stream = solve_stream(
            model.step,
            lambda context: model.initial_state(context, own_start(1)),
            self._contexts(examples),
            batch_size=batch_size,
            method=Picard(),
            stop=lambda context: self._now,
        )

    @property
    def rounds(self) -> int:
        """Calls of `step` so far."""
        return self._stream.rounds

    @property
    def occupancy(self) -> float:
        """Mean share of the slots that was filled, from 0 to 1."""
        return self._stream.occupancy

    @property
    def row_evaluations(self) -> int:
        """Calls of `step` times the examples in each."""
        return self._stream.row_evaluations

    def __next__(self) -> ResidualAnswer:
        found = next(self._stream)
        with torch.no_grad():
            leaves, layout = flatten(found.state, "state")
            outputs = self._model.decode(layout.build(leaves), bare_context(found.context))
        abstained = found.status is not Status.CONVERGED
        return ResidualAnswer(found.index, outputs, found.steps, found.residual, found.status, abstained)

    def drop(self, index: int) -> None:
        """Let go of one example that is not finished; see `SolutionStream.drop`."""
        self._stream.drop(index)

    def close(self) -> None:
        """Let go of everything that is unfinished."""
        self._stream.close()

    def _contexts(self, examples: Iterable[Any]) -> Iterator[Any]:
        for inputs in examples:
            if inputs is PENDING:
                yield PENDING
                continue
            self._now = self._stop_of(inputs)
            yield self._model.encode(inputs)
