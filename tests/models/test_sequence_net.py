"""The sequence net: causal, independent of batch and padding, and its positions are relative."""

import math

import pytest
import torch
from pydantic import ValidationError

from homeostat.models import Noise, Own, SequenceConfig, SequenceNet
from homeostat.models.sequence import CausalAttention


@pytest.fixture
def net() -> SequenceNet:
    torch.manual_seed(0)
    return SequenceNet(SequenceConfig(classes=11, width=8, heads=2, hidden=12)).double()


def answers(net: SequenceNet, inputs: torch.Tensor, steps: int = 4) -> torch.Tensor:
    context = net.encode(inputs)
    state = net.initial_state(context, Own())
    for _ in range(steps):
        state = net.step(state, context)
    return net.decode(state, context)


def test_what_comes_later_changes_no_earlier_answer(net: SequenceNet):
    one = torch.randint(11, (3, 9))
    other = one.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    before, after = answers(net, one), answers(net, other)
    assert before.shape == (3, 11, 9)
    assert torch.allclose(before[..., :5], after[..., :5], atol=1e-12)
    assert bool((before[..., 5:] - after[..., 5:]).detach().abs().amax((0, 1)).min() > 1e-6)


def test_an_answer_hears_of_everything_before_it(net: SequenceNet):
    sequence = torch.randint(11, (1, 6))
    last = answers(net, sequence)[..., -1]
    for place in range(6):
        changed = sequence.clone()
        changed[0, place] = (changed[0, place] + 1) % 11
        assert float((answers(net, changed)[..., -1] - last).detach().abs().max()) > 1e-6


def test_a_row_is_the_same_alone_and_with_padding_behind_it(net: SequenceNet):
    rows = torch.randint(11, (4, 7))
    whole = answers(net, rows)
    assert torch.allclose(answers(net, rows[1:2]), whole[1:2], atol=1e-12)
    padded = torch.cat([rows, torch.zeros(4, 20, dtype=torch.int64)], dim=1)
    assert torch.allclose(answers(net, padded)[..., :7], whole, atol=1e-12)


def test_attention_is_the_one_that_is_written_out():
    torch.manual_seed(1)
    attention = CausalAttention(6, 1).double()
    sequence = torch.randn(1, 4, 6, dtype=torch.float64)
    query, key, value = (sequence[0] @ part.T for part in attention.inner.weight.chunk(3))
    expected = torch.zeros(4, 6, dtype=torch.float64)

    def turned(vector: torch.Tensor, place: int) -> list[complex]:
        """Pairs of entries as complex numbers, turned by an angle for each pair."""
        pairs = [complex(float(vector[i].detach()), float(vector[i + 3].detach())) for i in range(3)]
        return [
            pair * complex(math.cos(place * w), math.sin(place * w))
            for pair, w in zip(pairs, (10_000.0 ** (-i / 3) for i in range(3)), strict=True)
        ]

    for i in range(4):
        scores = torch.tensor(
            [
                sum((a * b.conjugate()).real for a, b in zip(turned(query[i], i), turned(key[j], j), strict=True))
                / math.sqrt(6)
                for j in range(i + 1)
            ],
            dtype=torch.float64,
        )
        expected[i] = scores.softmax(0) @ value[: i + 1]
    found = attention(sequence)[0]
    assert torch.allclose(found, expected @ attention.outer.weight.T, atol=1e-6)  # the frequencies are float32


def test_states_stay_bounded_over_many_steps(net: SequenceNet):
    context = 100 * net.encode(torch.randint(11, (2, 5)))
    state = net.initial_state(context, Noise(scale=1e3))
    for _ in range(50):
        state = net.step(state, context)
    assert (
        float(state.detach().square().mean(-1).sqrt().max()) <= 1.01
    )  # a layer norm of gain 1 and offset 0 ends every step


def test_positions_are_no_weights(net: SequenceNet):
    assert not [name for name in net.state_dict() if "frequencies" in name]
    assert not [name for name, _ in net.named_parameters() if "frequencies" in name]


@pytest.mark.parametrize("change", [{"classes": 1}, {"width": 10}, {"heads": 0}, {"hidden": 0}, {"length": 3}])
def test_impossible_sizes(change: dict):
    with pytest.raises(ValidationError):
        SequenceConfig(**{"classes": 5, "width": 8, "heads": 4, **change})
