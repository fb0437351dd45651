"""`solve_stream`: each example gets what `solve` gives it alone, from slots that stay full, and nothing is lost."""

import gc
import itertools
import math
import weakref

import pytest
import torch

import homeostat as hs
from homeostat import Status, Stop, solve, solve_stream
from homeostat.errors import ContractError, ConvergenceWarning

F64 = torch.float64
METHODS = [hs.Picard(), hs.Picard(damping=0.7), hs.Anderson(), hs.Anderson(memory=2, damping=0.8), hs.Broyden()]
STOP = Stop(1e-6, 0.0, 300)


pytestmark = pytest.mark.usefixtures("no_gradients")


def matrix_cell(dim, dtype=F64, seed=0):
    """`tanh(rate * z @ Q + shift)` with a symmetric Q of norm 1, and contexts of rates from 0.3 to 0.97."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(dim, dim, generator=generator, dtype=F64)
    weight = weight + weight.T
    weight = (weight / torch.linalg.matrix_norm(weight, 2)).to(dtype)

    def contexts(count):
        rates = 0.3 + 0.67 * torch.rand(count, generator=generator, dtype=F64)
        shifts = 0.02 * torch.randn(count, dim, generator=generator, dtype=F64)
        return [
            {"rate": r.view(1, 1).to(dtype), "shift": s[None].to(dtype)} for r, s in zip(rates, shifts, strict=True)
        ]

    def step(z, c):
        return torch.tanh(c["rate"] * (z @ weight) + c["shift"])

    return step, contexts, lambda c: torch.zeros_like(c["shift"])


def assert_same(found, alone, steps=0, **tolerance):
    assert found.status == alone.status.item()
    assert abs(found.steps - alone.steps.item()) <= steps
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found.state, alone.state, equal_nan=True, **tolerance)
    if not steps:
        assert found.residual == pytest.approx(alone.residual.item(), rel=0.05, nan_ok=True)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize(("batch_size", "refill", "sync_every"), [(5, 0.0, None), (16, 0.25, None), (7, 0.1, 4)])
def test_every_example_gets_what_solve_gives_it_alone(method, batch_size, refill, sync_every):
    step, contexts, start = matrix_cell(12)
    given = contexts(20)
    stream = solve_stream(
        step, start, given, batch_size=batch_size, refill=refill, sync_every=sync_every, method=method, stop=STOP
    )
    found = sorted(stream, key=lambda x: x.index)
    assert [x.index for x in found] == list(range(20))
    for example, context in zip(found, given, strict=True):
        assert example.context is context
        assert_same(example, solve(step, start(context), context, method=method, stop=STOP), rtol=0, atol=1e-9)
    assert max(x.steps for x in found) > 1.5 * min(x.steps for x in found)  # otherwise this test shows little
    assert stream.row_evaluations >= sum(x.steps for x in found)


def difficult(dim, count):
    """Contexts of linear maps: contractions, non-normal ones, shifts (where nothing can be extrapolated), rotations."""
    generator = torch.Generator().manual_seed(3)
    for i in range(count):
        noise = torch.randn(dim, dim, generator=generator, dtype=F64)
        basis = torch.linalg.qr(noise)[0]
        spectrum = torch.rand(dim, generator=generator, dtype=F64) * (0.9 + 0.02 * (i % 5))
        match i % 4:
            case 0:
                matrix = basis @ spectrum.diag() @ basis.T
            case 1:
                matrix = torch.triu(noise, 1) / 2 + spectrum.diag()
            case 2:
                matrix = torch.eye(dim, dtype=F64).roll(1, 0).tril()
            case _:
                matrix = 0.9 * basis
        yield {"matrix": matrix[None], "shift": torch.randn(1, dim, generator=generator, dtype=F64)}


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_failures_and_second_trials_are_those_of_an_example_alone(method):
    def step(z, c):
        return torch.linalg.matmul(c["matrix"], z[:, :, None])[:, :, 0] + c["shift"]

    stream = solve_stream(
        step, lambda c: torch.zeros_like(c["shift"]), difficult(9, 28), batch_size=8, refill=0, method=method, stop=STOP
    )
    for x in stream:
        alone = solve(step, torch.zeros(1, 9, dtype=F64), x.context, method=method, stop=STOP)
        assert_same(x, alone, rtol=1e-6, atol=1e-6)
    assert stream.finished == 28


GAINS = [0.3, -1.0, 0.97, 1.0, 3.0, 0.0, 1e20, -0.9, 0.8, 0.3, 1e20, 0.9, -1.0, 0.5, 0.99, 0.1, -0.99]


PLAIN = {"method": hs.Picard(), "sync_every": 1}


def gain_step(z, c):
    return c * z + torch.tensor([1.0, -2.0, 0.5])


@pytest.mark.parametrize("options", [PLAIN, {"method": hs.Picard()}], ids=["every step", "chosen"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_ending_is_the_same_to_the_bit(batch_size, options):
    def start(c):
        return torch.full((1, 3), math.nan) if c.item() == 0.1 else torch.zeros(1, 3)

    given = [torch.tensor([[gain]]) for gain in GAINS]
    stop = Stop(1e-5, 0.0, 150)
    found = list(solve_stream(gain_step, start, given, batch_size=batch_size, refill=0, stop=stop, **options))
    assert {x.status for x in found} == {Status.CONVERGED, Status.CYCLING, Status.MAX_STEPS, Status.DIVERGED}
    for example in found:
        alone = solve(gain_step, start(given[example.index]), given[example.index], method=hs.Picard(), stop=stop)
        assert_same(example, alone)
        assert example.residual == pytest.approx(alone.residual.item(), rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("method", [hs.Picard(), hs.Anderson(), hs.Broyden()], ids=repr)
def test_low_precision_ends_as_it_does_alone(method):
    step, contexts, start = matrix_cell(16, torch.bfloat16)
    stop = Stop(1e-6, 0.0, 500)
    stream = solve_stream(step, start, contexts(12), batch_size=4, method=method, stop=stop)
    with pytest.warns(ConvergenceWarning, match="finer than bfloat16 can resolve"):
        found = list(stream)
    assert {x.status for x in found} <= {Status.CONVERGED, Status.STALLED}
    assert all(x.state.dtype == torch.bfloat16 for x in found)
    for x in found:
        alone = solve(step, start(x.context), x.context, method=method, stop=Stop(1e-3, 0.0, 500))
        torch.testing.assert_close(x.state, alone.state, rtol=0, atol=0.02)


def test_long_states_share_histories_that_are_written_in_pieces():
    generator = torch.Generator().manual_seed(5)
    spectrum = torch.rand(1, 3000, generator=generator, dtype=F64)

    def step(z, c):
        return c * spectrum * z + 1

    given = [torch.full((1, 1), 0.99 * i / 12, dtype=F64) for i in range(1, 13)]
    stream = solve_stream(step, lambda _: torch.zeros(1, 3000, dtype=F64), given, batch_size=4, refill=0, stop=STOP)
    for x in stream:
        assert_same(x, solve(step, torch.zeros(1, 3000, dtype=F64), x.context, stop=STOP), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", [hs.Picard(), hs.Anderson()], ids=repr)
def test_permuting_the_input_permutes_the_answers(method):
    step, contexts, start = matrix_cell(10, seed=1)
    given = contexts(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist()
    plain = {x.index: x for x in solve_stream(step, start, given, batch_size=6, method=method, stop=STOP)}
    shuffled = [given[i] for i in order]
    for x in solve_stream(step, start, shuffled, batch_size=6, method=method, stop=STOP):
        other = plain[order[x.index]]
        assert (x.status, x.steps) == (other.status, other.steps)
        torch.testing.assert_close(x.state, other.state, rtol=0, atol=1e-9)


def test_a_row_of_nan_on_the_way_disturbs_nobody():
    step, contexts, start = matrix_cell(8)
    given = contexts(20)
    given[4]["shift"][0, 0] = math.nan
    found = {x.index: x for x in solve_stream(step, start, given, batch_size=4, method=hs.Anderson(), stop=STOP)}
    assert (found[4].status, found[4].steps) == (Status.DIVERGED, 1)
    assert torch.equal(found[4].state, torch.zeros(1, 8, dtype=F64))
    for i in range(20):
        if i != 4:
            assert_same(
                found[i], solve(step, start(given[i]), given[i], method=hs.Anderson(), stop=STOP), atol=1e-9, rtol=0
            )


def nested(size, dtype, count, seed):
    """Examples of a state of two tensors, one of them a counter, in one shape."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        gain = 0.95 * torch.rand(1, generator=generator, dtype=F64)
        yield {
            "gain": gain.to(dtype),
            "input": torch.randn(1, size, generator=generator, dtype=F64).to(dtype),
            "no": None,
        }


