"""What differs under the transforms of `torch.func`, and what cannot work there."""

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, get_unwrapped, is_functorch_wrapped_tensor

from homeostat.errors import ContractError


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is at work, `vmap` of a backward pass included.

        Example:
            >>> from typing import Any

    import torch
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
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def no_tangents() -> Any:
    """No tangents are computed while this lasts, as no graph is under `torch.no_grad`."""
    return torch.autograd.forward_ad._set_fwd_grad_enabled(False)
