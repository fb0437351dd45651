"""Starts beside zeros and Gaussian noise: uniform noise, projections, and the three kinds of mixture."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from homeostat.errors import ContractError
from homeostat.models import Mixed, Net, Noise, Own, Projection, RecallConfig, RecallNet, Start, Zeros, from_functions

TEMPLATE = torch.full((6, 4), 9.0)
PROJECTED = torch.arange(24.0).reshape(6, 4) + 100


def drawn(start: Any, indices: list[int] | None = None, seed: int = 1) -> Tensor:
    rows = list(range(6)) if indices is None else indices
    return start.seeded(seed, rows).like(TEMPLATE[: len(rows)], lambda: PROJECTED[rows])


@pytest.mark.parametrize(
    "start",
    [
        Projection(),
        Noise(distribution="uniform"),
        Mixed(by="call"),
        Mixed(by="element"),
        Mixed(by="element", share=0.2),
    ],
)
@settings(max_examples=20, deadline=None)
@given(indices=st.lists(st.integers(0, 5), min_size=1, max_size=6), seed=st.integers(0, 20))
def test_an_example_starts_the_same_in_any_batch(start: Any, indices: list[int], seed: int) -> None:
    assert torch.equal(drawn(start, indices, seed), drawn(start, None, seed)[indices])


def test_uniform_noise_fills_its_interval_evenly() -> None:
    noise = Noise(scale=3.0, distribution="uniform").like(torch.zeros(20, 10_000))
    counts = torch.histc(noise, bins=12, min=-3, max=3)
    assert counts.sum() == 200_000
    expected = 200_000 / 12
    assert (counts - expected).abs().max() < 5 * expected**0.5
    assert noise.std(1).sub(3**0.5).abs().max() < 0.05
    assert torch.unique(noise[:, 0]).numel() == 20


def test_a_mixture_by_element_is_noise_at_its_share_and_zero_elsewhere() -> None:
    plain = Noise(scale=2.0).like(torch.zeros(10, 5000))
    mixed = Mixed(by="element", share=0.3, scale=2.0).like(torch.zeros(10, 5000))
    noisy = mixed != 0
    assert torch.equal(mixed[noisy], plain[noisy])
    assert abs(noisy.float().mean().item() - 0.3) < 5 * (0.21 / 50_000) ** 0.5
    # Whether an entry is noise has nothing to do with the noise itself, nor with its neighbours'.
    assert abs(plain[noisy].mean().item()) < 5 * 2 / 15_000**0.5
    assert torch.corrcoef(noisy.float()).sub(torch.eye(10)).abs().max() < 5 / 5000**0.5
    assert not (Mixed(by="element", share=0.0).like(torch.ones(2, 9)) != 0).any()
    assert (Mixed(by="element", share=1.0).like(torch.ones(2, 9)) != 0).all()


@pytest.mark.parametrize(
    ("options", "noise"), [({}, 1 / 3), ({"share": 0.6}, 0.6), ({"share": 0}, 0), ({"share": 1}, 1)]
)
def test_a_mixture_by_call_starts_all_examples_alike(options: dict[str, float], noise: float) -> None:
    start, counts = Mixed(by="call", scale=0.5, **options), {"zeros": 0, "projection": 0, "noise": 0}  # type: ignore[arg-type]
    for seed in range(300):
        state = drawn(start, seed=seed)
        if (state == 0).all():
            counts["zeros"] += 1
        elif torch.equal(state, PROJECTED):
            counts["projection"] += 1
        else:
            assert 0 < state.abs().max() <= 0.5
            assert torch.equal(state, drawn(Noise(scale=0.5, distribution="uniform"), seed=seed))
            counts["noise"] += 1
    for name, share in (("noise", noise), ("zeros", (1 - noise) / 2), ("projection", (1 - noise) / 2)):
        assert abs(counts[name] - 300 * share) <= 5 * (300 * share * (1 - share)) ** 0.5, counts


def test_mixtures_by_example_are_what_they_were() -> None:
    # Recorded with the first version: old checkpoints name their starts without saying by what.
    start = TypeAdapter(Start).validate_python({"kind": "mixed", "share": 0.5, "scale": 1.0})
    state = start.seeded(3, (4, 5)).like(torch.zeros(2, 3))
    assert start == Mixed()
    assert (state[0] == 0).all()
    assert torch.equal(state[1], Noise().seeded(3, (5,)).like(torch.zeros(1, 3))[0])


def test_the_projection_of_the_recall_network_is_its_encoded_input() -> None:
    net = RecallNet(RecallConfig(spatial_dims=1, in_channels=1, classes=2, width=4))
    context = net.encode(torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(net.initial_state(context, Projection()), context)
    assert torch.equal(net.initial_state(context, Zeros()), torch.zeros_like(context))


class Plain(Net):
    """A network that says nothing of a projection."""

    def encode(self, inputs: Tensor) -> Tensor:
        return inputs

    def initial_state(self, context: Tensor, start: Any) -> Tensor:
        return start.like(torch.zeros_like(context), lambda: self.projection(context))

    def update(self, state: Tensor, context: Tensor) -> Tensor:
        return state

    def decode(self, state: Tensor, context: Tensor) -> Tensor:
        return state


def test_a_model_without_a_projection_says_so() -> None:
    with pytest.raises(ContractError, match="Plain has no projection of its input") as caught:
        Plain(name="plain").initial_state(torch.zeros(2, 3), Projection())
    assert "\n" not in str(caught.value)
    own = from_functions(
        encode=lambda x: x, initial_state=torch.zeros_like, step=lambda z, x: z, decode=lambda z, x: z, name="own"
    )
    with pytest.raises(ContractError, match="this model has no projection of its input"):
        own.initial_state(torch.zeros(2, 3), Projection())
    asking = [seed for seed in range(20) if torch.equal(drawn(Mixed(by="call"), seed=seed), PROJECTED)]
    with pytest.raises(ContractError, match="this model has no projection"):
        own.initial_state(torch.zeros(2, 3), Mixed(by="call", seed=asking[0]))


def test_a_projection_of_another_shape_is_refused() -> None:
    with pytest.raises(ContractError, match=r"the projection has leaves state \(2, 4\), the state has state \(2, 3\)"):
        Projection().like(torch.zeros(2, 3), lambda: torch.zeros(2, 4))
    with pytest.raises(ContractError, match="the projection has leaves"):
        Projection().like({"a": torch.zeros(2, 3)}, lambda: {"b": torch.zeros(2, 3)})


def test_a_projection_fills_measured_leaves_alone() -> None:
    template = {"z": torch.zeros(2, 3, dtype=torch.float64), "n": torch.tensor([1, 2])}
    state = Projection().like(template, lambda: {"z": torch.ones(2, 3), "n": torch.tensor([7, 7])})
    assert state["z"].dtype == torch.float64
    assert (state["z"] == 1).all()
    assert torch.equal(state["n"], template["n"])


@pytest.mark.parametrize("start", [Projection(), Noise(distribution="uniform"), Mixed(by="call"), Mixed(by="element")])
def test_a_start_is_data(start: Any) -> None:
    adapter = TypeAdapter(Start)
    assert adapter.validate_json(adapter.dump_json(start)) == start
    assert isinstance(Own(), type(adapter.validate_python({"kind": "own"})))


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "noise", "distribution": "cauchy"},
        {"kind": "mixed", "by": "batch"},
        {"kind": "mixed", "by": "call", "share": -0.1},
        {"kind": "projection", "scale": 1},
    ],
)
def test_impossible_starts_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Start).validate_python(options)
