"""The adapter for the package `tiny-recursive-model`, against the package's own `forward` and `predict`."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.errors import ContractError, InputError
from homeostat.models import Noise, Own, Zeros
from homeostat.models.adapters import tiny_recursive_model

with warnings.catch_warnings():  # the package's own imports warn
    warnings.simplefilter("ignore")
    from tiny_recursive_model import MLPMixer1D, TinyRecursiveModel

LENGTH, TOKENS, REGISTERS = 7, 6, 3


@pytest.fixture(params=[0, REGISTERS], ids=["no registers", "registers"])
def net(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    mixer = MLPMixer1D(dim=8, depth=1, seq_len=LENGTH + request.param)
    net = TinyRecursiveModel(
        dim=8,
        num_tokens=TOKENS,
        network=mixer,
        num_refinement_blocks=2,
        num_latent_refinements=3,
        num_register_tokens=request.param,
    ).eval()
    torch.nn.init.normal_(net.output_init_embed)
    torch.nn.init.normal_(net.latent_init_embed)
    # The package starts the halting head at zero, where every example halts at once.
    weight = net.to_halt_pred[1].weight
    torch.nn.init.normal_(weight)
    with torch.no_grad():
        first = net(random_tokens(), *net.get_initial())[0].mean(1)  # (b d); so that a half halts at the first step
        median = first.median(0).values
        weight -= (weight @ median) / (median @ median) * median
    return net


@pytest.fixture(name="tokens")
def random_tokens_fixture() -> Tensor:
    return random_tokens()


def random_tokens() -> Tensor:
    return torch.randint(TOKENS, (40, LENGTH), generator=torch.Generator().manual_seed(1))


def test_every_depth_is_the_packages_own_forward(net: Any, tokens: Tensor) -> None:
    model = tiny_recursive_model(net)
    with torch.no_grad():
        context = model.encode(tokens)
        state = model.initial_state(context, Own())
        outputs, latents = net.get_initial()
        for _ in range(5):
            state = model.step(state, context)
            outputs, latents, logits, halting = net(tokens, outputs, latents)
            assert torch.equal(state[0], outputs)
            assert torch.equal(state[1], latents)
            assert torch.equal(model.decode(state, context), logits)
            assert torch.equal(model.score(state, context).sigmoid(), halting)


def test_halting_where_the_score_reaches_zero_is_the_packages_own_predict(net: Any, tokens: Tensor) -> None:
    most = 9
    model = tiny_recursive_model(net)
    expected, expected_steps = net.predict(tokens, max_deep_refinement_steps=most)
    with torch.no_grad():
        context = model.encode(tokens)
        state = model.initial_state(context, Own())
        steps = torch.zeros(len(tokens), dtype=torch.long)
        answers = torch.zeros_like(tokens)
        for step in range(1, most + 1):
            state = model.step(state, context)
            halts = (steps == 0) & ((model.score(state, context) >= 0) | (step == most))
            steps[halts] = step
            answers[halts] = model.answers(model.decode(state, context))[halts]
    assert torch.equal(steps, expected_steps)
    assert torch.equal(answers, expected)
    assert len(steps.unique()) > 1  # else the comparison says little


def test_solve_and_other_starts(net: Any, tokens: Tensor) -> None:
    model = tiny_recursive_model(net, trained_steps=4)
    with torch.no_grad():
        context = model.encode(tokens)
        own = model.initial_state(context, Own())
        found = hs.solve(model.step, own, context, method=hs.Picard(), stop=hs.Stop(rtol=0, max_steps=3))
        outputs, latents = net.get_initial()
        for _ in range(3):
            outputs, latents, *_ = net(tokens, outputs, latents)
    torch.testing.assert_close(found.state, (outputs, latents))
    assert not any(leaf.any() for leaf in model.initial_state(context, Zeros()))
    assert not torch.equal(model.initial_state(context, Noise())[0], own[0])
    assert model.unit_cost == 2 * (3 + 1)


def test_what_is_not_asked_for_is_not_judged(net: Any) -> None:
    model = tiny_recursive_model(net)
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3]]), TOKENS).float()
    targets = torch.tensor([[1, 2, 3], [1, -100, 0], [-100, -100, -100]])
    assert model.correct(logits, targets).tolist() == [True, False, True]
    assert model.symbols(logits, targets).tolist() == [1.0, 0.5, 1.0]
    right = -torch.log_softmax(logits[0, 0], 0)[1]  # by hand: one logit of 1, the others 0
    wrong = -torch.log_softmax(logits[0, 0], 0)[0]
    torch.testing.assert_close(model.loss(logits, targets), torch.stack([right, (right + wrong) / 2, torch.zeros(())]))


def test_what_is_no_such_model_is_refused(net: Any) -> None:
    with pytest.raises(ContractError, match="Linear has no embed_inputs_with_registers; give a TinyRecursiveModel"):
        tiny_recursive_model(torch.nn.Linear(2, 2))
    with pytest.raises(ContractError, match="trained_steps must be None or a whole number above 0, not 0"):
        tiny_recursive_model(net, trained_steps=0)
    with pytest.raises(InputError, match="inputs must be tokens"):
        tiny_recursive_model(net).encode(torch.rand(2, LENGTH))