def nested_start(c):
    return {"z": torch.zeros_like(c["input"]), "n": hs.Carry(torch.zeros(1))}


def nested_step(s, c):
    assert s["z"].shape == c["input"].shape
    return {"z": c["gain"][:, None] * s["z"].cos() + c["input"], "n": s["n"] + 1}


@pytest.mark.parametrize("look_ahead", [0, 3, None])
@pytest.mark.parametrize("method", [hs.Picard(), hs.Broyden()], ids=repr)
def test_shapes_and_dtypes_are_mixed(look_ahead, method):
    kinds = [(3, torch.float32), (5, torch.float32), (3, F64), (0, torch.float32)]
    given = list(itertools.chain(*zip(*(nested(*kind, 8, i) for i, kind in enumerate(kinds)), strict=True)))
    stream = solve_stream(
        nested_step, nested_start, iter(given), batch_size=4, look_ahead=look_ahead, method=method, stop=Stop(1e-5)
    )
    seen = set()
    for x in stream:
        seen.add(x.index)
        assert stream.read - stream.finished <= 4 + (4 if look_ahead is None else look_ahead)
        alone = solve(nested_step, nested_start(x.context), x.context, method=method, stop=Stop(1e-5))
        assert (x.status, x.steps) == (alone.status.item(), alone.steps.item())
        torch.testing.assert_close(x.state["z"], alone.state["z"], rtol=1e-5, atol=1e-5)
        assert x.state["n"].value.item() >= x.steps
    assert seen == set(range(32))


