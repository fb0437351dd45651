"""HRM-Text, as transformers ships it: a slow and a fast state that two stacks of layers refine in turn."""

from typing import Any

from torch import Tensor, nn

from homeostat.errors import ContractError
from homeostat.models.adapters.recurrent_depth import RecurrentDepth, recurrent_depth
from homeostat.models.adapters.stand_in import Fixed, Recorder, with_modules
from homeostat.models.adapters.token_inputs import bare, layer_arguments, read_tokens


def hrm_text(model: nn.Module) -> RecurrentDepth:
    """`transformers.HrmTextForCausalLM` as an iterated model.

    A step is one high cycle: `L_cycles` times `low ← L(low + high)`, then `high ← H(high + low)`. It was trained with
    `H_cycles` of them, and costs `(L_cycles + 1) · num_layers_per_stack` layers. The state is the pair `(high, low)`,
    each `(batch, length, width)`; the answer is read from `high`. The input is in the start of `high` alone, and is not
    injected again: runs from zeros or noise have lost it (`Perturbed` starts have not). In training, the model's own
    forward lets gradients through the last low cycles of a step only; here they pass through all.

    Args:
        model: `HrmTextForCausalLM`; inputs may have `token_type_ids` (1 where a prefix hears of itself in full).

    Raises:
        ContractError: another model.

    Example:
        >>> import torch, transformers
        >>> from homeostat.models import Own
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        >>> config = transformers.HrmTextConfig(**sizes, num_attention_heads=2, head_dim=8, H_cycles=3, L_cycles=2)
        >>> looped = hrm_text(transformers.HrmTextForCausalLM(config).eval())
        >>> looped.trained_steps, looped.unit_cost
        (3, 3.0)
    """
    if getattr(getattr(model, "config", None), "model_type", None) != "hrm_text" or not hasattr(model, "lm_head"):
        raise ContractError(f"hrm_text takes transformers' HrmTextForCausalLM, not {type(model).__name__}")
    own: Any = model
    trunk, config = own.model, own.config

    def prelude(inputs: Any) -> dict[str, Any]:
        tokens = read_tokens(inputs)
        low, high = Recorder(trunk.L_module), trunk.H_module
        # The stacks are left out; what remains makes the mask and the rotary tables.
        embedding = trunk.embed_tokens(tokens["input_ids"]) * trunk.embedding_scale
        with_modules(trunk, {"L_module": low, "H_module": Fixed(high, embedding)})(**tokens, use_cache=False)
        arguments = layer_arguments(low, trunk.L_module, tokens, causal=True)
        arguments.pop("cycle_offset", None)  # a place in a cache that is not used
        return {"embedding": embedding, "arguments": arguments}

    def start(context: dict[str, Any]) -> tuple[Tensor, Tensor]:
        high = context["embedding"]
        return high, trunk.z_L_init.to(high).expand_as(high)

    def core(state: tuple[Tensor, Tensor], context: dict[str, Any]) -> tuple[Tensor, Tensor]:
        (high, low), arguments = state, bare(context)["arguments"]
        for _ in range(config.L_cycles):
            low = trunk.L_module(low + high, **arguments)
        return trunk.H_module(high + low, **arguments), low

    return recurrent_depth(
        prelude=prelude,
        core=core,
        coda=lambda state: own.lm_head(state[0]),
        start=start,
        owner=model,
        trained_steps=config.H_cycles,
        unit_cost=float((config.L_cycles + 1) * config.num_layers_per_stack),
        name=type(model).__name__,
    )
