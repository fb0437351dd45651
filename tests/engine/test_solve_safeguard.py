"""The safeguard takes nothing away where nothing has to be guarded, and steps are plain where nothing is left to do."""

import math
from itertools import pairwise

import pytest
import torch
from draws import random
from torch import Tensor

import homeostat as hs
from homeostat import Anderson, Broyden, Picard, Status, Stop
from homeostat.engine.forward.anderson import TruncatedGramSchmidt
from homeostat.engine.forward.broyden import BroydenUpdates

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("no_gradients")


def anderson_alone(step, state: Tensor, context: Tensor, steps: int) -> list[float]:
    """Relative residuals of Anderson acceleration as in the textbook: least squares over all differences."""
    states, values, course = [], [], []
    for _ in range(steps):
        value = step(state, context)
        states.append(state[0])
        values.append(value[0])
        course.append(float((value - state).norm() / value.norm()))
        residuals = [g - z for z, g in zip(states, values, strict=True)]
        state = value
        if len(residuals) > 1:
            changes = torch.stack([b - a for a, b in pairwise(residuals)], 1)
            moves = torch.stack([b - a for a, b in pairwise(values)], 1)
            weights = torch.linalg.lstsq(changes, residuals[-1][:, None], driver="gelsd").solution
            state = value - (moves @ weights).T
    return course


def first_below(course: list[float], tolerance: float) -> int:
    return next(i + 1 for i, residual in enumerate(course) if residual <= tolerance)


def slow(rate: float, seed: int, small: float):
    """`tanh` of a symmetric map with eigenvalues from 0 to a rate close to 1."""
    basis = torch.linalg.qr(random(seed, 128, 128))[0]
    weight = basis @ torch.diag(torch.linspace(0, rate, 128, dtype=F64)) @ basis.T
    return lambda z, c: torch.tanh(z @ weight + c), torch.zeros(1, 128, dtype=F64), small * random(seed + 1, 1, 128)


@pytest.mark.parametrize("memory", [6, 10])
@pytest.mark.parametrize("rate", [0.99, 0.999, 0.9999])
@pytest.mark.parametrize("seed", [40, 50])
def test_a_slow_map_takes_hardly_more_evaluations_than_the_extrapolation_alone(seed, rate, memory):
    case = slow(rate, seed, 1e-5)
    alone = anderson_alone(*case, 70)
    ours = hs.solve(*case, method=Anderson(memory=memory), stop=Stop(0.0, 0.0, 100), trace=True).trace[0].tolist()
    for tolerance in (1e-3, 1e-5):
        count = first_below(alone, tolerance)
        assert first_below(ours, tolerance) <= 1.2 * count


@pytest.mark.parametrize("shape", ["level", "ramp", "random"])
def test_a_map_that_ends_of_itself_is_left_alone(shape):
    # z <- (0, z_1, ..., z_{n-1}) + b is at its fixed point after n steps, and leaving the sequence begins it anew; a
    # smooth b has residuals that point along one another.
    length = 48
    entry = {"level": torch.ones(1, length), "ramp": torch.arange(length, 0, -1)[None], "random": random(3, 1, length)}
    case = lambda z, b: torch.cat([z[:, :1] * 0, z[:, :-1]], 1) + b, torch.zeros(1, length, dtype=F64)
    context = entry[shape].to(F64)
    plain = hs.solve(*case, context, method=Picard(), stop=Stop(1e-8, 0.0, 500))
    solution = hs.solve(*case, context, method=Anderson(), stop=Stop(1e-8, 0.0, 500))
    assert solution.status.item() == Status.CONVERGED
    assert solution.steps.item() <= plain.steps.item() + 5


@pytest.mark.parametrize("method", [Anderson(), Anderson(memory=3, damping=0.8), Broyden()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_where_nothing_is_left_but_rounding_steps_are_plain(method, dtype, monkeypatch):
    # Half of the rows converge early, one is slow: the early ones wait at the rounding floor, each evaluated as often
    # as it was asked for, and where all are there every state is the value before.
    rate = torch.tensor([0.2, 0.3, 0.5, 0.9], dtype=dtype)[:, None]
    weight = (random(7, 24, 24) / math.sqrt(24)).to(dtype)
    seen: list[tuple[Tensor, Tensor]] = []
    extrapolated: list[int] = []
    for history in (TruncatedGramSchmidt, BroydenUpdates):
        propose = history.propose
        monkeypatch.setattr(history, "propose", lambda *args, f=propose: extrapolated.append(args[1]) or f(*args))

    def step(z, c):
        after = torch.tanh(c["rate"] * 0.5 * (z @ weight) + c["x"])
        if len(z) == 4:  # and not when a half of them is looked at alone
            seen.append((z, after))
        return after

    context = {"x": random(8, 4, 24).to(dtype), "rate": rate}
    damping = getattr(method, "damping", 1.0)
    solution = hs.solve(step, torch.zeros(4, 24, dtype=dtype), context, method=method, stop=Stop(0.0, 0.0, 120))
    assert len(seen) == 120
    assert solution.steps.tolist() == [120] * 4
    assert extrapolated
    assert max(extrapolated) < 90
    for (before, value), (state, _) in pairwise(seen[90:]):
        assert torch.equal(state, value if damping == 1 else torch.lerp(before, value, damping))
    eps = torch.finfo(dtype).eps
    assert (solution.residual < 8 * eps).all()


@pytest.mark.parametrize("method", [Anderson(), Broyden()], ids=str)
def test_a_row_decides_for_itself_when_to_extrapolate(method):
    # Rows of all kinds, in one batch and alone: slow, quick, a shift, one that is at its fixed point at once.
    size = 32
    shift = torch.diag(torch.ones(size - 1, dtype=F64), -1)
    basis = torch.linalg.qr(random(9, size, size))[0]
    symmetric = [basis @ torch.diag(torch.linspace(0, r, size, dtype=F64)) @ basis.T for r in (0.999, 0.4)]
    matrices = torch.stack([symmetric[0], symmetric[1], shift, 0 * shift])
    context = {"matrix": matrices, "shift": random(10, 4, size)}

    def step(z, c):
        return (c["matrix"] * z[:, None]).sum(2) + c["shift"]

    stop = Stop(1e-9, 0.0, 400)
    start = torch.zeros(4, size, dtype=F64)
    together = hs.solve(step, start, context, method=method, stop=stop)
    for row in range(4):
        one = {name: value[row : row + 1] for name, value in context.items()}
        alone = hs.solve(step, start[:1], one, method=method, stop=stop)
        assert together.steps[row] == alone.steps[0]
        torch.testing.assert_close(together.state[row], alone.state[0], rtol=1e-9, atol=1e-9)
