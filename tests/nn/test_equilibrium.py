"""`Equilibrium` is `solve` as a module, and behaves like any other module."""

import copy
import multiprocessing.connection
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import homeostat as hs
from homeostat.errors import ContractError
from homeostat.nn import Equilibrium, normalise

TIGHT = hs.Stop(rtol=1e-12, max_steps=500)
EXACT = hs.Implicit(stop=TIGHT)


class Cell(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, z, x):
        return torch.tanh(0.6 * self.inner(z) + x)


def layer(**options) -> Equilibrium:
    torch.manual_seed(0)
    return Equilibrium(Cell(), **{"stop": TIGHT, "gradient": EXACT, **options}).double()


def inputs(rows: int = 5) -> torch.Tensor:
    # Different sizes, so that rows stop at different steps.
    return torch.randn(rows, 6, dtype=torch.float64) * torch.linspace(0.01, 2, rows, dtype=torch.float64)[:, None]


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def test_it_is_solve():
    module, x = layer(), inputs()
    direct = hs.solve(module.cell, torch.zeros_like(x), x, stop=TIGHT, gradient=EXACT, method=module.method)
    solution = module.solve(x)
    assert torch.equal(solution.state, direct.state)
    assert torch.equal(module(x), direct.state)
    assert torch.equal(solution.steps, direct.steps)


def test_gradients_are_those_of_the_fixed_point():
    module, x = layer(), inputs()
    module(x).square().sum().backward()
    weight, bias = module.cell.inner.weight.detach(), module.cell.inner.bias.detach()

    def loss(w, b):  # an unrolled loop that is long enough to be exact
        z = torch.zeros_like(x)
        for _ in range(300):
            z = torch.tanh(0.6 * (z @ w.T + b) + x)
        return z.square().sum()

    expected = torch.func.grad(loss, argnums=(0, 1))(weight, bias)
    for found, truth in zip(gradients(module), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-10)


def test_a_warm_start_is_short():
    module, x = layer(), inputs()
    cold = module.solve(x)
    warm = module.solve(x, cold.state.detach())
    assert (warm.steps <= 2).all()
    assert (cold.steps > 5).any()


def test_where_it_starts():
    context = {"x": inputs()}
    with pytest.raises(ContractError, match="context is a dict, which does not say where to start"):
        layer()(context)
    with pytest.raises(ContractError, match=r"a tensor of torch\.int64"):
        layer()(torch.ones(2, 6, dtype=torch.int64))

    def cell(z, c):
        return 0.5 * z + c["x"]

    by_start = Equilibrium(cell, stop=TIGHT, start=lambda c: torch.zeros_like(c["x"]))
    torch.testing.assert_close(by_start(context), 2 * context["x"])
    torch.testing.assert_close(Equilibrium(cell, stop=TIGHT)(context, context["x"]), 2 * context["x"])


def test_a_learned_start_is_a_submodule_and_gets_what_the_gradient_gives():
    torch.manual_seed(0)
    module = Equilibrium(
        Cell(), start=nn.Linear(6, 6), stop=hs.Stop(rtol=0, max_steps=2), gradient=hs.Unrolled()
    ).double()
    module(inputs()).sum().backward()
    assert any(name.startswith("start.") for name in module.state_dict())
    assert (module.start.weight.grad != 0).any()


def test_options_are_checked_when_it_is_made():
    for name in ("method", "stop", "gradient"):
        with pytest.raises(TypeError, match=f"{name} must be an instance such as hs"):
            Equilibrium(Cell(), **{name: "anderson"})
    with pytest.raises(TypeError, match="stop must be an instance"):
        Equilibrium(Cell(), stop=hs.Stop)
    with pytest.raises(TypeError, match="cell must be a module or a function"):
        Equilibrium(0.5)
    with pytest.raises(TypeError, match="start must be a module or a function"):
        Equilibrium(Cell(), start=torch.zeros(2))
    with pytest.raises(ValueError, match="plain numbers"):
        Equilibrium(Cell(), stop=hs.Stop(max_steps=torch.tensor([1, 2])))


def test_the_repr_shows_the_options():
    text = repr(Equilibrium(Cell(), method=hs.Picard(damping=0.5)))
    assert "Picard(damping=0.5)" in text
    assert "(cell): Cell" in text
    assert "cell=sin" in repr(Equilibrium(torch.sin))


@pytest.mark.parametrize("normalised", [False, True])
def test_a_deep_copy_is_another_layer(normalised):
    module, x = layer(), inputs()
    if normalised:
        normalise(module, "spectral").eval()
    module(x).sum().backward()
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), module(x))
    twin.zero_grad()
    before = gradients(module)
    twin(x).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(module), strict=True))
    torch.testing.assert_close(gradients(twin), before, rtol=1e-12, atol=0)


def test_pickle_and_state_dict(tmp_path):
    module, x = layer(gradient=hs.Implicit(on_failure="mask")), inputs()
    module.solve(x)
    twin = pickle.loads(pickle.dumps(module))
    assert torch.equal(twin(x), module(x))
    assert (twin.method, twin.stop, twin.gradient) == (module.method, module.stop, module.gradient)

    torch.save(module.state_dict(), tmp_path / "layer.pt")
    torch.manual_seed(1)
    other = Equilibrium(Cell(), stop=TIGHT).double()
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("normalised", [False, True])
def test_twice_before_one_backward(normalised):
    module, x = layer(), inputs()
    if normalised:
        normalise(module, "weight")
    separate = []
    for sign in (1, -1):
        module.zero_grad()
        module(sign * x).square().sum().backward()
        separate.append(gradients(module))
    module.zero_grad()
    (module(x).square().sum() + module(-x).square().sum()).backward()
    for found, a, b in zip(gradients(module), *separate, strict=True):
        torch.testing.assert_close(found, a + b, rtol=1e-10, atol=1e-12)


