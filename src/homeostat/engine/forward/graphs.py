"""Blocks of steps as compiled graphs, kept for whoever solves with the same step again."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew
from torch.utils import _pytree as pytree

from homeostat.engine.nest import Carry
from homeostat.engine.norms import norm_dtype
from homeostat.engine.step_function import step_owner
from homeostat.errors import CompileWarning, ContractError, warn_caller


class Block(NamedTuple):
    """What some steps computed."""

    values: list[list[Tensor]]
    """Step by step, the leaves of f(z)."""
    states: list[list[Tensor]]
    """Step by step, the leaves of the next z."""
    lengths: list[Tensor]
    """Norms `(rows,)`: of f(z) - z for each step and measured leaf, step by step, and then of the last f(z)."""


class _Places(NamedTuple):
    """Where the tensors of a `Block` are among the outputs of a graph."""

    values: list[list[int]]
    states: list[list[int]]
    lengths: list[int]


def _block(
    size: int,
    spec: pytree.TreeSpec | None,
    measured: tuple[int, ...],
    damping: float | None,
    step: Callable[[Any, Any], Any],
    state: list[Tensor],
    context: Any,
) -> tuple[list[list[Tensor]], list[list[Tensor]], list[Tensor]]:
    """What is compiled: `size` steps; returns what makes up a `Block`.

    Args:
        spec: how the state's leaves make up a nest; None for a bare tensor.
        damping: None for plain steps.
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
            if new.shape != old.shape or new.dtype != old.dtype or new.device != old.device:
                raise ContractError("step changed the state's shape, dtype or device after its first step")
            after.append(new)
        lengths += [_length(after[i] - state[i]) for i in measured]
        mixed = list(after)
        if damping is not None:
            for i in measured:
                mixed[i] = torch.lerp(state[i], after[i], damping)
        state = mixed
        values.append(after)
        states.append(mixed)
    lengths += [_length(values[-1][i]) for i in measured]
    return values, states, lengths


def _length(leaf: Tensor) -> Tensor:
    """As `row_lengths`, but written as a sum: a compiler fuses that with what comes before."""
    if leaf.ndim == 1:
        leaf = leaf[:, None]
    return leaf.flatten(1).to(norm_dtype(leaf.dtype)).square().sum(1).sqrt()


