"""The plain loop against a slow one that is written from the docstrings alone: one row at a time, in plain Python."""

import math

import pytest
import torch
from draws import random
from torch import Tensor

import homeostat as hs
from homeostat import Picard, Status, Stop

F64 = torch.float64
LOOKS = (1, 2, 3, 7, 16, 100)


pytestmark = pytest.mark.usefixtures("no_gradients")


def rms(x: Tensor) -> float:
    return math.hypot(*x.flatten().tolist()) / math.sqrt(x.numel())  # hypot neither overflows nor vanishes


def one_row(step, state: list[Tensor], context, *, rtol: float, atol: float, limit: int, damping: float):
    """Leaves, steps, residual, status and course of one example."""

    def finite(leaves: list[Tensor]) -> bool:
        return all(bool(torch.isfinite(x).all()) and rms(x) <= 1e100 for x in leaves)

    if not finite(state):
        return state, 0, math.nan, Status.DIVERGED, []
    z, last = state, state
    course: list[float] = []
    tested = rtol > 0 or atol > 0
    for count in range(1, limit + 1):
        after = step([x[None] for x in z], context)
        after = [x[0] for x in after]
        changes = [rms(new - old) for new, old in zip(after, z, strict=True)]
        sizes = [rms(new) for new in after]
        course.append(max(0.0 if c == 0 else (c / s if s else math.inf) for c, s in zip(changes, sizes, strict=True)))
        if tested and not finite(after):
            return last, count, course[-1], Status.DIVERGED, course
        if tested and all(c <= atol + rtol * s for c, s in zip(changes, sizes, strict=True)):
            return after, count, course[-1], Status.CONVERGED, course
        z = after if damping == 1 else [old + damping * (new - old) for new, old in zip(after, z, strict=True)]
        last = after
    if not limit:
        return state, 0, math.nan, Status.MAX_STEPS, course
    return last, limit, course[-1], Status.MAX_STEPS if finite(last) else Status.DIVERGED, course


ROWS = 9


def linear(seed: int):
    matrix = random(seed, ROWS, 4, 4)
    rate = torch.linspace(0.0, 0.995, ROWS, dtype=F64)[:, None, None]
    context = (matrix * rate / torch.linalg.matrix_norm(matrix, 2)[:, None, None], random(seed + 1, ROWS, 4))
    return lambda s, c: [(c[0] * s[0][:, None]).sum(-1) + c[1]], [random(seed + 2, ROWS, 4)], context


def two_leaves(seed: int):
    context = (torch.linspace(0.1, 1.3, ROWS, dtype=F64)[:, None], random(seed, ROWS, 1))

    def step(s, c):
        return [torch.tanh(c[0] * s[0] + s[1][:, 0, :1]) + c[1], 0.9 * s[1] + 1e-3 * s[0][:, None, :2]]

    return step, [random(seed + 1, ROWS, 3), random(seed + 2, ROWS, 2, 2)], context


def growing(seed: int):
    # Some rows grow beyond every bound, some become infinite in the end, some shrink.
    context = (torch.linspace(0.5, 40.0, ROWS, dtype=F64)[:, None],)
    return lambda s, c: [c[0] * s[0] + 0.01 * c[0] * s[0] * s[0]], [random(seed, ROWS, 3).abs()], context


def slow(seed: int):
    rate = 1 - 10 ** -torch.linspace(1, 3, ROWS, dtype=F64)[:, None]
    return lambda s, c: [c[0] * s[0] + c[1]], [torch.zeros(ROWS, 2, dtype=F64)], (rate, random(seed, ROWS, 2))


def stop_of(name: str) -> Stop:
    limits = torch.tensor([0, 1, 2, 5, 17, 33, 100, 150, 250])
    tolerances = torch.tensor([1e-2, 1e-3, 0.0, 1e-4, 1e-6, 1e-8, 1e-3, 0.0, 1e-5], dtype=F64)
    return {
        "default": Stop(),
        "tight": Stop(1e-9, 0.0, 350),
        "few steps": Stop(1e-9, 0.0, 23),
        "absolute": Stop(0, 1e-5, 200),
        "both": Stop(1e-6, 1e-4, 200),
        "none": Stop(0, 0, 45),
        "by row": Stop(tolerances, 0.0, limits),
        "limits by row": Stop(0, 0, limits),
        "tolerances by row and absolute": Stop(tolerances, 1e-7, 180),
    }[name]


