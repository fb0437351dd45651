"""Steps as compiled graphs: some steps at a time, with the norms that the stopping test wants, in one call.

Whatever stands in the way of compilation (no compiler, a step that PyTorch cannot trace as one graph, one that is tied
to the number of rows) costs speed and one warning; the eager step then does the work. The first step of every solve is
taken eagerly in any case: that is where the contract is checked and where a step says what is wrong with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._dynamo import mark_dynamic

from homeostat.engine.forward.graphs import Block, Replay, graphs_of
from homeostat.engine.forward.picard import PicardStepper
from homeostat.engine.forward.record import Record
from homeostat.engine.methods import Picard
from homeostat.engine.problem import Problem

# Steps in a graph where that many states are no larger than `_BLOCK_BYTES`; otherwise a step costs so much more than
# a call that one at a time is as good.
_BLOCK = 8
_BLOCK_BYTES = 1 << 19


class CompiledMap:
    """The map of a problem as blocks of steps, for the rows that are in the batch."""

    def __init__(self, problem: Problem, damping: float = 1.0) -> None:
        self._problem, self._graphs = problem, graphs_of(problem.step)
        layout = problem.layout
        measured = tuple(layout.measured())
        self._fixed = (None if layout.lone else layout.spec, measured, None if damping == 1 else damping, problem.step)
        dtypes = {leaf.dtype for leaf in problem.state if leaf.is_floating_point()}
        device = problem.state[0].device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        self._rounded = autocast or not dtypes <= {torch.float32, torch.float64}
        self.keep(problem.context)

    def keep(self, context: Sequence[Any]) -> None:
        """The context of the rows that are in the batch."""
        layout = self._problem.context_layout
        leaves = [x if kind == "shared" else _any_rows(x) for x, kind in zip(context, layout.kinds, strict=True)]
        self._context = layout.build(leaves)
        self._replays: dict[int, Replay] = {}

    def steps(self, size: int, state: list[Tensor]) -> Block | None:
        """Take `size` steps; None where that cannot be compiled."""
        rows = len(state[0])
        # A single row needs a graph of its own, which the last one of many is not worth.
        if self._graphs.failed or (rows == 1 and self._problem.rows > 1):
            return None
        replay = self._replays.get(size)
        if replay is not None and replay.fits(state):
            try:
                return replay(state)
            except Exception as error:
                self._graphs.fail(error)
                return None
        leaves = [_any_rows(leaf) for leaf in state]
        found = self._graphs.call(size, self._rounded, *self._fixed, leaves, self._context)
        if found is None:
            return None
        block, replay = found
        if replay is not None:
            self._replays[size] = replay
        return block


def _any_rows(leaf: Tensor) -> Tensor:
    """The same values for a graph that holds for any number of rows; PyTorch keeps one row apart."""
    alias = leaf.detach()  # the mark stays on the tensor, and this one may be the caller's
    if len(alias) > 1:
        mark_dynamic(alias, 0)
    return alias


class CompiledPicardStepper(PicardStepper):
    """Plain steps, in blocks."""

    def __init__(self, problem: Problem, method: Picard) -> None:
        super().__init__(problem, method)
        self._map = CompiledMap(problem, method.damping)
        size = sum(leaf.numel() * leaf.element_size() for leaf in problem.state)
        self.block = _BLOCK if size * _BLOCK <= _BLOCK_BYTES else 1

    def advance(self, count: int, record_all: bool) -> Record:
        """See `PicardStepper.advance`."""
        record = None
        while count:
            part = self._block(self.block if count >= self.block else 1)
            count -= part.steps
            record = _join(record, part) if record is not None and record_all else part
        assert record is not None
        return record if record_all else record.tail()

    def _block(self, size: int) -> Record:
        # The first step is where the contract is checked.
        block = self._map.steps(size, self.state) if self.taken else None
        if block is None:
            return super().advance(1, record_all=True)
        count = size * len(self.measured)
        record = replace(
            self.begin_record(),
            before=[self.state, *block.states[:-1]],
            after=block.values,
            lengths=block.lengths[:count],
            last_lengths=block.lengths[count:],
            proposed=[None] * size,
        )
        self.state, self.last = block.states[-1], block.values[-1]
        self.taken += size
        return record

    def keep(self, positions: NDArray[np.int64], index: Tensor) -> None:
        """See `Stepper.keep`."""
        super().keep(positions, index)
        self._map.keep(self.context)


def _join(record: Record, more: Record) -> Record:
    """Two records of consecutive steps as one."""
    return replace(
        record,
        before=record.before + more.before,
        after=record.after + more.after,
        lengths=record.lengths + more.lengths,
        proposed=record.proposed + more.proposed,
        last_lengths=more.last_lengths,
    )


class CompiledProblem(Problem):
    """A problem whose single steps are compiled, all but the first: for methods that decide after every step."""

    def bind(
        self, context: Sequence[Any], *, compare: bool = True, returned: set[int] | None = None
    ) -> Callable[[list[Tensor]], list[Tensor]]:
        """See `Problem.bind`."""
        eager, compiled = super().bind(context, compare=compare, returned=returned), CompiledMap(self)
        compiled.keep(context)
        first = context is self.context  # of the whole solve

        def apply(state: list[Tensor]) -> list[Tensor]:
            nonlocal first
            block = None if first else compiled.steps(1, state)
            first = False
            return eager(state) if block is None else block.values[0]

        return apply
