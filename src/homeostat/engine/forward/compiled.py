"""Steps as compiled graphs: some steps at a time, with the norms that the stopping test wants, in one call.

Whatever stands in the way of compilation (no compiler, a step that PyTorch cannot trace as one graph, one that is tied
to the number of rows) costs speed and one warning; the eager step then does the work. The first step of every solve is
taken eagerly in any case: that is where the contract is checked and where a step says what is wrong with it.
"""

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._dynamo import mark_dynamic
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.utils import _pytree as pytree

from homeostat.engine.forward.picard import PicardStepper
from homeostat.engine.forward.record import Record
from homeostat.engine.methods import Picard
from homeostat.engine.nest import Carry
from homeostat.engine.norms import norm_dtype
from homeostat.engine.problem import Problem, StepFunction
from homeostat.errors import CompileWarning, ContractError

BLOCK = 8
"""Steps in a graph of small states."""

# Where a block's states are larger than this, a step costs so much more than a call that blocks gain nothing.
_BLOCK_BYTES = 1 << 19

_numbers = itertools.count()


def _block(
    size: int,
    spec: pytree.TreeSpec | None,
    measured: tuple[int, ...],
    damping: float | None,
    step: StepFunction,
    state: list[Tensor],
    context: Any,
) -> tuple[list[list[Tensor]], list[list[Tensor]], Tensor]:
    """What is compiled: `size` steps.

    Args:
        spec: how the state's leaves make up a nest; None for a bare tensor.
        damping: None for plain steps.

    Returns:
        Step by step the leaves of f(z), and those of the next z. Norms `((size + 1) * leaves, rows)`: of f(z) - z for
        each step and measured leaf, then of the last f(z).
    """
    values, states, lengths = [], [], []
    for _ in range(size):
        if spec is None:
            found = [step(state[0], context)]
        else:
            found = spec.flatten_up_to(step(pytree.tree_unflatten(state, spec), context))
        after = []
        for old, leaf in zip(state, found, strict=True):
            new = leaf.value if isinstance(leaf, Carry) else leaf
            if new.dtype != old.dtype and new.is_floating_point() and torch.is_autocast_enabled(new.device.type):
                new = new.to(old.dtype)
            if new.shape != old.shape or new.dtype != old.dtype:
                raise ContractError("step changed the state's shape or dtype after its first step")
            after.append(new)
        lengths += [_lengths(after[i] - state[i]) for i in measured]
        mixed = list(after)
        if damping is not None:
            for i in measured:
                mixed[i] = torch.lerp(state[i], after[i], damping)
        state = mixed
        values.append(after)
        states.append(state)
    lengths += [_lengths(values[-1][i]) for i in measured]
    return values, states, torch.stack(lengths)


def _lengths(leaf: Tensor) -> Tensor:
    """As `row_lengths`, but as a sum: a compiler fuses that with what comes before."""
    return leaf.flatten(1).to(norm_dtype(leaf.dtype)).square().sum(1).sqrt() if leaf.ndim > 1 else leaf.abs()


class Graphs:
    """The graphs of one step function, made as they are needed.

    They do not hold the function: it is an argument that is looked at anew with every call, so that what it closes over
    may change, and functions made anew from the same code share graphs.
    """

    def __init__(self) -> None:
        self.failed = False
        self._made: dict[tuple[int, bool], Callable[..., Any]] = {}
        self._warned = False

    def call(self, size: int, rounded: bool, *args: Any) -> Any:
        """`_block` with `size` steps; None where it cannot be compiled.

        Args:
            rounded: round what is computed between operations to its dtype, as eager operations do.
        """
        for _ in range(2):
            made = self._made.get((size, rounded))
            try:
                if made is not None:
                    return made(size, *args)
                with warnings.catch_warnings():  # PyTorch's, about what it does itself
                    warnings.simplefilter("ignore")
                    made = self._made[size, rounded] = _compile(rounded)
                    return made(size, *args)
            except FailOnRecompileLimitHit:  # PyTorch would go on eagerly from here on; old graphs go instead
                del self._made[size, rounded]
                self._warn("step is compiled again and again: what it closes over, or its shapes, change between calls")
            except Exception as error:  # compilers fail in many ways; if it is the step that fails, it does so eagerly too
                self.failed = True
                lines = str(error).strip().splitlines() or [type(error).__name__]
                reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
                self._warn(f"step could not be compiled and runs eagerly: {reason}")
                return None
        return None

    def _warn(self, message: str) -> None:
        if not self._warned:
            warnings.warn(message, CompileWarning, stacklevel=8)
        self._warned = True


