"""One recorded evaluation of the map at its fixed point, and the Jacobian products that are taken from it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from homeostat.engine.backward.functional import is_transformed, unwrapped
from homeostat.engine.backward.graph import mark
from homeostat.engine.backward.recording import Recording, twice_refused
from homeostat.engine.batch_statistics import refuse_batch_statistics
from homeostat.engine.problem import Problem
from homeostat.engine.uncompiled import eagerly
from homeostat.errors import ContractError


class Tape:
    """`f` recorded at `problem.state`; `J` is its Jacobian there, over the measured leaves.

    Attributes:
        measured: positions of the measured leaves among all leaves.
        inputs: measured leaves of the state, free of any former graph.
        outputs: measured leaves of `f(state)`. Their graph reaches parameters and context.

    Example:
        >>> import torch
        >>> problem = Problem.of(lambda z, _: z * z, torch.tensor([[3.0]]), None)
        >>> tape = Tape(problem)
        >>> tape.pull([torch.ones(1, 1)]), tape.push([torch.ones(1, 1)])
        ([tensor([[6.]])], [tensor([[6.]])])
    """

    def __init__(self, problem: Problem, autocast: AbstractContextManager[Any] | None = None) -> None:
        """Record, under `autocast` if given: `backward` runs outside of the one that the forward pass had."""
        self.measured = problem.layout.measured()
        if autocast is None and torch.is_autocast_enabled(problem.state[0].device.type):
            torch.clear_autocast_cache()  # a weight that was cast before would seem to be computed from another
        self._problem, self._first = problem, mark()
        with torch.enable_grad(), autocast or nullcontext(), eagerly(), refuse_batch_statistics(dropout=True):
            state = list(problem.state)
            for i in self.measured:
                state[i] = state[i].detach().requires_grad_()
                state[i].register_post_accumulate_grad_hook(_forget)
            after = problem.apply(state, problem.context)
        self.inputs = [state[i] for i in self.measured]
        self.outputs = [after[i] for i in self.measured]
        self._values = self.outputs  # what products are taken of
        self._pushed: tuple[list[Tensor], list[Tensor]] | None = None

    def recording(self) -> Recording | None:
        """What was recorded, and what it was recorded with."""
        return Recording(self._problem, self.outputs, self.inputs, self._first)

    def pull(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """`J^T u` for one cotangent per measured leaf, in the dtypes of the state."""
        if len(self._values) == 1 and self._values[0].requires_grad:
            found = torch.autograd.grad(self._values[0], self.inputs[0], cotangents[0], True, allow_unused=True)
            return [torch.zeros_like(cotangents[0])] if found[0] is None else list(found)
        pairs = [(x, u) for x, u in zip(self._values, cotangents, strict=True) if x.requires_grad]
        if not pairs:
            return [torch.zeros_like(x) for x in self.inputs]
        outputs, chosen = zip(*pairs, strict=True)
        # Adding up what flows back is all that happens to these tensors, so a missing path is a plain zero.
        found = torch.autograd.grad(outputs, self.inputs, chosen, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(self.inputs, found, strict=True)]

    def push(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """`J v` for one tangent per measured leaf.

        `w -> J^T w` is linear, so that its own transposed product with `v` is `J v`, whatever `w` it is recorded at.
        Recorded once and used for every `v`; needs of the operations in `f` only that they can be differentiated twice.
        """
        if self._pushed is None:
            with torch.enable_grad():
                at = [torch.zeros_like(x, requires_grad=True) for x in self._values]
                used = [(x, w) for x, w in zip(self._values, at, strict=True) if x.requires_grad]
                outputs, chosen = [x for x, _ in used], [w for _, w in used]
                found: Sequence[Tensor | None] = [None for _ in self.inputs]
                if used:
                    found = torch.autograd.grad(outputs, self.inputs, chosen, create_graph=True, allow_unused=True)
            self._pushed = (
                at,
                [torch.zeros_like(x) if g is None else g for x, g in zip(self.inputs, found, strict=True)],
            )
        at, pulled = self._pushed
        pairs = [(x, v) for x, v in zip(pulled, tangents, strict=True) if x.requires_grad]
        if not pairs:
            return [torch.zeros_like(x) for x in at]
        outputs, chosen = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, at, chosen, retain_graph=True, allow_unused=True)
        if all(g is None for g in found):  # what is linear in `w` does not depend on it: the graph is broken
            raise twice_refused()
        return [torch.zeros_like(x) if g is None else g for x, g in zip(at, found, strict=True)]


class TransformedTape(Tape):
    """`Tape` under the transforms of `torch.func`, whose tensors cannot be asked to require a gradient.

    The evaluation that leads to parameters and context, or has their tangents, is another one than that which products
    are taken of: the latter begins at plain tensors, and below all transforms it leaves a plain graph.
    """

    def __init__(self, problem: Problem, autocast: AbstractContextManager[Any] | None = None) -> None:
        self.measured = problem.layout.measured()
        state = [x.detach() for x in problem.state]
        with torch.enable_grad(), autocast or nullcontext(), eagerly(), refuse_batch_statistics(dropout=True):
            after = problem.apply(list(state), problem.context)
            self.outputs = [after[i] for i in self.measured]
            with temporarily_clear_interpreter_stack():
                self.inputs = [unwrapped(state[i]).detach().requires_grad_() for i in self.measured]
            for i, leaf in zip(self.measured, self.inputs, strict=True):
                state[i] = leaf
            after = problem.apply(state, problem.context)
        self._values = [unwrapped(after[i]) for i in self.measured]
        self._pushed = None
        self._pull = None
        if not any(x.requires_grad for x in self._values):  # as it is where gradients are off around the transform
            self._pull = self._functional(problem)

    def _functional(self, problem: Problem) -> Any:
        def measured(*leaves: Tensor) -> tuple[Tensor, ...]:
            state = [x.detach() for x in problem.state]
            for i, leaf in zip(self.measured, leaves, strict=True):
                state[i] = leaf
            after = problem.apply(state, problem.context)
            return tuple(after[i] for i in self.measured)

        return torch.func.vjp(measured, *(problem.state[i].detach() for i in self.measured))[1]

    def recording(self) -> None:
        """Under a transform nothing is known of what was recorded."""

    def pull(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """See `Tape.pull`."""
        if self._pull is None:
            return super().pull(cotangents)
        return list(self._pull(tuple(cotangents), retain_graph=True))

    def push(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """See `Tape.push`."""
        if self._pull is None:
            return super().push(tangents)
        raise ContractError(
            "products with the Jacobian itself (NormalCG, forward mode) under torch.func need gradients to be enabled "
            "around it: leave torch.no_grad()"
        )


def record(problem: Problem, autocast: AbstractContextManager[Any] | None = None) -> Tape:
    """The tape that fits what is going on: `torch.func` or plain autograd.

    Example:
        >>> problem = Problem.of(lambda z, _: 2 * z, torch.ones(1, 1), None)
        >>> record(problem).pull([torch.ones(1, 1)])
        [tensor([[2.]])]
    """
    return TransformedTape(problem, autocast) if is_transformed() else Tape(problem, autocast)


def _forget(leaf: Tensor) -> None:
    """The last product flows into the tape's own inputs too; nobody reads it there."""
    leaf.grad = None


def present_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """The autocast of this moment: `backward` runs outside of it, and on some devices in another thread.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     kept = present_autocast(torch.device("cpu"))
        >>> with kept:
        ...     torch.is_autocast_enabled("cpu")
        True
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
