"""A step whose answer for an example depends on the others is found out before rows leave, not obeyed in silence."""

from types import FunctionType

import pytest
import torch

import homeostat as hs
from homeostat.engine import Neumann, OneStep, Phantom
from homeostat.errors import ContractError

METHODS = [hs.Picard(), hs.Anderson(), hs.Broyden()]
GAIN = torch.tensor([0.1, 0.5, 0.95])[:, None]


@pytest.mark.parametrize("method", [hs.Picard(), hs.Anderson(), hs.Broyden()])
@pytest.mark.parametrize("size", [2, 3])
def test_a_shared_tensor_that_is_not_marked_and_has_the_size_of_the_batch(method, size):
    generator = torch.Generator().manual_seed(size)
    position, x = torch.randn(size, 8, generator=generator), torch.randn(size, size, 8, generator=generator)
    rate = torch.linspace(0.1, 0.95, size)

    def step(z, c):
        return torch.tanh(c["rate"][:, None, None] * z + c["x"] + c["position"])

    start = torch.zeros(size, size, 8)
    with pytest.raises(ContractError, match=r"another answer when row.*homeostat\.Shared"):
        hs.solve(step, start, {"x": x, "rate": rate, "position": position}, method=method)
    marked = hs.solve(step, start, {"x": x, "rate": rate, "position": hs.Shared(position)}, method=method)
    assert marked.converged.all()


def test_a_step_that_looks_at_the_whole_batch():
    with pytest.raises(ContractError, match="another answer when row"):
        hs.solve(lambda z, c: c * (z - 0.3 * z.mean(0)) + 1, torch.zeros(3, 4), GAIN)


def test_noise_that_is_not_context():
    with pytest.raises(ContractError, match="noise must come in as context"):
        hs.solve(lambda z, c: torch.where(c < 0.2, 1.0, c * z + torch.rand_like(z)), torch.zeros(3, 4), GAIN)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("stop", [hs.Stop(), hs.Stop(rtol=0, max_steps=5)])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_in_a_closure_is_named_where_the_step_fails(method, stop, grad):
    inputs = torch.randn(3, 4)
    with torch.set_grad_enabled(grad), pytest.raises(ContractError, match="not of a closure"):
        hs.solve(lambda z, c: c * z + inputs, torch.zeros(3, 4), GAIN, method=method, stop=stop)


def test_a_graph_as_lists_of_edges_is_sent_to_one_problem():
    draw = torch.Generator().manual_seed(0)
    source, target = torch.randint(40, (2, 150), generator=draw)
    x = torch.randn(40, 8, generator=draw)

    def step(z, c):
        return torch.tanh(torch.zeros_like(z).index_add(0, target, z[source]) / 4 + c)

    with pytest.raises(ContractError, match="batched=False"):
        hs.solve(step, torch.zeros(40, 8), x)
    assert hs.solve(step, torch.zeros(40, 8), x, batched=False, stop=hs.Stop(rtol=0, max_steps=5)).steps == 5


# Coupled rows


def graph_step(draw: torch.Generator, rows: int):
    """A layer of a graph network over the rows as nodes: a random tree, and some edges more."""
    adjacency = torch.zeros(rows, rows)
    for node in range(1, rows):
        parent = int(torch.randint(node, (1,), generator=draw))
        adjacency[node, parent] = adjacency[parent, node] = 1
    mean = adjacency / adjacency.sum(1, keepdim=True)
    weight = 0.3 * torch.randn(4, 4, generator=draw)
    return lambda z, c: torch.tanh(0.6 * mean @ z @ weight + 0.3 * z + c)


def mean_field_step(draw: torch.Generator, rows: int):
    del rows
    weight = 0.3 * torch.randn(4, 4, generator=draw)
    return lambda z, c: torch.tanh(z.mean(0, keepdim=True) @ weight + 0.4 * z + c)


@pytest.mark.parametrize("gradient", [hs.Implicit(), Phantom(), OneStep(), Neumann(), hs.Unrolled(), None])
@pytest.mark.parametrize("stop", [hs.Stop(), hs.Stop(rtol=0, max_steps=8)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [graph_step, mean_field_step])
def test_rows_that_hear_of_one_another_are_found(make, method, stop, gradient):
    # Far fewer than the benchmark takes: one dependence in 10,000 would go unnoticed by these.
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        rows = int(torch.randint(4, 30, (1,), generator=draw))
        step, x = make(draw, rows), torch.randn(rows, 4, generator=draw)
        options = {} if gradient is None else {"gradient": gradient}
        with torch.set_grad_enabled(gradient is not None), pytest.raises(ContractError, match="batched=False"):
            hs.solve(step, torch.zeros(rows, 4), x, method=method, stop=stop, **options)


def hearing(hears: int, of: int, rows: int = 8):
    """A step in which one row hears of one other, by the numbers that they have in their context."""

    def step(z, c):
        number, x = c[:, :1], c[:, 1:]
        heard = ((number == of) * z).sum(0, keepdim=True)
        return 0.5 * torch.tanh(z) + x + 0.05 * (number == hears) * heard

    # Of other code than other cases: it is its first use.
    code = step.__code__.replace(co_name=f"step_{hears}_{of}_{rows}")
    return FunctionType(code, globals(), closure=step.__closure__)


def numbered(rows: int) -> torch.Tensor:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.arange(rows)[:, None], x], 1)


