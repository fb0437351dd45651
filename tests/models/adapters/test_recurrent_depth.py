"""Looped language models, against their own forward; and the generic adapter against a loop by hand."""

import pytest
import torch
import transformers
from torch import nn

import homeostat as hs
from homeostat.errors import ContractError
from homeostat.models import Noise, Own, Perturbed, Projection, Zeros
from homeostat.models.adapters import albert, hrm_text, perceiver, recurrent_depth
from homeostat.models.conformance import check_model

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def make_hrm(attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    config = transformers.HrmTextConfig(
        **SIZES, num_hidden_layers=2, head_dim=8, H_cycles=3, L_cycles=2, initializer_range=0.3
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    nn.init.normal_(model.model.z_L_init)  # zeros would hide a start that is forgotten
    return model


def make_albert(attention: str = "sdpa", **more: int) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        **SIZES, embedding_size=8, num_hidden_layers=5, initializer_range=0.3, **{"inner_group_num": 2, **more}
    )
    return transformers.AutoModelForMaskedLM.from_config(config, attn_implementation=attention).eval()


def make_perceiver(attention: str = "eager") -> nn.Module:
    torch.manual_seed(0)
    config = transformers.PerceiverConfig(
        num_latents=4, d_latents=16, d_model=8, num_blocks=3, num_self_attends_per_block=2, vocab_size=40,
        num_self_attention_heads=2, num_cross_attention_heads=2, max_position_embeddings=6, initializer_range=0.3,
    )  # fmt: skip
    return transformers.PerceiverForMaskedLM(config).eval()


PRESETS = {"hrm_text": (make_hrm, hrm_text), "albert": (make_albert, albert), "perceiver": (make_perceiver, perceiver)}


def inputs_of(masked: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    found = {"input_ids": torch.randint(3, 40, (3, 6))}
    if masked:
        found["attention_mask"] = torch.ones(3, 6, dtype=torch.long)
        found["attention_mask"][1, 4:] = 0
    return found


def run(looped, inputs, steps):
    with torch.no_grad():
        context = looped.encode(inputs)
        state = looped.initial_state(context, Own())
        for _ in range(steps):
            state = looped.step(state, context)
        return looped.decode(state, context).movedim(1, -1)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_at_its_trained_steps_it_is_the_model_itself(name: str, masked: bool, attention: str) -> None:
    make, preset = PRESETS[name]
    model, inputs = make(attention), inputs_of(masked)
    looped = preset(model)
    with torch.no_grad():
        own = model(**inputs).logits
    assert torch.equal(run(looped, inputs, looped.trained_steps), own)
    for other in (looped.trained_steps - 1, looped.trained_steps + 1):
        assert not torch.allclose(run(looped, inputs, other), own, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "key"), [("hrm_text", "H_cycles"), ("albert", "num_hidden_layers"), ("perceiver", "num_blocks")]
)
def test_more_steps_are_the_model_with_more_of_them(name: str, key: str) -> None:
    """The model's own configuration turned up is another truth for steps beyond the horizon."""
    make, preset = PRESETS[name]
    model, inputs = make(), inputs_of(True)
    looped = preset(model)
    setattr(model.config, key, 7)
    with torch.no_grad():
        own = model(**inputs, **({"use_cache": False} if name == "hrm_text" else {})).logits
    assert torch.equal(run(looped, inputs, 7), own)


def test_prefixes_of_hrm_text_hear_of_themselves_in_full() -> None:
    model = make_hrm()
    inputs = inputs_of(False) | {"token_type_ids": torch.tensor([[1, 1, 1, 0, 0, 0]]).expand(3, 6)}
    with torch.no_grad():
        own = model(**inputs).logits
        assert not torch.allclose(own, model(inputs["input_ids"]).logits)
    assert torch.equal(run(hrm_text(model), inputs, 3), own)


@pytest.mark.parametrize("name", PRESETS)
def test_a_sequence_does_not_hear_of_its_batch(name: str) -> None:
    make, preset = PRESETS[name]
    looped, inputs = preset(make()), inputs_of(True)
    together = run(looped, inputs, 4)
    for row in range(3):
        alone = run(looped, {key: value[row : row + 1] for key, value in inputs.items()}, 4)
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_audits_run_on_presets(name: str) -> None:
    make, preset = PRESETS[name]
    looped, inputs = preset(make()), inputs_of(True)

    class Judge:
        def correct(self, outputs, targets):
            return (outputs.argmax(1) == targets).all(1)

    targets = run(looped, inputs, looped.trained_steps).argmax(-1)
    found = hs.audit(looped, [(inputs, targets)], steps=[1, looped.trained_steps], judge=Judge())
    assert found.difficulties[0].budgets[-1].exact.value == 1
    assert found.trained_steps == looped.trained_steps
    assert found.parameters == sum(p.numel() for p in looped.parameters())


def test_costs_are_counted_in_layers() -> None:
    assert [preset(make()).unit_cost for make, preset in PRESETS.values()] == [6, 2, 2]
    assert [preset(make()).trained_steps for make, preset in PRESETS.values()] == [3, 5, 3]


def test_presets_refuse_other_models() -> None:
    with pytest.raises(ContractError, match="takes transformers' HrmTextForCausalLM, not AlbertForMaskedLM"):
        hrm_text(make_albert())
    with pytest.raises(ContractError, match="takes transformers' AlbertForMaskedLM, not AlbertModel"):
        albert(make_albert().albert)
    with pytest.raises(ContractError, match="takes transformers' PerceiverForMaskedLM, not Linear"):
        perceiver(nn.Linear(2, 2))
    with pytest.raises(ContractError, match="5 groups of layers"):
        albert(make_albert(num_hidden_groups=5))


class Looped(nn.Module):
    """A recurrent-depth model as their repositories write it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.head = nn.Embedding(11, 8), nn.Linear(16, 8), nn.Linear(8, 11)

    def core(self, state, context):
        mixed = torch.tanh(self.mix(torch.cat([state, context["embedding"]], -1)))
        return mixed * context["mask"][..., None] * context["gain"]

    def forward(self, ids, mask, start, steps):
        context = {"embedding": self.embed(ids), "mask": mask, "gain": 0.9}
        for _ in range(steps):
            start = self.core(start, context)
        return self.head(start)


def adapted(net: Looped, **more):
    return recurrent_depth(
        prelude=lambda inputs: {
            "embedding": net.embed(inputs["ids"]), "mask": inputs["mask"], "gain": hs.Shared(0.9)
        },
        core=net.core,
        coda=net.head,
        owner=net,
        trained_steps=4,
        unit_cost=2.0,
        **more,
    )  # fmt: skip


def test_generic_adapter_against_the_loop() -> None:
    net = Looped()
    inputs = {"ids": torch.randint(11, (3, 5)), "mask": torch.ones(3, 5)}
    inputs["mask"][0, 3:] = 0
    with torch.no_grad():
        for start in (Zeros(), Noise(scale=0.63), Projection()):
            looped = adapted(net, start=start)
            first = looped.initial_state(looped.encode(inputs), Own())
            assert torch.equal(run(looped, inputs, 4), net(inputs["ids"], inputs["mask"], first, 4))
    assert (looped.trained_steps, looped.unit_cost) == (4, 2.0)
    assert len(list(looped.parameters())) == 5


def test_starts_are_what_they_say() -> None:
    net = Looped()
    inputs = {"ids": torch.randint(11, (64, 50)), "mask": torch.ones(64, 50)}
    context = adapted(net).encode(inputs)
    assert not adapted(net).initial_state(context, Own()).any()
    noisy = adapted(net, start=Noise(scale=0.63))
    drawn = noisy.initial_state(context, Own())
    assert drawn.std().item() == pytest.approx(0.63, rel=0.02)
    assert torch.equal(noisy.initial_state(context, Own().seeded(0, range(64))), drawn)
    assert not torch.equal(noisy.initial_state(context, Own().seeded(1, range(64))), drawn)
    assert not noisy.initial_state(context, Zeros()).any()
    assert torch.equal(adapted(net, start=Projection()).initial_state(context, Own()), context["embedding"])
    own = adapted(net, start=lambda context: context["embedding"] + 1).initial_state(context, Own())
    assert torch.equal(own, context["embedding"] + 1)
    # An example's noise is its own, whoever shares its batch.
    part = noisy.encode({key: value[3:5] for key, value in inputs.items()})
    assert torch.equal(noisy.initial_state(part, Own().seeded(0, [3, 4])), drawn[3:5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": Perturbed()}, "start must be Zeros"),
        ({"start": "zeros"}, "start must be Zeros"),
        ({"core": None}, "core must be a function or a module, not None"),
        ({"trained_steps": 0}, "trained_steps must be None or a whole number above 0, not 0"),
        ({"unit_cost": float("nan")}, "unit_cost must be a number above 0, not nan"),
    ],
)
def test_options_that_make_no_sense(change: dict, message: str) -> None:
    options = {"prelude": lambda x: x, "core": lambda z, c: z, "coda": lambda z: z, **change}
    with pytest.raises(ContractError, match=message):
        recurrent_depth(**options)


def test_parts_that_do_not_fit() -> None:
    model = recurrent_depth(prelude=lambda x: {"x": x}, core=lambda z, c: z, coda=lambda z: z)
    with pytest.raises(ContractError, match="a dict with 'embedding'"):
        model.initial_state(model.encode(torch.zeros(2, 3)), Own())
    model = recurrent_depth(prelude=lambda x: x, core=lambda z, c: z, coda=lambda z: z.argmax(-1))
    with pytest.raises(ContractError, match="coda must return logits"):
        model.decode(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_the_contract(name: str) -> None:
    make, preset = PRESETS[name]
    found = check_model(preset(make()), inputs_of(True))
    assert found.passed, found


def test_the_generic_adapter_keeps_the_contract() -> None:
    inputs = {"ids": torch.randint(11, (3, 5)), "mask": torch.ones(3, 5)}
    found = check_model(adapted(Looped(), start=Noise(scale=0.63)), inputs)
    assert found.passed, found
