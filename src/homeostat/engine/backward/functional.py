"""What differs under the transforms of `torch.func`, and what cannot work there."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._C._functorch import TransformType, get_interpreter_stack

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
    """A stream yields examples one after another, and `vmap` takes all of them together.

    Raises:
        ContractError: under `torch.vmap`.
    """
    if any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or ()):
        raise ContractError("solve_stream cannot run under torch.vmap: put those examples into the stream")


def is_graphed_by_transform() -> bool:
    """Whether one of these transforms is `grad`, `vjp` or what is made of them."""
    return any(level.key() == TransformType.Grad for level in get_interpreter_stack() or ())


def refuse_mixed_modes() -> None:
    """Forward and reverse mode in one another ask for second derivatives, which a solve does not give that way.

    Raises:
        ContractError: both are at work.
    """
    kinds = {level.key() for level in get_interpreter_stack() or ()}
    if {TransformType.Grad, TransformType.Jvp} <= kinds:
        raise ContractError(
            "torch.func's jvp and grad of one another need a second derivative of the solve: take it by "
            "torch.autograd.grad(..., create_graph=True), or use gradient=Unrolled()"
        )


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor below all transforms."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


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
