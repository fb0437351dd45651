"""`solve(..., compile=True)`: answers, statuses and steps of the eager solve, and a clear fallback."""

import gc
import random
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat.errors import CompileWarning, ContractError


def _compiler_works() -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x.sin() + 1)(torch.ones(3))
    except Exception:
        return False
    return True


needs_compiler = pytest.mark.skipif(not _compiler_works(), reason="no C++ compiler that PyTorch can use")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def _graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def _both(step, state, context=None, **options):
    """The eager and the compiled solution, with plain steps unless another method is given."""
    options.setdefault("method", hs.Picard())
    with torch.no_grad():
        eager = hs.solve(step, state, context, **options)
        compiled = hs.solve(step, state, context, compile=True, **options)
    return eager, compiled


def _assert_same(eager, compiled, rtol=1e-4, atol=1e-5):
    assert compiled.status.tolist() == eager.status.tolist()
    assert compiled.steps.tolist() == eager.steps.tolist()
    torch.testing.assert_close(compiled.state, eager.state, rtol=rtol, atol=atol, equal_nan=True)


def _rates(z, c):
    """One map for every fate: `rate` per row decides whether it settles, swings or blows up."""
    return c["rate"] * z + c["shift"]


@needs_compiler
@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_every_fate_is_that_of_the_eager_solve(generator, damping):
    rate = torch.tensor([0.3, 0.5, 0.9, 0.97, -1.0, -0.99, 1.5, 1e4, -3.0, 0.0])[:, None]
    context = {"rate": rate, "shift": torch.randn(10, 12, generator=generator)}
    start = torch.randn(10, 12, generator=generator)
    eager, compiled = _both(_rates, start, context, method=hs.Picard(damping), stop=hs.Stop(1e-4, max_steps=400))
    _assert_same(eager, compiled)
    assert set(eager.status.tolist()) >= {hs.Status.CONVERGED, hs.Status.DIVERGED} | (
        {hs.Status.CYCLING} if damping == 1 else set()
    )
    assert compiled.row_evaluations >= compiled.steps.sum()


@needs_compiler
def test_tolerances_and_limits_per_row(generator):
    context = {"rate": torch.full((6, 1), 0.8), "shift": torch.randn(6, 12, generator=generator)}
    rtol = torch.tensor([1e-2, 1e-3, 1e-4, 1e-5, 1e-5, 0.0])
    limits = torch.tensor([200, 200, 200, 200, 17, 33])
    eager, compiled = _both(_rates, torch.zeros(6, 12), context, stop=hs.Stop(rtol, max_steps=limits))
    _assert_same(eager, compiled)
    untested = hs.Stop(0.0, max_steps=37)
    eager, compiled = _both(_rates, torch.zeros(6, 12), context, stop=untested)
    _assert_same(eager, compiled)
    assert compiled.row_evaluations == 6 * 37


@needs_compiler
def test_bfloat16_rounds_as_the_eager_steps_do(generator):
    weight = (torch.randn(16, 16, generator=generator) / 5).bfloat16()
    shift = torch.randn(8, 16, generator=generator).bfloat16()

    def step(z, c):
        return torch.tanh(z @ weight + c)

    eager, compiled = _both(step, torch.zeros_like(shift), shift, stop=hs.Stop(1e-3))
    _assert_same(eager, compiled, rtol=0, atol=0)
    assert hs.Status.STALLED in eager.status.tolist()


