"""A frozen language model that loops, against the model's own forward and a loop written by hand."""

import pytest
import torch
import transformers
from torch import nn

import homeostat as hs
from homeostat.errors import ContractError
from homeostat.models import Own
from homeostat.models.adapters import loop_layers
from homeostat.models.conformance import check_model

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
INNER = {"intermediate_size": 32, "num_key_value_heads": 1, "max_position_embeddings": 64}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, **INNER),
    "qwen2": lambda: transformers.Qwen2Config(
        **SIZES, **INNER, use_sliding_window=True, sliding_window=3, max_window_layers=2
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, **INNER, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**SIZES, **INNER, sliding_window=3),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, **INNER, head_dim=8, sliding_window=3, final_logit_softcapping=2.0
    ),
    "gpt2": lambda: transformers.GPT2Config(**SIZES, n_positions=64),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES, intermediate_size=32, max_position_embeddings=64),
    "opt": lambda: transformers.OPTConfig(**SIZES, ffn_dim=32, max_position_embeddings=64, word_embed_proj_dim=16),
}


def made(name: str, attention: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    config = CONFIGS[name]()
    # Wide weights, so that layers matter; a batch with padding has half of it in one row.
    config.initializer_range = 0.3
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def padded() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(3, 40, (3, 7)), "attention_mask": mask}


def run(looped, inputs, steps):
    with torch.no_grad():
        context = looped.encode(inputs)
        state = looped.initial_state(context, Own())
        for _ in range(steps):
            state = looped.step(state, context)
        return looped.decode(state, context).movedim(1, -1)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 2), (0, 3), (3, 3)])
def test_one_step_is_the_model_itself(name: str, first: int, last: int) -> None:
    model = made(name)
    ids = padded()["input_ids"]
    with torch.no_grad():
        own = model(ids).logits
    for damping in (0.3, 1.0):
        assert torch.equal(run(loop_layers(model, first, last, damping=damping), ids, 1), own)


@pytest.mark.parametrize(
    ("name", "attention"), [(n, a) for n in CONFIGS for a in ("sdpa", "eager") if (n, a) != ("gemma2", "sdpa")]
)
def test_one_step_is_the_model_itself_with_padding(name: str, attention: str) -> None:
    model, inputs = made(name, attention), padded()
    with torch.no_grad():
        own = model(**inputs).logits
    assert torch.equal(run(loop_layers(model, 1, 2), inputs, 1), own)
    assert not torch.allclose(own, model(inputs["input_ids"]).logits)  # the padding matters


def test_further_steps_are_the_damped_layers() -> None:
    """Against a llama put together by hand from its parts."""
    model, ids = made("llama"), padded()["input_ids"]
    trunk = model.model
    with torch.no_grad():
        hidden = trunk.embed_tokens(ids)
        turn = trunk.rotary_emb(hidden, torch.arange(7)[None])

        def through(hidden, layers):
            for i in layers:
                hidden = trunk.layers[i](hidden, position_embeddings=turn)
            return hidden

        z = through(through(hidden, [0]), [1, 2])
        for _ in range(3):
            z = z + 0.25 * (through(z, [1, 2]) - z)
        by_hand = model.lm_head(trunk.norm(through(z, [3])))
    found = run(loop_layers(model, 1, 2, damping=0.25), ids, 4)
    torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-5)
    whole = run(loop_layers(model, 1, 2, damping=1.0), ids, 2)
    assert not torch.allclose(whole, found, atol=1e-2)


@pytest.mark.parametrize("name", ["mistral", "gpt2", "gemma2"])
def test_a_sequence_does_not_hear_of_its_batch(name: str) -> None:
    looped, inputs = loop_layers(made(name), 1, 2), padded()
    together = run(looped, inputs, 3)
    for row in range(3):
        alone = run(looped, {key: value[row : row + 1] for key, value in inputs.items()}, 3)
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-4)


def test_rows_with_and_without_padding_can_share_a_batch() -> None:
    """The model leaves its mask out where nothing is padded; the context has one all the same."""
    looped, inputs = loop_layers(made("llama"), 1, 2), padded()
    full = {key: value[:1] for key, value in inputs.items()}
    alone = {key: value[1:2] for key, value in inputs.items()}
    masks = [looped.encode(x)["layers"][0]["attention_mask"] for x in (full, alone)]
    assert all(isinstance(mask, torch.Tensor) and mask.shape == (1, 1, 7, 7) for mask in masks)


def test_the_model_is_left_as_it_was() -> None:
    model, ids = made("llama"), padded()["input_ids"]
    modules = dict(model.named_modules())
    run(loop_layers(model, 1, 2), ids, 2)
    assert dict(model.named_modules()) == modules
    assert loop_layers(model, 1, 2).trained_steps == 1
    assert loop_layers(model, 1, 2).unit_cost == 2


def test_an_audit_runs_on_it() -> None:
    looped, inputs = loop_layers(made("gpt2"), 1, 2), padded()

    class Judge:
        def correct(self, outputs, targets):
            return (outputs.argmax(1) == targets).all(1)

    targets = run(looped, inputs, 1).argmax(-1)
    found = hs.audit(looped, [(inputs, targets)], steps=[1, 2], judge=Judge())
    assert found.trained_steps == 1
    assert found.difficulties[0].budgets[0].exact.value == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"damping": 0}, "damping must be a number above 0 and at most 1, not 0"),
        ({"last": 4}, "layers 0 to 3 of model.layers, first not behind last, not 1 and 4"),
        ({"first": 3}, "not 3 and 2"),
        ({"layers": "model.norm"}, "no list of layers at 'model.norm'; there are model.layers"),
    ],
)
def test_options_that_make_no_sense(change: dict, message: str) -> None:
    options = {"first": 1, "last": 2, **change}
    with pytest.raises(ContractError, match=message):
        loop_layers(made("llama"), **options)


def test_models_that_cannot_be_looped() -> None:
    with pytest.raises(ContractError, match="not plain to see"):
        loop_layers(nn.Linear(2, 2), 0, 0)
    t5 = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    with pytest.raises(ContractError, match="an encoder and a decoder"):
        loop_layers(transformers.T5ForConditionalGeneration(t5), 0, 1)
    model = made("llama")
    model.model.forward = model.model.forward  # as a device map does
    with pytest.raises(ContractError, match="forward of model has been replaced"):
        loop_layers(model, 1, 2)


def test_layers_that_take_tensors_of_unknown_meaning() -> None:
    config = transformers.BloomConfig(vocab_size=40, hidden_size=16, n_layer=3, n_head=2)
    with pytest.raises(ContractError, match="takes a tensor 'alibi'"):
        loop_layers(transformers.BloomForCausalLM(config).eval(), 0, 1).encode(padded()["input_ids"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 3), "must be whole numbers of shape"),
        ({"input_ids": torch.zeros(2, 3, dtype=torch.long), "labels": torch.zeros(2, 3)}, "have no 'labels'"),
        (
            {"input_ids": torch.zeros(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 4)},
            r"attention_mask must have the shape of input_ids, \(2, 3\), not \(2, 4\)",
        ),
        ({}, "not a NoneType"),
    ],
)
def test_inputs_that_are_none(inputs: object, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        loop_layers(made("llama"), 1, 2).encode(inputs)


@pytest.mark.parametrize("name", ["mistral", "gpt2"])
def test_it_keeps_the_contract(name: str) -> None:
    for damping in (0.5, 1.0):
        found = check_model(loop_layers(made(name), 1, 2, damping=damping), padded())
        assert found.passed, found