def test_no_shape_starves():
    """One example of another shape amid an endless supply of equal ones."""

    def endless():
        for i in itertools.count():
            yield torch.full((1, 5 if i == 7 else 2), 0.5)

    stream = solve_stream(lambda z, c: c * z + 1, torch.zeros_like, endless(), batch_size=4)
    found = next(x for x in stream if x.index == 7)
    assert found.status == Status.CONVERGED
    assert stream.rounds < 256 + 50
    stream.close()


def test_results_come_as_they_finish():
    given = [torch.tensor([[gain]]) for gain in (0.99, 0.1, 0.2, 0.1, 0.5)]
    stream = solve_stream(
        lambda z, c: c * z + 1, torch.zeros_like, given, batch_size=2, stop=Stop(1e-4, 0.0, 1000), **PLAIN
    )
    assert [x.index for x in stream] == [1, 2, 3, 4, 0]


@pytest.mark.parametrize("method", [hs.Picard(), hs.Anderson()], ids=repr)
def test_slots_stay_full_while_the_input_lasts(method):
    step, contexts, start = matrix_cell(16)
    given, sizes = contexts(256), []

    def observed(z, c):
        sizes.append((len(z), stream.read < 256))
        return step(z, c)

    stream = solve_stream(observed, start, given, batch_size=32, refill=1 / 32, method=method, stop=STOP)
    total = sum(x.steps for x in stream)
    lasting = [size for size, lasts in sizes if lasts]
    # An accelerated row that leaves is replaced at the next period, up to two steps later: of solves of 13 steps as
    # here, a slot may miss one step in 14.
    assert sum(lasting) / len(lasting) > (0.93 if isinstance(method, hs.Picard) else 0.91) * 32
    assert max(size for size, _ in sizes) == 32
    assert stream.rounds == len(sizes)
    assert stream.row_evaluations == sum(size for size, _ in sizes) <= 1.15 * total
    assert stream.occupancy == pytest.approx(stream.row_evaluations / (32 * stream.rounds))
    chunks = [torch.cat([c["shift"] for c in given[i : i + 32]]) for i in range(0, 256, 32)]
    rates = [torch.cat([c["rate"] for c in given[i : i + 32]]) for i in range(0, 256, 32)]
    rounds = sum(
        int(solve(step, torch.zeros_like(s), {"rate": r, "shift": s}, method=method, stop=STOP).steps.max())
        for r, s in zip(rates, chunks, strict=True)
    )
    # Accelerated solves are short and differ little, so that there is less to gain from not waiting for the longest.
    assert stream.rounds < (0.7 if isinstance(method, hs.Picard) else 0.95) * rounds