@needs_compiler
def test_nests_carried_leaves_and_shared_context(generator):
    weight = torch.randn(4, 4, generator=generator) * 0.3

    def step(state, context):
        # Written in another order than it came, and without its marks.
        return {
            "count": state["count"] + 1,
            "pair": (torch.tanh(state["pair"][0] @ context["w"]) + context["x"], 0.5 * state["pair"][1].cos()),
            "seen": state["seen"] + 2.0,
        }

    state = {
        "pair": (torch.zeros(3, 4), torch.ones(3, 2, 2, dtype=torch.float64)),
        "seen": hs.Carry(torch.zeros(3)),
        "count": torch.zeros(3, dtype=torch.int64),
    }
    context = {"w": hs.Shared(weight), "x": torch.randn(3, 4, generator=generator), "nothing": None}
    eager, compiled = _both(step, state, context, method=hs.Picard(0.7), stop=hs.Stop(0.0, max_steps=17))
    assert compiled.steps.tolist() == eager.steps.tolist()
    assert compiled.state["count"].tolist() == eager.steps.tolist()
    assert compiled.state["seen"].value.tolist() == (2.0 * eager.steps).tolist()
    torch.testing.assert_close(compiled.state["pair"], eager.state["pair"], rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("method", [hs.Anderson(), hs.Broyden()], ids=lambda m: type(m).__name__)
def test_accelerated_methods(generator, method):
    context = {"rate": torch.linspace(0.5, 0.95, 6)[:, None], "shift": torch.randn(6, 12, generator=generator)}
    eager, compiled = _both(_rates, torch.zeros(6, 12), context, method=method, stop=hs.Stop(1e-5))
    assert compiled.status.tolist() == eager.status.tolist()
    assert (compiled.steps - eager.steps).abs().max() <= 1
    torch.testing.assert_close(compiled.state, eager.state, rtol=1e-3, atol=1e-4)


@needs_compiler
def test_rows_that_leave_one_by_one_need_no_new_graphs(generator):
    rate = torch.linspace(0.05, 0.97, 24)[:, None]
    context = {"rate": rate, "shift": torch.randn(24, 12, generator=generator)}

    def step(z, c):
        return c["rate"] * z.sin() + c["shift"]

    before = _graphs()
    eager, compiled = _both(step, torch.zeros(24, 12), context, stop=hs.Stop(1e-5, max_steps=600))
    _assert_same(eager, compiled)
    assert len(set(compiled.steps.tolist())) > 12
    assert _graphs() - before == 2  # blocks and single steps
    _both(step, torch.zeros(9, 12), {k: v[:9] for k, v in context.items()})
    assert _graphs() - before == 2
    _, single = _both(step, torch.zeros(1, 12), {k: v[:1] for k, v in context.items()})
    assert single.status.tolist() == [hs.Status.CONVERGED]


@needs_compiler
def test_large_states_take_single_steps(generator):
    conv = nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    conv.weight.mul_(0.5)
    x = torch.randn(3, 4, 80, 80, generator=generator)
    eager, compiled = _both(lambda z, c: torch.tanh(conv(z) + c), torch.zeros_like(x), x, stop=hs.Stop(1e-4))
    _assert_same(eager, compiled)
    assert compiled.state.stride() == eager.state.stride()


@needs_compiler
def test_what_a_step_closes_over_may_change_between_solves():
    cell = nn.Linear(6, 6)
    x = torch.ones(4, 6)

    def solve(scale):
        with torch.no_grad():
            step, start = lambda z, c: scale * torch.tanh(cell(z)) + c, torch.zeros(4, 6)
            return hs.solve(step, start, x, method=hs.Picard(), compile=True).state

    solve(torch.tensor(0.5))
    before = _graphs()
    with torch.no_grad():
        cell.weight.zero_()
        cell.bias.fill_(1.0)
    expected = 1 + torch.tanh(torch.tensor(1.0))
    for scale in (1.0, 2.0):  # a new function each time, from the same code
        found = solve(torch.tensor(scale))
        torch.testing.assert_close(found, torch.full((4, 6), 1 + scale * (float(expected) - 1)))
    assert _graphs() == before


@needs_compiler
def test_a_module_that_is_gone_takes_its_graphs_along():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 5)

        def forward(self, z, c):
            return 0.5 * torch.tanh(self.inner(z)) + c

    cell = Cell()
    with torch.no_grad():
        hs.solve(cell, torch.zeros(2, 5), torch.ones(2, 5), method=hs.Picard(), compile=True)
    gone = weakref.ref(cell)
    del cell
    gc.collect()
    assert gone() is None


@needs_compiler
def test_steps_that_do_more_than_compute_do_it_every_time():
    calls = []
    counted = {"n": 0}

    def step(z, c):
        calls.append(1)
        counted["n"] += 1
        return 0.5 * z.cos() + c

    with torch.no_grad():
        hs.solve(
            step, torch.zeros(2, 5), torch.ones(2, 5), method=hs.Picard(), stop=hs.Stop(0.0, max_steps=17), compile=True
        )
    assert len(calls) == counted["n"] == 17 + 2  # the two more are each row without the other


