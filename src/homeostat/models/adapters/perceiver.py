"""The Perceiver, as transformers ships it: one block of self-attention over latents, applied several times."""

from typing import Any

from torch import Tensor, nn

from homeostat.errors import ContractError
from homeostat.models.adapters.recurrent_depth import RecurrentDepth, recurrent_depth
from homeostat.models.adapters.stand_in import Fixed, Recorder, StandIn, with_modules
from homeostat.models.adapters.token_inputs import read_tokens

_ENCODER = "perceiver.encoder"


def perceiver(model: nn.Module) -> RecurrentDepth:
    """`transformers.PerceiverForMaskedLM` as an iterated model.

    A step is one application of the block of self-attention layers; it was trained with `num_blocks` of them, and one
    costs `num_self_attends_per_block` layers. The state is the latents `(batch, num_latents, d_latents)` after the
    cross-attention that reads the input; the input is not read again. Latents are no tokens: residuals are per sequence
    only. Answers are the masked tokens, not the next ones.

    Args:
        model: `PerceiverForMaskedLM`. Its length is `max_position_embeddings`: pad to that.

    Raises:
        ContractError: another model.

    Example:
        >>> import transformers
        >>> sizes = {"num_latents": 4, "d_latents": 16, "d_model": 8, "num_blocks": 3, "num_self_attends_per_block": 2}
        >>> config = transformers.PerceiverConfig(
        ...     **sizes, num_self_attention_heads=2, num_cross_attention_heads=2, max_position_embeddings=6
        ... )
        >>> looped = perceiver(transformers.PerceiverForMaskedLM(config).eval())
        >>> looped.trained_steps, looped.unit_cost
        (3, 2.0)
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "perceiver" or not hasattr(model, "embedding_decoder"):
        raise ContractError(f"perceiver takes transformers' PerceiverForMaskedLM, not {type(model).__name__}")
    encoder: Any = model.get_submodule(_ENCODER)
    layers: list[Any] = list(encoder.self_attends)

    def left_out() -> dict[str, nn.Module]:
        return {f"{_ENCODER}.self_attends.{i}": StandIn(layer, in_tuple=True) for i, layer in enumerate(layers)}

    def prelude(inputs: Any) -> dict[str, Any]:
        tokens = read_tokens(inputs)
        first = Recorder(layers[0], in_tuple=True)
        replaced = left_out() | {f"{_ENCODER}.self_attends.0": first}
        with_modules(model, replaced)(**tokens)
        assert first.args is not None
        return {"latents": first.args[0], "tokens": tokens}

    def core(state: Tensor, context: dict[str, Any]) -> Tensor:
        for layer in layers:
            state = layer(state)[0]
        return state

    def coda(state: Tensor, context: dict[str, Any]) -> Tensor:
        last = f"{_ENCODER}.self_attends.{len(layers) - 1}"
        replaced = left_out() | {last: Fixed(layers[-1], state, in_tuple=True)}
        return with_modules(model, replaced)(**context["tokens"]).logits

    return recurrent_depth(
        prelude=prelude,
        core=core,
        coda=coda,
        start=lambda context: context["latents"],
        embedding=lambda context: context["latents"],
        owner=model,
        trained_steps=config.num_blocks,
        unit_cost=float(config.num_self_attends_per_block),
        token_states=False,
        name=type(model).__name__,
    )