class Replay:
    """A graph with the inputs of its last call, which is called again with nothing but another state.

    PyTorch looks at every call whether its graph still holds: whether the step closes over other values, for example.
    During one solve nothing but the step itself could change that, and one that does has no replay. Those checks take
    longer than several steps of a small state.
    """

    def __init__(self, graph: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self._graph, self._inputs, self._outputs = graph, list(inputs), outputs
        self._state: list[Tensor] = []
        self._places: list[list[int]] = []
        self._results = _Places([], [], [])

    def learn(self, state: list[Tensor], block: Block) -> bool:
        """Find state and results among the inputs and outputs; False where some result is not from the graph."""
        where = {id(x): i for i, x in enumerate(self._outputs)}
        try:
            values, states = ([[where[id(x)] for x in leaves] for leaves in steps] for steps in block[:2])
            self._results = _Places(values, states, [where[id(x)] for x in block.lengths])
        except KeyError:
            return False
        self._state, self._places = state, [[i for i, x in enumerate(self._inputs) if x is leaf] for leaf in state]
        self._outputs = []
        return True

    def fits(self, state: list[Tensor]) -> bool:
        """Whether the graph holds for such a state."""
        pairs = zip(state, self._state, strict=True)
        return all(new.shape == old.shape and new.stride() == old.stride() for new, old in pairs)

    def __call__(self, state: list[Tensor]) -> Block:
        """The same steps from another state."""
        for leaf, places in zip(state, self._places, strict=True):
            for i in places:
                self._inputs[i] = leaf
        found, results = self._graph(*self._inputs), self._results
        values = [[found[i] for i in leaves] for leaves in results.values]
        # Plain steps go on from f(z) itself.
        same = results.states == results.values
        states = values if same else [[found[i] for i in leaves] for leaves in results.states]
        return Block(values, states, [found[i] for i in results.lengths])


class _Graph:
    """`_block` for one number of steps, compiled for all inputs that it was called with.

    It has a code object of its own: PyTorch keeps graphs, and counts them, by code object.
    """

    _numbers = itertools.count()

    def __init__(self, rounded: bool) -> None:
        self._options = {"emulate_precision_casts": True, "pattern_matcher": False} if rounded else None
        code = _block.__code__.replace(co_name=f"_block_{next(self._numbers)}")
        block = FunctionType(code, _block.__globals__)
        self._compiled = torch.compile(block, fullgraph=True, backend=self._compile)
        self._caught: Replay | None = None
        self.fresh = True

    def _compile(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        graph: Any = compile_fx(module, inputs, config_patches=self._options)
        pure = _is_pure()

        def call(*inputs: Any) -> Any:
            outputs = graph(*inputs)
            self._caught = Replay(graph, inputs, outputs) if pure else None
            return outputs

        return call

    def __call__(self, size: int, *args: Any) -> tuple[Block, Replay | None]:
        """The block, and a way to repeat it, if there is one."""
        self._caught = None
        if self.fresh:
            with warnings.catch_warnings():  # PyTorch's, about what it does itself
                warnings.simplefilter("ignore")
                block = Block(*self._compiled(size, *args))
            self.fresh = False
        else:
            block = Block(*self._compiled(size, *args))
        replay, self._caught = self._caught, None  # kept here, it would keep the inputs alive
        return block, replay if replay is not None and replay.learn(args[-2], block) else None


def _is_pure() -> bool:
    """Whether the step that is being traced does nothing but compute: no counters, no random numbers of Python's."""
    try:
        output = InstructionTranslator.current_tx().output
        effects = output.side_effects
        changed = [x for x in effects.id_to_variable.values() if effects.is_modified(x)]
        # What the trace made itself, like its lists of results, is no side effect.
        lasting = [x for x in changed if not isinstance(x.mutation_type, ValueMutationNew | AttributeMutationNew)]
        return not (lasting or effects.tensor_hooks or effects.save_for_backward or output.random_calls)
    except AttributeError:  # these are PyTorch's internals
        return False


class Graphs:
    """The graphs of one step function, made as they are needed.

    They do not hold the function: it is an argument that is looked at anew in every solve, so that what it closes over
    may change, and functions made anew from the same code share graphs.
    """

    def __init__(self) -> None:
        self.failed = False
        self._made: dict[tuple[int, bool], _Graph] = {}
        self._warned = False

    def call(self, size: int, rounded: bool, *args: Any) -> tuple[Block, Replay | None] | None:
        """`_block` with `size` steps; None where it cannot be compiled.

        Args:
            rounded: round what is computed between operations to its dtype, as eager operations do.
        """
        for _ in range(2):
            try:
                if (size, rounded) not in self._made:
                    self._made[size, rounded] = _Graph(rounded)
                return self._made[size, rounded](size, *args)
            except FailOnRecompileLimitHit:  # PyTorch would go on eagerly from here on; old graphs go instead
                del self._made[size, rounded]
                self._warn("step is compiled again and again: what it closes over, or its shapes, change between calls")
            except Exception as error:
                self.fail(error)
                return None
        return None

    def fail(self, error: Exception) -> None:
        """Give up. Compilers fail in many ways; where it is the step that fails, it fails eagerly as well."""
        self.failed = True
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        self._warn(f"step could not be compiled and runs eagerly: {reason}")

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warn_caller(message, CompileWarning)


_graphs: WeakKeyDictionary[Any, dict[Any, Graphs]] = WeakKeyDictionary()


def graphs_of(step: Callable[[Any, Any], Any]) -> Graphs:
    """The graphs of a step; they are kept as long as the module, other callable, or code that it is."""
    owner, part = step_owner(step)
    try:
        return _graphs.setdefault(owner, {}).setdefault(part, Graphs())
    except TypeError:  # not hashable, or without weak references
        return Graphs()
