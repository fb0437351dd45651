"""Masks are the same at every step, belong to their row, and drop what they say."""

import math

import pytest
import torch

import homeostat as hs
from homeostat.errors import ContractError
from homeostat.nn import Equilibrium, VariationalDropout
from homeostat.nn.dropout import _mixed

SEEDS = torch.tensor([3, 0, 12345678901234567, -7, 2**62, 3])


def test_a_mask_depends_on_its_own_seed_alone():
    dropout = VariationalDropout(0.5)
    like = torch.zeros(6, 4, 5)
    whole = dropout.mask(like, seeds=SEEDS)
    for row, seed in enumerate(SEEDS):
        alone = dropout.mask(like[:1], seeds=seed[None])
        assert torch.equal(alone[0], whole[row])
    assert torch.equal(whole[0], whole[5])
    assert not torch.equal(whole[0], whole[1])
    order = torch.tensor([4, 2, 0])
    assert torch.equal(dropout.mask(like[:3], seeds=SEEDS[order]), whole[order])


def test_the_numbers_are_those_of_splitmix64():
    # The first three outputs of the published generator, from the state 0.
    truth = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    states = torch.arange(3) * (0x9E3779B97F4A7C15 - 2**64)
    assert [x % 2**64 for x in _mixed(states).tolist()] == truth


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_expectation_and_independence(p):
    rows, width = 400, 500
    mask = VariationalDropout(p).mask(torch.zeros(rows, width, dtype=torch.float64), seeds=torch.arange(rows))
    assert set(mask.unique().tolist()) == {0.0, 1 / (1 - p)}
    sigma = math.sqrt(p / (1 - p))  # of one entry
    assert abs(mask.mean() - 1) < 4 * sigma / math.sqrt(rows * width)
    # Means over rows and columns scatter as those of independent entries do, and neighbours are uncorrelated.
    for dim, count in ((0, rows), (1, width)):
        assert mask.mean(dim).std().item() == pytest.approx(sigma / math.sqrt(count), rel=0.2)
    centred = (mask - 1) / sigma
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs((a * b).mean()) < 4 / math.sqrt(rows * width)


def test_streams_and_generators():
    like, seeds = torch.zeros(3, 40), torch.arange(3)
    masks = [VariationalDropout(0.5, stream=s).mask(like, seeds=seeds) for s in (0, 1)]
    assert not torch.equal(*masks)
    # The next stream is not the next example's mask.
    assert not torch.equal(masks[1][0], masks[0][1])
    dropout = VariationalDropout(0.5)
    drawn = [dropout.mask(like, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    torch.manual_seed(0)
    first, second = dropout.mask(like), dropout.mask(like)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(dropout.mask(like), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_dtype_and_broadcast(dtype):
    like = torch.zeros(2, 3, 4, 4, dtype=dtype)
    mask = VariationalDropout(0.5).mask(like[:, :, :1, :1], seeds=torch.arange(2))
    assert mask.shape == (2, 3, 1, 1)
    assert mask.dtype == dtype
    assert not mask.requires_grad
    assert VariationalDropout(0.5).mask(like[:0]).shape == (0, 3, 4, 4)


def test_identity_in_evaluation():
    dropout, x = VariationalDropout(0.5).eval(), torch.ones(2, 3)
    assert dropout.mask(x) is None
    assert dropout(x, None) is x
    assert VariationalDropout(0.0).mask(x) is None


def test_a_mask_outlives_a_change_of_mode():
    # `backward` may come after `eval()`; what was solved with a mask stays what it was.
    dropout, x = VariationalDropout(0.5), torch.ones(2, 8)
    mask = dropout.mask(x, seeds=torch.arange(2))
    assert torch.equal(dropout.eval()(x, mask), mask)


def test_masks_leave_with_their_rows():
    torch.manual_seed(0)
    dropout = VariationalDropout(0.3)
    linear = torch.nn.Linear(8, 8).double()
    stop = hs.Stop(rtol=1e-10, max_steps=500)
    layer = Equilibrium(
        lambda z, c: torch.tanh(c["gain"] * dropout(linear(z), c["mask"]) + c["x"]),
        stop=stop,
        gradient=hs.Implicit(stop=stop),
        start=lambda c: torch.zeros_like(c["x"]),
    )
    x = torch.randn(6, 8, dtype=torch.float64)
    gain = torch.tensor([0.01, 0.9, 0.1, 0.5, 0.02, 0.7], dtype=torch.float64)[:, None]

    def solved(rows):
        linear.zero_grad()
        context = {"x": x[rows], "gain": gain[rows], "mask": dropout.mask(x[rows], seeds=SEEDS[rows])}
        solution = layer.solve(context)
        solution.state.square().sum().backward()
        return solution, linear.weight.grad.clone()

    together, gradient = solved(list(range(6)))
    assert len(set(together.steps.tolist())) > 2
    alone = [solved([i]) for i in range(6)]
    for i, (solution, _) in enumerate(alone):
        torch.testing.assert_close(solution.state[0], together.state[i], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, torch.stack([g for _, g in alone]).sum(0), rtol=1e-7, atol=1e-9)


def test_bad_input():
    with pytest.raises(ValueError, match="p must be a number from 0 to below 1"):
        VariationalDropout(1.0)
    with pytest.raises(ValueError, match="stream must be a whole number"):
        VariationalDropout(0.5, stream=-1)
    dropout = VariationalDropout(0.5)
    with pytest.raises(ContractError, match=r"seeds must be torch.int64 \(2,\), one an example"):
        dropout.mask(torch.zeros(2, 3), seeds=torch.arange(3))
    with pytest.raises(ContractError, match=r"seeds must be torch.int64"):
        dropout.mask(torch.zeros(2, 3), seeds=torch.rand(2))
    with pytest.raises(ContractError, match="floating tensor, batch first"):
        dropout.mask(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ContractError, match="seeds or a generator"):
        dropout.mask(torch.zeros(2, 3), seeds=torch.arange(2), generator=torch.Generator())
