"""Rows that hear of one another: how often that is found, against what is promised, and the gradient as one problem.

Systems are drawn from their seed alone: graphs (a random tree and some edges more, mean aggregation, 4 to 40 nodes as
rows) and mean fields (every row hears of the mean), with couplings from weak to strong; and single dependences of one
row on one other. They are solved with every method and gradient in turn, with a tolerance and with a fixed number of
steps. Steps find the rows by numbers in their context, so that a shape alone gives nobody away.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import homeostat as hs
from benchmarks.results import Figure, Target
from homeostat.engine import Neumann, OneStep, Phantom, Shine
from homeostat.errors import ContractError

_METHODS = (hs.Picard(), hs.Anderson(), hs.Broyden())
_GRADIENTS = (None, hs.Implicit(), OneStep(), Phantom(), Neumann(), Shine(), hs.Unrolled())
_STOPS = (hs.Stop(1e-5), hs.Stop(0, max_steps=8))
_UNKNOWNS = 4

Step = Callable[[Tensor, Tensor], Tensor]


def graph(draw: torch.Generator, rows: int) -> Step:
    """A layer of a graph network; row `i` of the batch is the node whose number stands in its context."""
    adjacency = torch.zeros(rows, rows, dtype=torch.float64)
    for node in range(1, rows):
        parent = int(torch.randint(node, (1,), generator=draw))
        adjacency[node, parent] = adjacency[parent, node] = 1
    extra = torch.rand(rows, rows, generator=draw, dtype=torch.float64) < 1 / rows
    adjacency = ((adjacency + extra + extra.T) > 0).double().fill_diagonal_(0)
    mean = adjacency / adjacency.sum(1, keepdim=True)
    weight, strength = _weight(draw), float(0.05 + 0.55 * torch.rand((), generator=draw))

    def step(z: Tensor, c: Tensor) -> Tensor:
        numbers = c[:, 0].long()
        among = mean[numbers][:, numbers]
        return torch.tanh(strength * among @ z @ weight + 0.3 * z + c[:, 1:])

    return step


def mean_field(draw: torch.Generator, rows: int) -> Step:
    """Every row hears of the mean of all."""
    del rows
    weight, strength = _weight(draw), float(0.05 + 0.55 * torch.rand((), generator=draw))
    return lambda z, c: torch.tanh(strength * z.mean(0, keepdim=True) @ weight + 0.3 * z + c[:, 1:])


def pair(hears: int, of: int) -> Step:
    """One row hears of one other."""

    def step(z: Tensor, c: Tensor) -> Tensor:
        number = c[:, :1]
        heard = ((number == of) * z).sum(0, keepdim=True)
        return 0.5 * torch.tanh(z) + c[:, 1:] + 0.05 * (number == hears) * heard

    return step


def _weight(draw: torch.Generator) -> Tensor:
    weight = torch.randn(_UNKNOWNS, _UNKNOWNS, generator=draw, dtype=torch.float64)
    return weight / torch.linalg.matrix_norm(weight, 2)


def _context(draw: torch.Generator, rows: int) -> Tensor:
    values = torch.randn(rows, _UNKNOWNS, generator=draw, dtype=torch.float64)
    return torch.cat([torch.arange(rows, dtype=torch.float64)[:, None], values], 1)


def _is_found(step: Step, context: Tensor, method: Any, gradient: Any, stop: hs.Stop) -> bool:
    if isinstance(gradient, Shine):
        method = hs.Broyden()
    options: dict[str, Any] = {} if gradient is None else {"gradient": gradient}
    start = torch.zeros(len(context), _UNKNOWNS, dtype=torch.float64)
    with torch.set_grad_enabled(gradient is not None):
        try:
            context = context.requires_grad_(gradient is not None)
            solution = hs.solve(step, start, context, method=method, stop=stop, **options)
            if gradient is not None:
                solution.state.sum().backward()
        except ContractError:
            return True
    return False


def measure(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """Missed systems of 1,000, missed pairs, and gradients of coupled systems as one problem."""
    if device != "cpu":
        return
    count = max(42, round(1000 * share))
    cases = itertools.cycle(itertools.product(_METHODS, _GRADIENTS, _STOPS))
    missed = []
    for seed, (method, gradient, stop) in zip(range(count), cases, strict=False):
        draw = torch.Generator().manual_seed(seed)
        rows = int(torch.randint(4, 41, (1,), generator=draw))
        kind = (graph, mean_field)[seed // 42 % 2]
        if not _is_found(kind(draw, rows), _context(draw, rows), method, gradient, stop):
            missed.append(f"{kind.__name__} {seed}, {rows} rows, {method}, {gradient}, {stop}")
    name = f"coupled rows that are not found: {count} random graphs and mean fields, methods x gradients x stops"
    yield Figure("coupled", name, float(len(missed)), "systems", target=Target(0), details={"missed": missed})
    yield _pairs(count)
    yield _one_problem(max(10, count // 10))


def _pairs(count: int) -> Figure:
    """Single dependences that were not there at first, so that a random half is looked at: at least 1/4 are found."""
    found, long = 0, hs.Stop(0, max_steps=400)
    for seed in range(count):
        draw = torch.Generator().manual_seed(seed)
        rows = int(torch.randint(4, 41, (1,), generator=draw))
        hears, of = torch.randperm(rows, generator=draw)[:2].tolist()
        context = _context(draw, rows)
        assert not _is_found(pair(-1, -1), context, hs.Picard(), None, long), "no row hears of another one"
        found += _is_found(pair(hears, of), context, hs.Picard(), None, _STOPS[1])
    name = f"one row that hears of one other from some solve on: missed of {count} looks (promised: at most 75 %)"
    return Figure("coupled", name, 100 * (1 - found / count), "%", target=Target(75 + 2.8))


def _one_problem(count: int) -> Figure:
    """The implicit gradient of coupled systems with `batched=False` against a plain loop of many steps."""
    worst = 0.0
    for seed in range(count):
        draw = torch.Generator().manual_seed(10_000 + seed)
        rows = int(torch.randint(4, 41, (1,), generator=draw))
        step = (graph, mean_field)[seed % 2](draw, rows)
        context = _context(draw, rows).requires_grad_()
        start = torch.zeros(rows, _UNKNOWNS, dtype=torch.float64)
        gradient, stop = hs.Implicit(stop=hs.Stop(1e-12, max_steps=2000)), hs.Stop(1e-12, max_steps=2000)
        solution = hs.solve(step, start, context, batched=False, stop=stop, gradient=gradient)
        (found,) = torch.autograd.grad(solution.state.cos().sum(), context)
        z = start
        for _ in range(400):
            z = step(z, context)
        (wanted,) = torch.autograd.grad(z.cos().sum(), context)
        worst = max(worst, float((found - wanted).norm() / wanted.norm()))
    name = f"coupled rows as one problem (batched=False), {count} systems: gradient against a plain loop"
    return Figure("coupled", name, worst, "relative", target=Target(1e-9))