@needs_compiler
def test_gradients_of_a_compiled_solve(generator):
    cell = nn.Linear(6, 6)
    with torch.no_grad():
        cell.weight.mul_(0.5)
    x = torch.randn(4, 6, generator=generator)

    def gradient(**options):
        cell.zero_grad()
        solution = hs.solve(lambda z, c: torch.tanh(cell(z) + c), torch.zeros(4, 6), x, stop=hs.Stop(1e-6), **options)
        solution.state.sum().backward()
        return [p.grad.clone() for p in cell.parameters()]

    for mode in (hs.Implicit(), hs.Phantom(), hs.Unrolled()):
        torch.testing.assert_close(gradient(gradient=mode, compile=True), gradient(gradient=mode), rtol=1e-4, atol=1e-6)


@needs_compiler
def test_autocast_and_inference_mode(generator):
    weight = torch.randn(8, 8, generator=generator) * 0.2
    x = torch.randn(4, 8, generator=generator)

    def step(z, c):
        return torch.tanh(z @ weight + c)

    stop = hs.Stop(0.0, max_steps=17)
    with torch.autocast("cpu", torch.bfloat16):
        eager, compiled = _both(step, torch.zeros(4, 8), x, stop=stop)
    assert compiled.state.dtype == torch.float32
    _assert_same(eager, compiled, rtol=0, atol=0)
    with torch.inference_mode():
        compiled = hs.solve(step, torch.zeros(4, 8), x, method=hs.Picard(), stop=stop, compile=True)
    assert compiled.state.is_inference()
    eager, _ = _both(step, torch.zeros(4, 8), x, stop=stop)
    _assert_same(eager, compiled)


@needs_compiler
def test_a_step_that_cannot_be_compiled_warns_once_and_runs_eagerly():
    def step(z, c):
        return torch.from_numpy(z.numpy() * random.random() * 0) + c + float(z.sum() > 1e9)

    x = torch.ones(3, 4)
    with torch.no_grad():
        with pytest.warns(CompileWarning, match="runs eagerly") as caught:
            solution = hs.solve(step, torch.zeros(3, 4), x, stop=hs.Stop(0.0, max_steps=30), compile=True)
        assert len(caught) == 1
        hs.solve(step, torch.zeros(3, 4), x, compile=True)  # warnings are errors here
    torch.testing.assert_close(solution.state, x)


def test_without_a_compiler_there_is_one_warning(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", missing)
    with torch.no_grad(), pytest.warns(CompileWarning, match="no compiler") as caught:
        solution = hs.solve(lambda z, c: 0.5 * z + c, torch.zeros(3, 4), torch.ones(3, 4), compile=True)
    assert len(caught) == 1
    assert (solution.status == hs.Status.CONVERGED).all()


@needs_compiler
def test_a_step_that_is_tied_to_its_number_of_rows_runs_eagerly(capfd):
    def step(z, c):
        return 0.5 * z.view(4, 3) + c if len(z) == 4 else 0.5 * z + c

    x = torch.arange(1.0, 5)[:, None].expand(4, 3)
    with torch.no_grad(), pytest.warns(CompileWarning):
        solution = hs.solve(step, torch.zeros(4, 3), x.clone(), stop=hs.Stop(1e-6), compile=True)
    torch.testing.assert_close(solution.state, 2 * x, rtol=1e-4, atol=0)


def test_the_contract_is_checked_as_ever():
    with pytest.raises(ContractError, match="became"):
        hs.solve(lambda z, _: z.double(), torch.zeros(3, 4), compile=True)
    with pytest.raises(ContractError, match="in place"):
        hs.solve(lambda z, _: z.tanh_(), torch.ones(3, 4), compile=True)
    with pytest.raises(TypeError, match="compile must be"):
        hs.solve(lambda z, _: z, torch.ones(3, 4), compile="yes")  # type: ignore[arg-type]


def test_the_compiler_is_not_imported_unasked():
    code = (
        "import sys, torch, homeostat as hs\n"
        "hs.solve(lambda z, _: 0.5 * z, torch.ones(2, 3))\n"
        "sys.exit(any(x.startswith('homeostat') and x.endswith(('.compiled', '.graphs')) for x in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pytorch_whose_compiler_looks_different_runs_eagerly(monkeypatch):
    monkeypatch.setitem(sys.modules, "homeostat.engine.forward.compiled", None)
    with pytest.warns(CompileWarning, match="cannot compile steps"):
        solution = hs.solve(lambda z, c: 0.5 * z + c, torch.zeros(2, 3), torch.ones(2, 3), compile=True)
    assert solution.converged.all()