STOPS = (
    "default", "tight", "few steps", "absolute", "both", "none", "by row", "limits by row",
    "tolerances by row and absolute",
)  # fmt: skip


@pytest.mark.parametrize(("stop", "damping"), [*((stop, 1.0) for stop in STOPS), ("default", 0.6), ("by row", 0.6)])
@pytest.mark.parametrize("make", [linear, two_leaves, growing, slow])
def test_the_engine_does_what_the_docstrings_say(make, stop, damping):
    step, start, context = make(len(stop))
    same_steps = stop in ("few steps", "none")
    stop = stop_of(stop)
    rtol = stop.rtol.tolist() if isinstance(stop.rtol, Tensor) else [stop.rtol] * ROWS
    limit = stop.max_steps.tolist() if isinstance(stop.max_steps, Tensor) else [stop.max_steps] * ROWS
    wanted = [
        one_row(
            step, [x[i] for x in start], tuple(x[i : i + 1] for x in context), rtol=rtol[i], atol=stop.atol,
            limit=limit[i], damping=damping,
        )
        for i in range(ROWS)
    ]  # fmt: skip
    assert same_steps or len({row[1] for row in wanted}) > 1
    found = hs.solve(
        lambda s, c: tuple(step(list(s), c)),
        tuple(start),
        context,
        method=Picard(damping=damping),
        stop=stop,
        trace=True,
    )
    assert found.steps.tolist() == [row[1] for row in wanted]
    assert found.status.tolist() == [row[3] for row in wanted]
    close = {"rtol": 1e-7, "atol": 1e-13, "equal_nan": True}
    for i, (leaves, count, residual, _, course) in enumerate(wanted):
        for got, leaf in zip(found.state, leaves, strict=True):
            torch.testing.assert_close(got[i], leaf, **close)
        torch.testing.assert_close(found.residual[i], torch.tensor(residual, dtype=F64), **close)
        assert found.trace is not None
        torch.testing.assert_close(found.trace[i, :count], torch.tensor(course, dtype=F64), **close)
        assert found.trace[i, count:].isnan().all()

    for every in LOOKS if damping == 1 else (3,):
        other = hs.solve(
            lambda s, c: tuple(step(list(s), c)), tuple(start), context, method=Picard(damping=damping), stop=stop,
            sync_every=every,
        )  # fmt: skip
        assert torch.equal(other.steps, found.steps), every
        assert torch.equal(other.status, found.status), every
        torch.testing.assert_close(other.residual, found.residual, rtol=1e-9, atol=0, equal_nan=True)
        for a, b in zip(other.state, found.state, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", [Picard(), hs.Anderson(), hs.Broyden()], ids=str)
def test_every_status_is_the_same_however_often_the_test_looks(method):
    # The first rows converge, one cycles, one stalls at its rounding floor, one diverges, one uses up its steps.
    kind = torch.arange(6)[:, None]

    def step(z, kind):
        turned = torch.stack([-z[:, 1], z[:, 0]], 1)
        flipped = torch.where(z > 0, -1.0, 1.0)
        rough = torch.where(z > 2 + 3e-7, 2.0, 2 + 6e-7)  # float32 has two neighbours there and swings between them
        values = (
            0.5 * z + 1,
            torch.tanh(0.97 * z) + 0.01,
            flipped,
            rough,
            3 * z + 1,
            z + turned / turned.norm(dim=1, keepdim=True),
        )
        result = values[0]
        for number, value in enumerate(values[1:], 1):
            result = torch.where(kind == number, value, result)
        return result

    start, stop = torch.full((6, 2), 0.25), Stop(1e-7, 0.0, 200)
    reference = hs.solve(step, start, kind, method=method, stop=stop)
    assert reference.status.tolist()[0] == Status.CONVERGED
    assert reference.status.tolist()[2:] == [Status.CYCLING, Status.STALLED, Status.DIVERGED, Status.MAX_STEPS]
    for every in LOOKS:
        other = hs.solve(step, start, kind, method=method, stop=stop, sync_every=every)
        for name in ("state", "steps", "status", "residual"):
            assert torch.equal(getattr(other, name), getattr(reference, name)), (name, every)
