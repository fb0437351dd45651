"""What differs under the transforms of `torch.func`, and what cannot work there."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd.forward_ad import unpack_dual

from homeostat.engine.problem import Problem
from homeostat.errors import ContractError


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is at work, `vmap` of a backward pass included.

    Example:
        >>> is_transformed(), torch.func.grad(lambda x: x * is_transformed())(torch.tensor(2.0))
        (False, tensor(1.))
    """
    return bool(get_interpreter_stack())


def refuse_vmap() -> None:
    """A solve decides, row by row, when it is done; `vmap` allows no decisions.

    Raises:
        ContractError: under `torch.vmap`.
    """
    stack = get_interpreter_stack() or ()
    if any(level.key() == TransformType.Vmap for level in stack):
        raise ContractError("solve cannot run under torch.vmap: put those examples into its batch dimension")


def refuse_forward_mode(outputs: Sequence[Tensor]) -> None:
    """Only `Unrolled` computes what forward-mode differentiation asks for.

    Raises:
        ContractError: a recorded evaluation carries tangents.
    """
    if any(unpack_dual(x).tangent is not None for x in outputs):
        raise ContractError("forward-mode differentiation of a solve needs gradient=Unrolled()")


class FunctionalTape:
    """`Tape` under `torch.func`, where tensors cannot be asked to require a gradient: products by `torch.func.vjp`.

    The evaluation that leads to parameters and context is another one than that which products are taken from.
    """

    def __init__(self, problem: Problem) -> None:
        self.measured = problem.layout.measured()
        self.inputs = [problem.state[i].detach() for i in self.measured]
        outputs = problem.apply([x.detach() for x in problem.state], problem.context)
        self.outputs = [outputs[i] for i in self.measured]

        def measured(*leaves: Tensor) -> tuple[Tensor, ...]:
            state = [x.detach() for x in problem.state]
            for i, leaf in zip(self.measured, leaves, strict=True):
                state[i] = leaf
            after = problem.apply(state, problem.context)
            return tuple(after[i] for i in self.measured)

        self._pull = torch.func.vjp(measured, *self.inputs)[1]

    def recording(self) -> None:
        """Under a transform nothing is known of what was recorded."""

    def pull(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """See `Tape.pull`."""
        return list(self._pull(tuple(cotangents), retain_graph=True))

    def push(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """See `Tape.push`."""
        at = tuple(torch.zeros_like(x) for x in self.inputs)
        again = torch.func.vjp(lambda *w: self._pull(w, retain_graph=True, create_graph=True), *at)[1]
        return list(again(tuple(tangents)))
