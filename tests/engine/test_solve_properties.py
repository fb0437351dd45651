"""Promise 1 for every method: an example's answer, steps and status do not depend on who shares its batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import homeostat as hs
from homeostat import Anderson, Broyden, Picard, Status, Stop

F64 = torch.float64
METHODS = [Picard(), Picard(damping=0.7), Anderson(), Anderson(memory=2), Broyden(), Broyden(memory=3)]
FIELDS = ("state", "steps", "residual", "status")
STOP = Stop(1e-7, 0.0, 120)
quickly = settings(max_examples=6, deadline=None, derandomize=True)

# An example: the kind of its map, how fast it contracts, and where its numbers come from.
EXAMPLES = st.tuples(
    st.sampled_from(["linear", "tanh", "expands", "cycles", "explodes"]), st.floats(0.0, 0.98), st.integers(0, 10_000)
)
BATCHES = st.lists(EXAMPLES, min_size=1, max_size=6)
SIZE = 5
KINDS = {"linear": 0, "tanh": 1, "expands": 2, "cycles": 3, "explodes": 4}


pytestmark = pytest.mark.usefixtures("no_gradients")


def context_of(examples) -> tuple[Tensor, Tensor, Tensor]:
    matrices, shifts = [], []
    for _, rate, seed in examples:
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(SIZE, SIZE, generator=generator, dtype=F64)
        matrices.append(matrix * rate / torch.linalg.matrix_norm(matrix, 2))
        shifts.append(torch.randn(SIZE, generator=generator, dtype=F64))
    return torch.stack(matrices), torch.stack(shifts), torch.tensor([KINDS[kind] for kind, _, _ in examples])


def step(z: Tensor, context: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Every row computed by itself, so that no bit of it depends on the number of rows."""
    matrix, shift, kind = context
    linear = (matrix * z[:, None]).sum(-1)
    values = (
        linear + shift,
        torch.tanh(linear + shift),
        3 * z + shift,
        torch.where(z > 0, -1.0, 1.0) + shift / 10,
        linear + shift + z * z * z * 1e3,
    )
    result = values[0]
    for number, value in enumerate(values[1:], 1):
        result = torch.where(kind[:, None] == number, value, result)
    return result


def solved(examples, method, stop: Stop = STOP, **options) -> hs.Solution:
    return hs.solve(
        step, torch.zeros(len(examples), SIZE, dtype=F64), context_of(examples), method=method, stop=stop, **options
    )


def same(found: hs.Solution, wanted: hs.Solution, rows, places=slice(None)) -> None:
    """Rows `rows` of one are the rows `places` of the other, up to the rounding of sums over a row."""
    difference = (found.steps[rows] - wanted.steps[places]).abs()
    assert (difference <= 1).all()
    assert torch.equal(found.status[rows], wanted.status[places])
    equal = difference == 0  # where a residual is at its tolerance but for rounding, one step more is right as well
    torch.testing.assert_close(found.state[rows][equal], wanted.state[places][equal], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=str)
@quickly
@given(BATCHES, st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_answers(method, examples, random):
    order = list(range(len(examples)))
    random.shuffle(order)
    plain, permuted = solved(examples, method), solved([examples[i] for i in order], method)
    same(permuted, plain, slice(None), order)


@pytest.mark.parametrize("method", METHODS, ids=str)
@quickly
@given(BATCHES, BATCHES)
def test_more_rows_change_an_answer_by_rounding_only(method, examples, more):
    together, apart = solved(examples + more, method), solved(examples, method)
    same(together, apart, slice(len(examples)))
    alone = solved(examples[-1:], method)
    same(together, alone, slice(len(examples) - 1, len(examples)))


@pytest.mark.parametrize("method", METHODS, ids=str)
@quickly
@given(BATCHES, BATCHES, st.sampled_from([1, 2, 5, 16]))
def test_neither_company_nor_the_rhythm_of_looking_changes_a_trace_or_the_best_iterate(method, examples, more, every):
    options = {"returns": "best", "trace": True}
    together, apart = solved(examples + more, method, sync_every=every, **options), solved(examples, method, **options)
    same(together, apart, slice(len(examples)))
    assert together.trace is not None
    assert apart.trace is not None
    for row in range(len(examples)):
        count = int(apart.steps[row])
        if count == int(together.steps[row]):
            got, wanted = together.trace[row, :count], apart.trace[row, :count]
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-12, equal_nan=True)
            assert together.trace[row, count:].isnan().all()


@pytest.mark.parametrize("method", METHODS, ids=str)
@quickly
@given(
    st.lists(st.tuples(st.just("tanh"), st.floats(0.1, 0.98), st.integers(0, 10_000)), min_size=1, max_size=5),
    st.sampled_from([1e-6, 1e6]),
)
def test_conjugating_the_map_by_a_scale_changes_no_step_count_by_more_than_one(method, examples, scale):
    context = context_of(examples)
    start = torch.zeros(len(examples), SIZE, dtype=F64)
    plain = hs.solve(step, start, context, method=method, stop=STOP)
    scaled = hs.solve(lambda z, c: scale * step(z / scale, c), start, context, method=method, stop=STOP)
    assert (scaled.steps - plain.steps).abs().max() <= 1
    assert torch.equal(scaled.status, plain.status)
    torch.testing.assert_close(scaled.state / scale, plain.state, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS, ids=str)
