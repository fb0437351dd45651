"""Promise 1: an example's answer does not depend on who shares its batch."""

from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import homeostat as hs
from homeostat import Stop

# The plain loop: what these tests say about steps and states is said of its sequence.
solve = partial(hs.solve, method=hs.Picard())

GAINS = st.lists(st.sampled_from([-1.0, -0.9, 0.0, 0.3, 0.8, 0.97, 1.0, 3.0, 1e20]), min_size=1, max_size=7)
FIELDS = ("state", "steps", "residual", "status")


def run(gains: list[float]):
    gain = torch.tensor(gains)[:, None]
    with torch.no_grad():
        return solve(lambda z, c: c * z + torch.tensor([1.0, -2.0, 0.5]), torch.zeros(len(gains), 3), gain, stop=STOP)


STOP = Stop(1e-5, 0.0, 150)


@settings(max_examples=25, deadline=None)
@given(GAINS, st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_answers(gains, random):
    order = list(range(len(gains)))
    random.shuffle(order)
    plain, permuted = run(gains), run([gains[i] for i in order])
    for name in FIELDS:
        expected = getattr(plain, name)[order]
        torch.testing.assert_close(getattr(permuted, name), expected, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=25, deadline=None)
@given(GAINS, GAINS)
def test_more_rows_change_nothing(gains, more):
    plain, joined = run(gains), run(gains + more)
    for name in FIELDS:
        found = getattr(joined, name)[: len(gains)]
        torch.testing.assert_close(found, getattr(plain, name), rtol=0, atol=0, equal_nan=True)
    # How often the test looks depends on all rows: what is evaluated in vain does, too.
    assert int(joined.steps.sum()) <= joined.row_evaluations <= int(joined.steps.sum()) + 15 * len(joined.steps)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**31))
def test_a_matrix_cell_changes_by_rounding_only(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 8, generator=generator, dtype=torch.float64) / 4
    shift = torch.randn(rows, 8, generator=generator, dtype=torch.float64)

    def solved(context):
        with torch.no_grad():
            return solve(lambda z, c: torch.tanh(z @ weight + c), torch.zeros_like(context), context, stop=Stop(1e-8))

    together, alone = solved(shift), [solved(shift[i : i + 1]) for i in range(rows)]
    torch.testing.assert_close(together.state, torch.cat([x.state for x in alone]), rtol=0, atol=1e-7)
    assert (together.steps - torch.cat([x.steps for x in alone])).abs().max() <= 1
