"""Root mean squares that neither overflow nor vanish, against exact arithmetic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.engine.norms import finite_rows, residuals, row_rms


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-35, 35), min_size=1, max_size=6), st.integers(1, 5))
def test_row_rms_is_right_at_every_magnitude(exponents, size):
    leaf = torch.tensor([[10.0**e * (i + 1) for i in range(size)] for e in exponents], dtype=torch.float32)
    exact = [math.sqrt(math.fsum(v * v for v in row) / size) for row in leaf.double().tolist()]
    assert row_rms(leaf).tolist() == pytest.approx(exact, rel=1e-5)
    assert row_rms(leaf).dtype == torch.float32


def test_no_bit_of_a_row_depends_on_its_neighbours():
    plain = torch.randn(50, 33, generator=torch.Generator().manual_seed(0))
    for extreme in (0.0, 1e-30, 1e30, math.inf, math.nan):
        joined = torch.cat([plain, torch.full((1, 33), extreme)])
        assert torch.equal(row_rms(joined)[:50], row_rms(plain))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_so(value):
    leaf = torch.tensor([[1.0, value], [1.0, 1.0]])
    assert torch.isfinite(row_rms(leaf)).tolist() == [False, True]
    assert finite_rows(leaf).tolist() == [False, True]


def test_shapes():
    assert row_rms(torch.tensor([3.0, -4.0])).tolist() == [3.0, 4.0]
    assert row_rms(torch.full((2, 3, 4, 5), 2.0)).tolist() == [2.0, 2.0]
    assert row_rms(torch.zeros(2, 0)).tolist() == [0.0, 0.0]
    assert row_rms(torch.zeros(0, 3)).shape == (0,)
    assert finite_rows(torch.zeros(2, 0)).tolist() == [True, True]


def test_low_precision_is_summed_in_float32():
    leaf = torch.full((1, 100_000), 3.0, dtype=torch.bfloat16)
    assert row_rms(leaf).item() == pytest.approx(3, rel=1e-5)
    leaf = torch.full((1, 1000), 300.0, dtype=torch.float16)  # squares overflow float16
    assert row_rms(leaf).item() == pytest.approx(300, rel=1e-5)


def test_residuals_of_zero_states():
    before, after = [torch.tensor([[0.0], [1.0], [0.0]])], [torch.tensor([[0.0], [0.0], [2.0]])]
    assert residuals(before, after)[2].tolist() == [0.0, math.inf, 1.0]