def test_nothing_is_read_before_there_is_a_slot():
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield torch.full((1, 2), 0.2 + 0.1 * (i % 7))

    stream = solve_stream(lambda z, c: c * z + 1, torch.zeros_like, endless(), batch_size=8)
    assert not taken
    for count, _ in enumerate(itertools.islice(stream, 100)):
        assert len(taken) == stream.read <= count + 8
        assert stream.finished == count + 1


def test_nothing_in_nothing_out():
    stream = solve_stream(gain_step, torch.zeros_like, [], batch_size=4)
    assert list(stream) == []
    assert (stream.read, stream.finished, stream.rounds, stream.row_evaluations) == (0, 0, 0, 0)
    assert math.isnan(stream.occupancy)


def test_no_steps_and_all_steps():
    given = [torch.full((1, 2), 0.5)] * 7
    none = list(solve_stream(gain_step, lambda c: c * 1, given, batch_size=3, stop=Stop(max_steps=0)))
    assert [x.index for x in none] == list(range(7))
    assert all(x.status == Status.MAX_STEPS and x.steps == 0 and math.isnan(x.residual) for x in none)
    assert all(torch.equal(x.state, given[0]) for x in none)
    for method in (hs.Picard(), hs.Anderson()):
        stream = solve_stream(
            lambda z, c: c * z + 1, lambda c: c * 1, given, batch_size=3, method=method, stop=Stop(0, 0, 7)
        )
        alone = solve(lambda z, c: c * z + 1, given[0], given[0], method=method, stop=Stop(0, 0, 7))
        for x in stream:
            assert_same(x, alone, rtol=1e-6, atol=0)
        assert stream.row_evaluations == 49


def test_options_that_make_no_sense_are_refused_at_once():
    def call(**options):
        options = {"step": gain_step, "start": torch.zeros_like, "contexts": [], "batch_size": 4} | options
        return solve_stream(options.pop("step"), options.pop("start"), options.pop("contexts"), **options)

    for batch_size in (0, -1, 2.0, True, None):
        with pytest.raises(ValueError, match="batch_size must be a whole number, 1 or more"):
            call(batch_size=batch_size)
    with pytest.raises(ValueError, match="look_ahead must be a whole number, 0 or more"):
        call(look_ahead=-1)
    with pytest.raises(ValueError, match="refill must be from 0 to 1"):
        call(refill=1.5)
    with pytest.raises(ValueError, match="sync_every must be"):
        call(sync_every=0)
    with pytest.raises(ValueError, match=r"stop\.rtol must be one number in a stream"):
        call(stop=Stop(rtol=torch.tensor([1e-3])))
    with pytest.raises(ValueError, match=r"stop\.max_steps must be one number in a stream"):
        call(stop=Stop(max_steps=torch.tensor([3])))
    with pytest.raises(TypeError, match="method must be an instance"):
        call(method=hs.Anderson)
    with pytest.raises(TypeError, match="start must be a function, not Tensor"):
        call(start=torch.zeros(1, 3))
    with pytest.raises(TypeError, match="not iterable"):
        call(contexts=3)


def half(z, c):
    return c * z + 1


