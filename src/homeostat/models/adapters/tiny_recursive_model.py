"""Models of the package `tiny-recursive-model`, as they are.

One step is one deep refinement, which the package's `forward` makes once and its `predict` up to 12 times: T rounds
(`num_refinement_blocks`), each of which refines the latents n times (`num_latent_refinements`) and the outputs once.
It costs T * (n + 1) evaluations of the network.
"""

from typing import Any

from torch import Tensor, nn

from homeostat.checks import plain_number
from homeostat.errors import ContractError, InputError
from homeostat.models.adapters.token_answers import TokenAnswers
from homeostat.models.contract import IteratedModel, check_attributes
from homeostat.models.starts import Start

_NEEDED = (
    "embed_inputs_with_registers",
    "get_initial",
    "deep_refinement",
    "to_pred",
    "to_halt_pred",
    "register_tokens",
    "num_refinement_blocks",
    "num_latent_refinements",
)


class TinyRecursive(TokenAnswers, nn.Module, IteratedModel):
    """See `tiny_recursive_model`."""

    def __init__(self, net: nn.Module, *, trained_steps: int | None, name: str) -> None:
        super().__init__()
        self.net: Any = net
        self.name = name
        self.trained_steps = plain_number(trained_steps)
        self.unit_cost = float(self.net.num_refinement_blocks * (self.net.num_latent_refinements + 1))

    @property
    def registers(self) -> int:
        """Tokens before the sequence that belong to no input; they think along and are cut off the answer."""
        return len(self.net.register_tokens)

    def encode(self, inputs: Tensor) -> Tensor:
        """Tokens `(batch, length)` to embeddings `(batch, registers + length, dim)`."""
        if inputs.ndim != 2 or inputs.is_floating_point():
            raise InputError(f"inputs must be tokens (batch, length), integers, not {inputs.dtype} {(*inputs.shape,)}")
        return self.net.embed_inputs_with_registers(inputs)[0]

    def initial_state(self, context: Tensor, start: Start) -> Any:
        outputs, latents = self.net.get_initial()  # (dim,) each, alike for all positions
        return start.like((outputs.expand_as(context).clone(), latents.expand_as(context).clone()))

    def step(self, state: tuple[Tensor, Tensor], context: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.deep_refinement(context, *state)

    def decode(self, state: tuple[Tensor, Tensor], context: Tensor) -> Tensor:
        """Logits `(batch, length, tokens)`."""
        return self.net.to_pred(state[0][:, self.registers :])

    def score(self, state: tuple[Tensor, Tensor], context: Tensor) -> Tensor:
        """`(batch,)`: the halting logit; the package's `predict` halts where its sigmoid reaches 0.5, a logit of 0."""
        return self.net.to_halt_pred(state[0])


def tiny_recursive_model(
    net: nn.Module, *, trained_steps: int | None = None, name: str = "tiny-recursive-model"
) -> TinyRecursive:
    """A `TinyRecursiveModel` of the package `tiny-recursive-model` (0.0.15), as a model of five functions.

    The state is the pair (outputs, latents), each `(batch, registers + length, dim)`; `unit_cost` counts evaluations of
    its network. Outputs are logits, and targets are tokens; -100 marks a position that is not asked for.

    Args:
        net: the package's model; it is used, not copied.
        trained_steps: deep refinements that training took at most: `max_recurrent_steps` of the package's `Trainer`.
        name: what reports call it.

    Raises:
        ContractError: another object, or an impossible horizon.

    Example:
        >>> import torch, warnings
        >>> with warnings.catch_warnings():  # the package's own imports warn
        ...     warnings.simplefilter("ignore")
        ...     from tiny_recursive_model import MLPMixer1D, TinyRecursiveModel
        >>> net = TinyRecursiveModel(dim=8, num_tokens=5, network=MLPMixer1D(dim=8, depth=1, seq_len=6))
        >>> model = tiny_recursive_model(net, trained_steps=12)
        >>> model.unit_cost  # T = 3 rounds of n = 6 refinements of the latents and one of the outputs
        21.0
        >>> from homeostat.models import Own
        >>> context = model.encode(torch.zeros(2, 6, dtype=torch.long))
        >>> state = model.step(model.initial_state(context, Own()), context)
        >>> tuple(model.decode(state, context).shape), tuple(model.score(state, context).shape)
        ((2, 6, 5), (2,))
    """
    missing = [part for part in _NEEDED if not hasattr(net, part)]
    if missing:
        raise ContractError(
            f"{type(net).__name__} has no {missing[0]}; give a TinyRecursiveModel of the package tiny-recursive-model"
        )
    check_attributes(trained_steps)
    return TinyRecursive(net, trained_steps=trained_steps, name=name)