def test_one_layer_on_top_of_itself():
    module, x = layer(), inputs()
    module(module(x)).sum().backward()
    assert all(torch.isfinite(g).all() for g in gradients(module))


def test_backward_twice_with_the_graph_retained():
    module = layer()
    loss = module(inputs()).sum()
    loss.backward(retain_graph=True)
    once = gradients(module)
    loss.backward()
    for twice, first in zip(gradients(module), once, strict=True):
        assert torch.equal(twice, 2 * first)


def test_eval_changes_nothing_about_gradients():
    module, x = layer(), inputs()
    found = []
    for mode in (True, False):
        module.train(mode).zero_grad()
        module(x).sum().backward()
        found.append(gradients(module))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_frozen_layer_hands_gradients_on():
    module = layer().requires_grad_(False)
    x = inputs().requires_grad_()
    module(x).sum().backward()
    assert (x.grad != 0).any()
    with torch.no_grad():
        assert not module(x).requires_grad


def test_threads_share_a_layer():
    module = normalise(layer(), "weight")
    batches = [inputs(3) for _ in range(8)]
    expected = [module(x).detach() for x in batches]
    together = threading.Barrier(2)

    def run(numbers):
        together.wait()
        return [module(batches[i]).detach() for i in numbers for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(run, [range(0, 8, 2), range(1, 8, 2)]))
    for start, half in enumerate(halves):
        for j, found in enumerate(half):
            assert torch.equal(found, expected[start + 2 * (j // 3)])


def test_nests_marks_and_carried_leaves():
    def cell(state, context):
        (z, count), gain = state, context["gain"]
        return gain * z + context["x"], count + 1

    x = inputs()
    module = Equilibrium(
        cell,
        stop=TIGHT,
        method=hs.Picard(),
        start=lambda c: (torch.zeros_like(c["x"]), torch.zeros(len(c["x"]), dtype=torch.int64)),
    )
    solution = module.solve({"x": x, "gain": hs.Shared(torch.tensor(0.5))})
    torch.testing.assert_close(solution.state[0], 2 * x)
    assert torch.equal(solution.state[1], solution.steps)


def _distributed(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(1)
    x = inputs(6)
    module = nn.parallel.DistributedDataParallel(normalise(layer(), "spectral"))
    for _ in range(2):  # a second round fails where the first one left gradients behind that were never reduced
        module.zero_grad()
        module(x[3 * rank : 3 * rank + 3]).square().mean().backward()
    torch.save([x, module.module.state_dict(), gradients(module)], folder / f"unfinished{rank}")
    (folder / f"unfinished{rank}").rename(folder / f"found{rank}.pt")
    while not (folder / f"found{1 - rank}.pt").exists():
        time.sleep(0.02)
    os._exit(0)  # taking down a process group in an orderly way can hang


def test_wrapped_for_data_parallelism(tmp_path):
    processes = [
        mp.get_context("spawn").Process(target=_distributed, args=(rank, tmp_path), daemon=True) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()])
        if any(process.exitcode for process in processes):  # where one has failed, the other waits for it
            for process in processes:
                process.kill()
                process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    results = [torch.load(tmp_path / f"found{rank}.pt", weights_only=True) for rank in (0, 1)]
    x, state, found = results[0]
    alone = normalise(layer(), "spectral")
    alone.load_state_dict(state)
    alone.eval()(x).square().mean().backward()
    for a, b, truth in zip(found, results[1][2], gradients(alone), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, truth, rtol=1e-6, atol=1e-9)


class _Wide(nn.Module):
    """A state of another width than the context, by a matrix or by a sum that is stretched."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        make = {"linear": lambda a, b: nn.Linear(a, b), "conv": lambda a, b: nn.Conv2d(a, b, 1)}
        make["sum"] = make["linear"]
        self.kind, self.own, self.x = kind, make[kind](8, 8), make[kind](3, 8)

    def forward(self, z, x):
        return torch.tanh((z.mean(1, keepdim=True) if self.kind == "sum" else 0.5 * self.own(z)) + self.x(x))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv", "sum"])
def test_a_state_of_another_width_than_the_context_leads_to_a_start(kind, batched):
    x = torch.zeros(2, 3, 4, 4) if kind == "conv" else torch.zeros(2, 3)
    cell = _Wide(kind)
    with pytest.raises(ContractError, match=r"start=.* \(.*\)"):
        Equilibrium(cell, batched=batched)(x)
    wide = x.new_zeros(2, 8, *x.shape[2:])
    assert Equilibrium(cell, batched=batched, start=lambda c: wide)(x).shape == wide.shape
    with pytest.raises((RuntimeError, ContractError)) as caught:  # a start of one's own is nobody's guess
        Equilibrium(cell, batched=batched)(x, torch.zeros_like(x))
    assert "start=" not in str(caught.value)


def test_other_errors_of_a_cell_are_not_about_its_start():
    def late(z, x):
        return 0.9 * z + x if not z.any() else z @ torch.ones(7, 7)

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Equilibrium(late)(torch.ones(2, 3))
    with pytest.raises(ZeroDivisionError):
        Equilibrium(lambda z, x: z / (1 // 0))(torch.ones(2, 3))


@pytest.mark.parametrize("option", [{"rtol": 1e-6}, {"max_steps": 6}, {"tol": 1e-3}])
def test_what_belongs_into_a_stop_is_sent_there(option):
    with pytest.raises(TypeError, match=r"stop=hs\.Stop\("):
        Equilibrium(Cell(), **option)
