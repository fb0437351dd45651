"""Models that go down an energy, against quadratics, where everything is known in closed form."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import homeostat as hs
from homeostat.errors import ContractError, InputError
from homeostat.models import Own
from homeostat.models.adapters import EnergyModel, from_energy

CURVATURES = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def bowl(z: Tensor, x: Tensor) -> Tensor:
    """Least at z = x, with a curvature of its own in every direction."""
    return (CURVATURES * (z - x) ** 2).sum(1) / 2


def descent(**options: Any) -> EnergyModel:
    return from_energy(bowl, initial_state=torch.zeros_like, **{"step_size": 0.2, **options})


def run(model: EnergyModel, x: Tensor = X, steps: int = 7, start: Own | None = None) -> Any:
    context = model.encode(x)
    state = model.initial_state(context, start or Own())
    for _ in range(steps):
        state = model.step(state, context)
    return state


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("damping", [1.0, 0.3])
def test_a_quadratic_is_descended_as_its_closed_form_says(mode: Any, damping: float) -> None:
    model = descent(damping=damping)
    with mode():
        state = run(model)
        score = model.score(state, X)
    expected = X * (1 - (1 - damping * 0.2 * CURVATURES) ** 7)
    torch.testing.assert_close(state, expected)
    torch.testing.assert_close(score, -bowl(expected, X))
    assert not state.requires_grad
    assert (model.unit_cost, model.stochastic) == (1.0, False)


def test_the_engine_finds_the_minimum() -> None:
    model = descent()
    with torch.no_grad():
        found = hs.solve(model.step, torch.zeros_like(X), X, stop=hs.Stop(rtol=1e-10, max_steps=200))
    assert bool((found.status == hs.Status.CONVERGED).all())
    torch.testing.assert_close(found.state, X)


class Bowl(nn.Module):
    """An energy with a parameter and a nest of tensors as its state."""

    def __init__(self) -> None:
        super().__init__()
        self.curvature = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        return self.curvature * ((state["a"] - x) ** 2 + (state["b"] + x) ** 2).sum(1) / 2


def test_a_model_is_trained_through_its_steps() -> None:
    model = from_energy(Bowl(), initial_state=lambda x: {"a": 0 * x, "b": 0 * x}, step_size=0.1)
    assert len(list(model.parameters())) == 1
    state = run(model, steps=4)
    state["a"].sum().backward()
    curvature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    closed = X * (1 - (1 - 0.1 * curvature) ** 4)
    closed.sum().backward()
    torch.testing.assert_close(state["a"], closed)
    torch.testing.assert_close(state["b"], -closed)
    torch.testing.assert_close(next(model.parameters()).grad, curvature.grad)
    with torch.no_grad():
        assert not run(model, steps=1)["a"].requires_grad


def test_langevin_steps_settle_into_their_distribution() -> None:
    temperature, size = 0.5, 0.2
    model = descent(temperature=temperature, seed=3)
    x = torch.linspace(-1, 1, 4000, dtype=torch.float64)[:, None].expand(-1, 3).contiguous()
    with torch.no_grad():
        state, _ = run(model, x, steps=120)
    # z' = (1 - sa) z + s a x + sqrt(2 s T) noise has the variance 2 s T / (1 - (1 - sa)^2).
    variance = 2 * size * temperature / (1 - (1 - size * CURVATURES) ** 2)
    for i in range(3):
        assert stats.kstest(((state - x)[:, i] / variance[i].sqrt()).numpy(), "norm").pvalue > 1e-3
    assert model.stochastic


def test_noise_depends_on_the_example_and_the_seeds_alone() -> None:
    model = descent(temperature=0.5)
    with torch.no_grad():
        first, _ = run(model)
        torch.testing.assert_close(run(model, X[1:3])[0], first[1:3])
        others = [run(descent(temperature=0.5, seed=1))[0], run(model, start=Own(seed=1))[0]]
        score = model.score(run(model), model.encode(X))
        outputs = model.decode(run(model), model.encode(X))
    assert all(bool((other != first).any(1).all()) for other in others)
    torch.testing.assert_close(score, -bowl(first, X))
    torch.testing.assert_close(outputs, first)


def test_damping_takes_a_share_of_the_noise_too() -> None:
    with torch.no_grad():
        whole, part = (run(descent(temperature=0.5, damping=d), steps=1)[0] for d in (1.0, 0.25))
    torch.testing.assert_close(part, 0.25 * whole)  # from a start of zeros


def test_nonsense_is_refused() -> None:
    for option, wanted in (
        ({"step_size": 0}, "step_size must be a finite number above 0, not 0"),
        ({"step_size": float("nan")}, "step_size must be a finite number above 0, not nan"),
        ({"damping": 1.5}, "damping must be a finite number above 0 and at most 1, not 1.5"),
        ({"temperature": -1}, "temperature must be a finite number 0 or above, not -1"),
        ({"trained_steps": 0}, "trained_steps must be None or a whole number above 0, not 0"),
        ({"decode": 3}, "decode must be a function, not 3"),
    ):
        with pytest.raises(ContractError, match=wanted):
            descent(**option)
    mean = from_energy(lambda z, x: bowl(z, x).mean(), initial_state=torch.zeros_like, step_size=0.1)
    with pytest.raises(ContractError, match=r"must return \(5,\), one number an example, not \(\)"):
        mean.step(X, X)
    with pytest.raises(InputError, match="inputs must be a tensor or a nest of tensors"):
        descent(temperature=1.0).encode([])
