"""Language models that iterate over depth: a prelude, a core that is applied again and again, and a coda."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.errors import ContractError
from homeostat.models.adapters.token_inputs import bare
from homeostat.models.contract import IteratedModel, from_functions
from homeostat.models.starts import Noise, Own, Projection, Start, Zeros

_STARTS = (Zeros, Noise, Projection)
"""What a model's own start can be; the others are made from an own start."""


class RecurrentDepth(nn.Module, IteratedModel):
    """See `recurrent_depth`, which makes one.

    Attributes:
        token_states: whether the leaves of a state are `(batch, length, …)`, so that residuals are known per token.
    """

    def __init__(
        self,
        *,
        functions: IteratedModel,
        owned: list[nn.Module],
        start: Zeros | Noise | Projection | Callable[[Any], Any],
        embedding: Callable[[Any], Tensor],
        token_states: bool,
    ) -> None:
        super().__init__()
        self.owned = nn.ModuleList(owned)
        self._functions, self._start, self._embedding = functions, start, embedding
        self.token_states = token_states
        self.name, self.trained_steps = functions.name, functions.trained_steps
        self.unit_cost, self.stochastic = functions.unit_cost, functions.stochastic

    def encode(self, inputs: Any) -> Any:
        return self._functions.encode(inputs)

    def initial_state(self, context: Any, start: Start) -> Any:
        """The model's own start, or any other in its shape. `Projection` starts from the embedding."""
        context = bare(context)
        if isinstance(self._start, _STARTS):
            template = torch.zeros_like(self._embedding(context))
            if isinstance(start, Own):  # noise of the model's own is drawn example by example, by the seed asked for
                indices = range(len(template)) if start.indices is None else start.indices
                start = self._start.seeded(start.seed, indices)
        else:
            template = self._start(context)
        return start.like(template, lambda: self._embedding(context))

    def step(self, state: Any, context: Any) -> Any:
        return self._functions.step(state, bare(context))

    def decode(self, state: Any, context: Any) -> Tensor:
        """`(batch, vocabulary, length)` logits: classes along dimension 1, as everywhere in the package."""
        logits = self._functions.decode(state, bare(context))
        if not isinstance(logits, Tensor) or logits.ndim < 2 or not logits.is_floating_point():
            what = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ContractError(f"coda must return logits of shape (batch, length, vocabulary), not {what}")
        return logits.movedim(-1, 1)

    def score(self, state: Any, context: Any) -> Tensor | None:
        return self._functions.score(state, bare(context))


def recurrent_depth(
    *,
    prelude: Callable[[Any], Any],
    core: Callable[..., Any],
    coda: Callable[..., Tensor],
    start: Zeros | Noise | Projection | Callable[[Any], Any] | None = None,
    embedding: Callable[[Any], Tensor] | None = None,
    score: Callable[[Any, Any], Tensor] | None = None,
    owner: nn.Module | None = None,
    trained_steps: int | None = None,
    unit_cost: float = 1.0,
    stochastic: bool = False,
    token_states: bool = True,
    name: str = "recurrent depth",
) -> RecurrentDepth:
    """A looped language model from the three parts that it has anyway. A step is one application of the core.

    Args:
        prelude: `inputs -> context`: the embedded sequence `(batch, length, width)`, or a dict of what the core needs:
            `"embedding"`, and masks, position ids or rotary tables, one entry a sequence, or `hs.Shared` where all
            sequences have the same.
        core: `(state, context) -> state`, or a module that takes the state alone.
        coda: `state -> logits`, or `(state, context) -> logits`, `(batch, length, vocabulary)`.
        start: where a run begins, as one of the package's starts, in the shape of the embedding: `Zeros()` when None;
            `Noise(scale=0.63)` is N(0, 2/5), which the recurrent-depth models of Geiping et al. start from (there cut
            off at three standard deviations); `Projection()` is the embedding itself. Or a function `context -> state`
            for states of any other shape. Noise is drawn per example, from the seed that a probe asks for.
        embedding: `context -> tensor` in the shape of the state; by default the context itself, or its `"embedding"`.
        score: `(state, context) -> (batch,)`: an exit gate, larger is surer.
        owner: the module that the functions close over, so that a probe finds its device and puts it into evaluation
            mode; not needed where prelude, core and coda are modules themselves.
        trained_steps: the most steps it took in training; None when unknown.
        unit_cost: layers in the core.
        stochastic: whether the core draws random numbers.
        token_states: whether the state has one entry a token along dimension 1.
        name: what reports call it.

    Raises:
        ContractError: what cannot be called, an impossible start, horizon or cost.

    Source:
        Geiping et al., "Scaling up test-time compute with latent reasoning: a recurrent depth approach", arXiv
        2502.05171 (prelude, core, coda; state noise).

    Example:
        >>> table = torch.eye(5)
        >>> model = recurrent_depth(
        ...     prelude=lambda ids: table[ids],
        ...     core=lambda state, embedding: 0.5 * state + embedding,
        ...     coda=lambda state: state @ table.T,
        ...     trained_steps=4,
        ... )
        >>> context = model.encode(torch.tensor([[0, 3, 4]]))
        >>> state = model.step(model.initial_state(context, Own()), context)
        >>> tuple(model.decode(state, context).shape), model.decode(state, context).argmax(1)
        ((1, 5, 3), tensor([[0, 3, 4]]))
    """
    start = Zeros() if start is None else start
    if not isinstance(start, _STARTS) and not callable(start):
        raise ContractError(f"start must be Zeros(), Noise(scale=…), Projection() or a function, not {start!r}")
    parts = {"prelude": prelude, "core": core, "coda": coda}
    for part, function in parts.items():
        if not callable(function):
            raise ContractError(f"{part} must be a function or a module, not {function!r}")
    functions = from_functions(
        encode=prelude,
        initial_state=lambda context: context,
        step=_of_two(core),
        decode=_of_two(coda),
        score=score,
        name=name,
        trained_steps=trained_steps,
        unit_cost=unit_cost,
        stochastic=stochastic,
    )
    owned = [owner] if owner is not None else [f for f in parts.values() if isinstance(f, nn.Module)]
    return RecurrentDepth(
        functions=functions,
        owned=owned,
        start=start,
        embedding=_embedding if embedding is None else embedding,
        token_states=token_states,
    )


def _of_two(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """As a function of state and context; a part that takes one argument is given the state."""
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except (TypeError, ValueError):  # built-in functions do not tell
        return function
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in positional)
    if needed > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return function
    return lambda state, context: function(state)


def _embedding(context: Any) -> Tensor:
    found = context.get("embedding") if isinstance(context, dict) else context
    if not isinstance(found, Tensor):
        raise ContractError(
            "prelude must return the embedded sequence, or a dict with 'embedding': that is the shape of the state; "
            "or say embedding=, or start= as a function"
        )
    return found