def _compile(rounded: bool) -> Callable[..., Any]:
    """A compiled `_block` with a code object of its own: PyTorch keeps graphs, and counts them, by code object."""
    code = _block.__code__.replace(co_name=f"_block_{next(_numbers)}")
    block = FunctionType(code, _block.__globals__)
    return torch.compile(block, fullgraph=True, options={"emulate_precision_casts": True} if rounded else None)


_graphs: WeakKeyDictionary[Any, dict[Any, Graphs]] = WeakKeyDictionary()


def graphs_of(step: StepFunction) -> Graphs:
    """The graphs of a step; they are kept as long as the module, other callable, or code that it is."""
    while isinstance(step, partial):
        step = step.func
    owner, part = step, None
    if isinstance(step, MethodType):
        owner, part = step.__self__, step.__func__
    if isinstance(owner, FunctionType):
        owner = owner.__code__
    try:
        return _graphs.setdefault(owner, {}).setdefault(part, Graphs())
    except TypeError:  # not hashable, or without weak references
        return Graphs()


class CompiledMap:
    """The map of a problem as blocks of steps, for the rows that are in the batch."""

    def __init__(self, problem: Problem, damping: float = 1.0) -> None:
        self._problem, self._graphs = problem, graphs_of(problem.step)
        layout = problem.layout
        self._measured = tuple(layout.measured())
        self._fixed = (None if layout.lone else layout.spec, self._measured, None if damping == 1 else damping)
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

    def available(self, rows: int) -> bool:
        """Whether blocks can be had. A single row needs a graph of its own, which the last of many is not worth."""
        return not self._graphs.failed and (rows > 1 or self._problem.rows == 1)

    def steps(self, size: int, state: list[Tensor]) -> tuple[list[list[Tensor]], list[list[Tensor]], Tensor] | None:
        """See `_block`; None where it cannot be compiled."""
        leaves = [_any_rows(leaf) for leaf in state]
        return self._graphs.call(size, self._rounded, *self._fixed, self._problem.step, leaves, self._context)


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

    def advance(self, count: int, record_all: bool) -> Record:
        """See `PicardStepper.advance`; a record of a single block has its norms already."""
        record = self.begin_record()
        while count:
            part = self._advance(count)
            count -= part.steps
            record = part if not (record_all and record.steps) else _join(record, part)
        return record if record_all else record.tail()

    def _advance(self, most: int) -> Record:
        """One block, `most` steps at most."""
        state = self.state
        rows, bytes_ = len(state[0]), sum(leaf.numel() * leaf.element_size() for leaf in state)
        # The first step is where the contract is checked.
        if self.taken == 0 or not self._map.available(rows):
            return super().advance(1, record_all=True)
        size = BLOCK if most >= BLOCK and bytes_ <= _BLOCK_BYTES else 1
        found = self._map.steps(size, state)
        if found is None:
            return super().advance(1, record_all=True)
        values, states, norms = found
        record = self.begin_record()
        record.before, record.after = [state, *states[:-1]], values
        record.lengths = list(norms[: size * len(self.measured)].unbind())
        record.norms, record.proposed = norms, [None] * size
        self.state, self.last = states[-1], values[-1]
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
        norms=None,
    )


class CompiledProblem(Problem):
    """A problem whose single steps are compiled, all but its first: for methods that decide after every step."""

    def bind(self, context: Sequence[Any]) -> Callable[[list[Tensor]], list[Tensor]]:
        """See `Problem.bind`."""
        eager, compiled = super().bind(context), CompiledMap(self)
        compiled.keep(context)
        checked = False

        def apply(state: list[Tensor]) -> list[Tensor]:
            nonlocal checked
            if not checked or not compiled.available(len(state[0])):
                checked = True
                return eager(state)
            found = compiled.steps(1, state)
            return eager(state) if found is None else found[0][0]

        return apply


def compile_problem(problem: Problem) -> CompiledProblem:
    """The same problem, compiled."""
    return CompiledProblem(**vars(problem))