@quickly
@given(BATCHES, st.integers(0, 5), st.sampled_from(["start", "shift", "matrix"]))
def test_a_row_of_nan_leaves_the_others_bit_identical(method, examples, place, where):
    # The run without it has the same shape: a row that starts as NaN takes no step; one that becomes NaN at the first
    # step is compared with one that is finished there.
    place = min(place, len(examples))
    batch = [*examples[:place], ("linear", 0.0, 1), *examples[place:]]
    matrix, shift, kind = context_of(batch)
    others = [i for i in range(len(batch)) if i != place]
    calm = shift.clone()
    calm[place] = 0.0  # a fixed point at zero, which is where the row starts
    start = torch.zeros(len(batch), SIZE, dtype=F64)
    bad_start, bad_shift, bad_matrix = start.clone(), calm.clone(), matrix.clone()
    if where == "start":
        bad_start[place, 2] = math.nan
    elif where == "shift":
        bad_shift[place, 2] = math.nan
    else:
        bad_shift[place], bad_matrix[place] = 1.0, math.inf  # inf * 0 is a NaN
    dirty = hs.solve(step, bad_start, (bad_matrix, bad_shift, kind), method=method, stop=STOP)
    assert dirty.status[place] == Status.DIVERGED
    assert dirty.steps[place] == (0 if where == "start" else 1)
    if where == "start":
        clean = hs.solve(step, start[others], (matrix[others], calm[others], kind[others]), method=method, stop=STOP)
        there = list(range(len(others)))
    else:
        clean = hs.solve(step, start, (matrix, calm, kind), method=method, stop=STOP)
        there = others
        assert clean.status[place] == Status.CONVERGED
        assert clean.steps[place] == 1
    for name in FIELDS:
        found, wanted = getattr(dirty, name)[others], getattr(clean, name)[there]
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("method", "product"), [(Picard(), True), *((method, False) for method in METHODS)], ids=str)
def test_a_row_that_becomes_nan_in_the_middle_leaves_the_others_bit_identical(method, product):
    # Both maps of row 2 end it at the same step: one in NaN, the other at an exact fixed point.
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8, generator=generator, dtype=F64)
    weight = 0.97 * weight / torch.linalg.matrix_norm(weight, 2)
    shift = torch.randn(6, 8, generator=generator, dtype=F64)
    ends = torch.zeros(6, 1, dtype=torch.bool)
    ends[2] = True

    def run(end: float) -> hs.Solution:
        def move(state, c):
            z, count = state
            shift, ends = c
            after = z @ weight if product else (weight.T * z[:, None]).sum(-1)
            special = torch.where(count < 5, count + 1.0, end)
            return torch.where(ends, special.expand_as(z), after + shift), count + 1

        start = (torch.zeros(6, 8, dtype=F64), torch.zeros(6, 1, dtype=torch.int64))
        return hs.solve(move, start, (shift, ends), method=method, stop=Stop(1e-9, 0.0, 600), sync_every=1)

    settles, breaks = run(5.0), run(math.nan)
    assert settles.status[2] == Status.CONVERGED
    assert breaks.status[2] == Status.DIVERGED
    assert breaks.state[0][2].isfinite().all()
    others = torch.tensor([0, 1, 3, 4, 5])
    assert (settles.status[others] == Status.CONVERGED).all()
    if product:  # which may round differently for fewer rows, so that both have to end at the same step
        assert settles.steps[2] == breaks.steps[2] == 6
    for name in ("steps", "residual", "status"):
        assert torch.equal(getattr(settles, name)[others], getattr(breaks, name)[others]), name
    assert torch.equal(settles.state[0][others], breaks.state[0][others])


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_company_that_diverges_or_cycles_takes_no_part_of_the_answer(method):
    good = [("linear", 0.95, 3), ("tanh", 0.9, 4), ("linear", 0.5, 5)]
    bad = [("expands", 0.5, 6), ("cycles", 0.5, 7), ("explodes", 0.9, 8)]
    stop = Stop(1e-8, 0.0, 600)
    together = solved([bad[0], good[0], bad[1], good[1], bad[2], good[2]], method, stop)
    apart = solved(good, method, stop)
    assert (apart.status == Status.CONVERGED).all()
    assert Status.DIVERGED in together.status[[0, 2, 4]].tolist()
    assert Status.CONVERGED not in together.status[[0, 2, 4]].tolist()
    same(together, apart, [1, 3, 5])
    matrix, shift, _ = context_of(good[:1])
    exact = torch.linalg.solve(torch.eye(SIZE, dtype=F64) - matrix[0], shift[0])
    torch.testing.assert_close(together.state[1], exact, rtol=0, atol=1e-6)
