"""EqR's random start and the noise of its steps: their laws, and that they can be repeated."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import homeostat as hs
from homeostat.models import Noise, Own, Zeros
from homeostat.models.adapters import Reasoner, ReasonerConfig


def eqr(*, seed: int = 0, noise: float = 0.5, **changes: float) -> Reasoner:
    torch.manual_seed(0)
    sizes = {"vocab_size": 5, "hidden_size": 8, "inner_size": 12, "L_layers": 1, "num_heads": 2, "H_cycles": 2}
    kind = {"family": "eqr", "pos_encodings": "rope", "forward_dtype": "float32", "L_cycles": 1, "lambda_": 0.9}
    config = ReasonerConfig.model_validate({**kind, **sizes, "noise_scale": noise, **changes})
    return Reasoner(config, seed=seed)


TOKENS = torch.randint(5, (6, 9), generator=torch.Generator().manual_seed(0))


def run(model: Reasoner, tokens: Tensor = TOKENS, start: Own | Zeros | Noise | None = None, steps: int = 3) -> Tensor:
    with torch.no_grad():
        context = model.encode(tokens)
        state = model.initial_state(context, start or Own())
        for _ in range(steps):
            state = model.step(state, context)
        return state[0]


def test_an_example_gets_the_same_noise_in_any_batch() -> None:
    torch.testing.assert_close(run(eqr())[2:4], run(eqr(), TOKENS[2:4]))
    torch.testing.assert_close(run(eqr()).flip(0), run(eqr(), TOKENS.flip(0)))
    with torch.no_grad():
        model = eqr()
        context = model.encode(TOKENS)
        fixed = hs.Stop(rtol=0, max_steps=3)
        found = hs.solve(model.step, model.initial_state(context, Own()), context, method=hs.Picard(), stop=fixed)
    torch.testing.assert_close(found.state[0], run(eqr()))


@pytest.mark.parametrize("what", ["seed of the model", "seed of the start", "index of the start"])
def test_other_seeds_give_other_noise(what: str) -> None:
    first = run(eqr())
    torch.testing.assert_close(first, run(eqr()))
    if what == "seed of the model":
        other = run(eqr(seed=1))
    else:
        start = Own(seed=1) if what == "seed of the start" else Own(indices=(1, 1, 2, 3, 4, 5))
        other = run(eqr(), start=start)
    assert bool((first - other).flatten(1).abs().amax(1).gt(0.01).all())


def test_the_own_start_is_a_truncated_normal_distribution() -> None:
    tokens = torch.randint(5, (400, 16), generator=torch.Generator().manual_seed(1))
    model = eqr(H_init_std=1.0, L_init_std=0.5)
    with torch.no_grad():
        high, low, _ = model.initial_state(model.encode(tokens), Own())
    law = stats.truncnorm(-2, 2)
    for drawn, std in ((high, 1.0), (low, 0.5)):
        values = drawn.numpy().ravel() / std * law.std()
        assert stats.kstest(values, law.cdf).pvalue > 1e-3
        assert abs(drawn.std().item() / std - 1) < 0.01
    assert abs(np.corrcoef(high.ravel(), low.ravel())[0, 1]) < 0.02


def test_a_step_adds_noise_after_each_update() -> None:
    # With weights of zero an update gives 0.1 of the state, 0.9 of the norm of state and injection, and noise.
    model = eqr(noise=0.5, H_cycles=1)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    tokens = torch.randint(5, (300, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        context = model.encode(tokens)
        high, low, _ = model.step(model.initial_state(context, Zeros()), context)
    assert stats.kstest(low.numpy().ravel() / 0.5, "norm").pvalue > 1e-3  # of zeros nothing but noise remains
    normed = low
    for _ in range(2):  # after either mixing
        normed = normed / (normed.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert stats.kstest((high - 0.9 * normed).numpy().ravel() / 0.5, "norm").pvalue > 1e-3
    assert abs(np.corrcoef((high - 0.9 * normed).ravel(), low.ravel())[0, 1]) < 0.03


def test_noise_is_declared() -> None:
    assert eqr(noise=0.5).stochastic
    assert not eqr(noise=0.0).stochastic
    with torch.no_grad():
        context = eqr(noise=0.0).encode(TOKENS)
    assert len(eqr(noise=0.0).initial_state(context, Own())) == 2
    assert len(eqr(noise=0.5).initial_state(context, Own())) == 3


def test_other_starts_are_ours() -> None:
    model = eqr()
    with torch.no_grad():
        context = model.encode(TOKENS)
    drawn = model.initial_state(context, Noise(scale=2.0))
    assert torch.equal(drawn[0], Noise(scale=2.0).like((torch.zeros(6, 9, 8),))[0])
    assert not any(leaf.any() for leaf in model.initial_state(context, Zeros())[:2])


def test_an_audit_of_a_noisy_reasoner() -> None:
    model = eqr(noise=0.05)
    found = hs.audit(model, [(TOKENS, TOKENS)], steps=[1, 2, 4])
    assert found.difficulties[0].count == 6