def test_an_error_of_the_input_comes_after_everything_that_was_read():
    def failing():
        yield from (torch.tensor([[gain]]) for gain in (0.9, 0.1, 0.5))
        raise OSError("the disk is gone")

    stream = solve_stream(half, torch.zeros_like, failing(), batch_size=2)
    found = []
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(x.index for x in stream)
    assert sorted(found) == [0, 1, 2]
    assert next(stream, None) is None


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(2, 1), ContractError, "one example at a time"),
        (torch.tensor(1.0), ContractError, "has no batch dimension"),
        (3.0, ContractError, "not a tensor"),
        ("start fails", KeyError, "no such start"),
        ("start stops", RuntimeError, "StopIteration"),
    ],
)
def test_an_example_that_does_not_fit_is_named_after_the_others(bad, error, message):
    def start(c):
        if c == "start fails":
            raise KeyError("no such start")
        if c == "start stops":
            raise StopIteration
        return torch.zeros(2 if torch.is_tensor(c) and len(c.shape) and len(c) == 2 else 1, 1)

    given = [torch.tensor([[0.9]]), torch.tensor([[0.1]]), bad, torch.tensor([[0.5]])]
    stream, found = solve_stream(half, start, given, batch_size=2), []
    with pytest.raises(error, match=message) as caught:
        found.extend(x.index for x in stream)
    assert sorted(found) == [0, 1]
    notes = getattr(caught.value.__cause__ or caught.value, "__notes__", [])
    assert any("example 2" in note for note in notes)


def test_an_error_of_step_names_its_examples_after_what_was_finished():
    def step(z, c):
        if (c == 0.7).any():
            raise FloatingPointError("seven")
        return half(z, c)

    given = [torch.tensor([[gain]]) for gain in (0.9, 0.1, 0.7, 0.5)]
    stream, found = solve_stream(step, torch.zeros_like, given, batch_size=2, **PLAIN), []
    with pytest.raises(FloatingPointError, match="seven") as caught:
        found.extend(x.index for x in stream)
    assert found == [1]
    assert caught.value.__notes__ == ["solve_stream was working on these examples of its input: 0, 2"]
    assert next(stream, None) is None


def test_a_step_that_breaks_the_contract_is_an_error():
    with pytest.raises(ContractError, match="step changed state"):
        next(solve_stream(lambda z, c: z[:, :1], torch.zeros_like, [torch.ones(1, 3)] * 3, batch_size=2))


def test_shared_parts_are_one_for_all():
    def step(z, c):
        return c["gain"] * z + c["input"]

    def contexts(gains):
        return [{"gain": hs.Shared(gain), "input": torch.ones(1, 3)} for gain in gains]

    def start(c):
        return torch.zeros(1, 3)

    for gains in ([0.5] * 5, [torch.tensor(0.5)] * 5, [torch.tensor(0.5) for _ in range(5)]):
        assert all(x.status == Status.CONVERGED for x in solve_stream(step, start, contexts(gains), batch_size=2))
    for gains in ([0.5, 0.25], [torch.tensor(0.5), torch.tensor(0.25)], [0.5, torch.tensor(0.5).expand(2)]):
        stream = solve_stream(step, start, contexts(gains), batch_size=2)
        with pytest.raises(ContractError, match=r"context\['gain'\] is marked Shared, but differs"):
            list(stream)
        assert stream.finished == 1


@pytest.mark.parametrize("method", [hs.Picard(), hs.Anderson(), hs.Broyden()], ids=repr)
def test_closing_early_lets_go_of_everything(method):
    class Source:
        def __iter__(self):
            return (torch.full((1, 4), 0.5 + 0.01 * (i % 40)) for i in itertools.count())

    states = []

    def step(z, c):
        states.append(weakref.ref(z))
        return half(z, c)

    stream = solve_stream(step, torch.zeros_like, Source(), batch_size=4, method=method)
    next(stream)
    stream.close()
    gc.collect()
    assert all(state() is None for state in states)
    assert next(stream, None) is None
    assert repr(stream).startswith("SolutionStream: ")


