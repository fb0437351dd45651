"""ALBERT, as transformers ships it: one group of layers, applied at every depth."""

from typing import Any

from torch import Tensor, nn

from homeostat.errors import ContractError
from homeostat.models.adapters.recurrent_depth import RecurrentDepth, recurrent_depth
from homeostat.models.adapters.stand_in import Fixed, Recorder, with_modules
from homeostat.models.adapters.token_inputs import bare, layer_arguments, read_tokens

_GROUP = "albert.encoder.albert_layer_groups.0"


def albert(model: nn.Module) -> RecurrentDepth:
    """`transformers.AlbertForMaskedLM` as an iterated model.

    A step is one application of the shared group; it was trained with `num_hidden_layers` of them, and one costs
    `inner_group_num` layers. The state is the hidden states `(batch, length, width)`. The input is in the start alone:
    runs from zeros or noise have lost it. Answers are the masked tokens, not the next ones: targets are `IGNORE`
    wherever no token is masked.

    Args:
        model: `AlbertForMaskedLM`, with one group of layers (`num_hidden_groups=1`, as all published ones).

    Raises:
        ContractError: another model, or one with several groups: these are several maps, one after the other.

    Example:
        >>> import torch, transformers
        >>> sizes = {"vocab_size": 50, "embedding_size": 8, "hidden_size": 16, "intermediate_size": 32}
        >>> config = transformers.AlbertConfig(**sizes, num_hidden_layers=5, num_attention_heads=2)
        >>> looped = albert(transformers.AlbertForMaskedLM(config).eval())
        >>> looped.trained_steps, looped.unit_cost
        (5, 1.0)
    """
    if getattr(getattr(model, "config", None), "model_type", None) != "albert" or not hasattr(model, "predictions"):
        raise ContractError(f"albert takes transformers' AlbertForMaskedLM, not {type(model).__name__}")
    own: Any = model
    config = own.config
    if config.num_hidden_groups != 1:
        raise ContractError(
            f"this ALBERT has {config.num_hidden_groups} groups of layers, so that its depth is not one map applied "
            "again and again; num_hidden_groups must be 1"
        )
    group = model.get_submodule(_GROUP)

    def prelude(inputs: Any) -> dict[str, Any]:
        tokens = read_tokens(inputs)
        recorder = Recorder(group)
        with_modules(own.albert, {_GROUP.partition(".")[2]: recorder})(**tokens)
        assert recorder.args is not None
        arguments = layer_arguments(recorder, group, tokens, causal=False)
        return {"embedding": recorder.args[0], "arguments": arguments, "tokens": tokens}

    def core(state: Tensor, context: dict[str, Any]) -> Tensor:
        return group(state, **bare(context)["arguments"])

    def coda(state: Tensor, context: dict[str, Any]) -> Tensor:
        return with_modules(model, {_GROUP: Fixed(group, state)})(**context["tokens"]).logits

    return recurrent_depth(
        prelude=prelude,
        core=core,
        coda=coda,
        start=lambda context: context["embedding"],
        owner=model,
        trained_steps=config.num_hidden_layers,
        unit_cost=float(config.inner_group_num),
        name=type(model).__name__,
    )