@pytest.mark.parametrize("rows", [2, 7, 16])
@pytest.mark.parametrize(("hears", "of"), [(0, 1), (1, 0)])
def test_one_row_that_hears_of_one_other_is_found_at_the_first_use_with_a_gradient(hears, of, rows):
    for shift in range(0, rows - 1, 3):
        step = hearing(hears + shift, of + shift, rows)
        with pytest.raises(ContractError, match=f"row {hears + shift} another answer when row {of + shift} "):
            hs.solve(step, torch.zeros(rows, 4), numbered(rows), stop=hs.Stop(rtol=0, max_steps=6))


def test_one_row_that_hears_of_one_other_later_is_missed_as_often_as_is_said():
    # Both rows of the pair in the half, or both outside, or the wrong one inside: of 8 rows 40 of 56 times.
    found, long = 0, hs.Stop(rtol=0, max_steps=400)
    with torch.no_grad():
        for number in range(100):
            step = hearing(101, 104, 900 + number)
            hs.solve(step, torch.zeros(8, 4), numbered(8), stop=long)
            try:
                hs.solve(step, torch.zeros(8, 4), numbered(8) + 100, stop=long)
            except ContractError:
                found += 1
    assert 0.12 < found / 100 < 0.48


@pytest.mark.parametrize("change", ["another tensor", "fewer rows", "another kind", "after an error"])
def test_it_is_looked_at_once_more_when_something_is_another_one(change):
    def made(couple):
        return lambda z, c: 0.5 * torch.tanh(z) + couple * z.mean(0) + (c if torch.is_tensor(c) else c["x"])

    stop, nothing, much = hs.Stop(rtol=0, max_steps=5), torch.zeros(1), torch.full((1,), 0.3)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

    def solve(couple, x):
        return hs.solve(made(couple), torch.zeros(len(x), 4), x, stop=stop)

    solve(nothing, x)
    solve(nothing, x)
    if change in ("fewer rows", "another kind"):
        nothing.fill_(0.3)
        much = nothing
    context = {"x": x, "y": hs.Shared(x)} if change == "another kind" else x
    rows = 4 if change == "fewer rows" else 6
    for _ in range(3 if change == "after an error" else 1):
        with pytest.raises(ContractError, match="batched=False"):
            hs.solve(made(much), torch.zeros(rows, 4), context[:rows] if rows < 6 else context, stop=stop)


def test_rows_with_equal_values_do_not_hide():
    # A mean over rows that are all alike: no value tells, but the gradient would be wrong.
    context = torch.zeros(8, 3, requires_grad=True)
    with pytest.raises(ContractError, match="batched=False"):
        hs.solve(lambda z, c: 0.4 * z + 0.3 * (z - z.mean(0)) + 1 + c, torch.zeros(8, 3), context, stop=hs.Stop(1e-6))


def test_every_row_that_gets_the_answer_of_the_first():
    with pytest.raises(ContractError, match="another answer"):
        hs.solve(lambda z, c: (0.5 * z + c)[:1].repeat(len(z), 1), torch.zeros(6, 4), torch.randn(6, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 3, 33])
def test_rows_that_do_not_hear_of_one_another_are_left_alone(rows, dtype):
    draw = torch.Generator().manual_seed(rows)
    cell = torch.nn.GRUCell(16, 16).to(dtype)
    x = torch.randn(rows, 16, generator=draw).to(dtype)
    hs.solve(lambda z, c: cell(c, z), torch.zeros_like(x), x, stop=hs.Stop(rtol=0, max_steps=6))
    step = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).to(dtype)
    x = torch.randn(rows, 5, 16, generator=draw).to(dtype)
    hs.solve(lambda z, c: step(0.1 * z) + c, torch.zeros_like(x), x, stop=hs.Stop(rtol=0, max_steps=6))


def test_a_step_that_draws_random_numbers_draws_the_same_ones_with_the_check():
    torch.manual_seed(3)
    wanted = [torch.rand(6, 4) for _ in range(4)]
    next_one = torch.rand(3)
    torch.manual_seed(3)
    with torch.no_grad():
        solution = hs.solve(lambda z, _: torch.rand_like(z), torch.zeros(6, 4), stop=hs.Stop(rtol=0, max_steps=4))
    assert torch.equal(solution.state, wanted[-1])
    assert torch.equal(torch.rand(3), next_one)


def test_steps_that_do_as_they_should_are_left_alone():
    solution = hs.solve(lambda z, c: c * z + 1, torch.zeros(3, 4), GAIN, stop=hs.Stop(rtol=1e-6))
    assert solution.converged.all()
    torch.testing.assert_close(solution.state, (1 / (1 - GAIN)).expand(3, 4), rtol=1e-4, atol=0)