def test_gradients_are_not_recorded_and_the_mode_of_the_caller_is_his():
    gain = torch.full((1, 3), 0.5, requires_grad=True)
    with torch.enable_grad():
        stream = solve_stream(half, lambda c: torch.zeros(1, 3), (gain * 1 for _ in range(6)), batch_size=2)
        for x in stream:
            assert torch.is_grad_enabled()
            assert not x.state.requires_grad
            assert not x.context.requires_grad


@pytest.mark.parametrize("method", [hs.Anderson(), hs.Broyden()], ids=repr)
@pytest.mark.parametrize("made_in", [True, False])
def test_a_stream_may_be_read_in_and_out_of_inference_mode(made_in, method):
    step, contexts, start = matrix_cell(8)
    with torch.inference_mode(made_in):
        stream = solve_stream(step, start, contexts(30), batch_size=5, method=method, stop=STOP)
    found = []
    while True:
        with torch.inference_mode(len(found) % 3 == 0):
            x = next(stream, None)
        if x is None:
            break
        found.append(x)
        assert x.state.is_inference() == made_in
    assert len(found) == 30


def test_what_is_returned_is_readable_and_owns_its_memory():
    stream = solve_stream(half, torch.zeros_like, [torch.full((1, 2), 0.5)] * 8, batch_size=8, **PLAIN)
    assert "0 examples read" in repr(stream)
    first = next(stream)
    assert repr(first) == "StreamedExample 0: CONVERGED after 14 steps, residual 6.1e-05"
    others = list(stream)
    first.state.zero_()
    assert all((x.state > 1).all() for x in others)
    assert "8 examples read, 8 finished, 14 rounds, 112 row evaluations, 100% of 8 slots filled" in repr(stream)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_dropped_examples_leave_and_the_others_do_not_notice(method):
    step, contexts, start = matrix_cell(12)
    given = contexts(24)
    finished, dropped = [], []

    def source():
        for index, context in enumerate(given):
            yield context
            if index == 10:  # those that are held, in the batch or before it; and one that is finished, for nothing
                dropped.extend([i for i in range(11) if i not in finished][::2])
                for place in (*dropped, *finished[:1]):
                    stream.drop(place)

    stream = solve_stream(step, start, source(), batch_size=9, refill=0.0, method=method, stop=STOP)
    for found in stream:
        finished.append(found.index)
        alone = solve(step, start(given[found.index]), given[found.index], method=method, stop=STOP)
        assert_same(found, alone, steps=1, rtol=1e-5, atol=1e-8)
    assert len(dropped) >= 2
    assert sorted(finished) == [i for i in range(24) if i not in dropped]


def test_dropping_everything_ends_the_batch():
    def source():
        for index in range(4):
            yield torch.ones(1, 1)
            stream.drop(index)

    stream = solve_stream(
        lambda z, c: c * z + 1, torch.zeros_like, source(), batch_size=4, method=hs.Picard(), stop=Stop(0.0, 0.0, 10**9)
    )
    assert list(stream) == []
    assert (stream.read, stream.finished) == (4, 0)


@pytest.mark.parametrize("method", [hs.Picard(), hs.Anderson()], ids=repr)
def test_examples_may_stop_differently(method):
    step, contexts, start = matrix_cell(12)
    given = contexts(20)
    limits = [Stop(1e-6, 0.0, 7 + 60 * (place % 3)) for place in range(20)]
    told = iter(limits)
    stream = solve_stream(step, start, given, batch_size=8, method=method, stop=lambda context: next(told))
    for found in stream:
        alone = solve(step, start(given[found.index]), given[found.index], method=method, stop=limits[found.index])
        assert_same(found, alone, rtol=1e-9, atol=1e-12)
    assert stream.finished == 20


def test_a_stop_that_is_none_is_named():
    with pytest.raises(TypeError, match="stop must be an instance") as error:
        list(solve_stream(lambda z, c: z, torch.zeros_like, [torch.ones(1, 1)], batch_size=1, stop=lambda context: 3))
    assert "example 0" in error.value.__notes__[0]
