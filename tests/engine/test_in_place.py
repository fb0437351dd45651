"""A step that changes what it was given is refused, also where PyTorch counts no changes."""

import pytest
import torch

import homeostat as hs
from homeostat import Anderson, Broyden, Carry, Implicit, OneStep, Picard, Shared, Status, Stop, Unrolled
from homeostat.engine.iterate import iterate
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError

METHODS = [Picard(), Anderson(), Broyden()]
C = torch.tensor([[1.0], [2.0]])


def by_data(z, c):
    z.data.mul_(0.5).add_(c)
    return z


def by_data_anew(z, c):
    z.data.mul_(0.5)
    return z + c


def by_numpy(z, c):
    z.detach().numpy()[...] *= 0.5
    return z + c


def plain(z, c):
    return z.mul_(0.5).add_(c)


def in_context(z, c):
    c.data.mul_(0.9)
    return 0.5 * z + c


MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("step", [by_data, by_data_anew, by_numpy, plain, in_context])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changes_in_place_are_refused_in_every_mode(step, method, mode, dtype):
    if dtype == torch.bfloat16 and step is by_numpy:
        return  # NumPy has none
    with mode():
        for batched in (True, False):
            start, context = torch.ones(2, 1, dtype=dtype), C.clone().to(dtype)
            with pytest.raises(ContractError, match="in place"):
                hs.solve(step, start, context, method=method, batched=batched, stop=Stop(1e-2))
        with pytest.raises(ContractError, match=r"state\['b'\] in place"):
            hs.solve(
                lambda s, _: {"a": s["a"] / 2, "b": by_data(s["b"], 1.0)},
                {"a": torch.ones(2, 3), "b": torch.ones(2)},
                method=method,
            )


@pytest.mark.parametrize("gradient", [Implicit(), OneStep(), Unrolled(), Unrolled(checkpoint=True)], ids=str)
def test_changes_in_place_are_refused_with_every_gradient(gradient):
    weight = torch.tensor(0.5, requires_grad=True)

    def step(z, c):
        new = weight * z + c
        z.data.add_(1)
        return new

    with pytest.raises(ContractError, match="in place"):
        hs.solve(step, torch.ones(2, 1), C, gradient=gradient)


@pytest.mark.parametrize("rows", [3, 300_000])
def test_what_is_shared_is_not_changed_either(rows):
    table = torch.ones(rows, 3)

    def step(z, c):
        c["table"].data.mul_(0.9)
        return 0.5 * z + c["table"][0]

    with pytest.raises(ContractError, match=r"context\['table'\] in place"):
        hs.solve(step, torch.zeros(2, 3), {"table": Shared(table)})
    with pytest.raises(ContractError, match=r"context in place"):
        hs.solve(lambda z, c: (c[0]["t"].data.mul_(0.9), 0.5 * z)[1], torch.zeros(2, 3), Shared([{"t": table.T}]))


def test_carried_and_integer_leaves_are_not_changed():
    start = {"z": torch.zeros(2, 3), "n": torch.zeros(2, dtype=torch.int64), "c": Carry(torch.zeros(2))}
    for name in ("n", "c"):

        def step(s, _, name=name):
            s[name].data.add_(1)
            return {**s, "z": 0.5 * s["z"] + 1}

        with torch.inference_mode(), pytest.raises(ContractError, match=rf"state\['{name}'\] in place"):
            hs.solve(step, start)


class Later:
    """Well-behaved for some calls; then it writes into its state."""

    def __init__(self, calls, bad) -> None:
        self.left, self.bad = calls, bad

    def __call__(self, z, c):
        self.left -= 1
        return self.bad(z, c) if self.left < 0 else 0.9 * z + c


@pytest.mark.parametrize("method", [Picard(), Picard(0.5)], ids=str)
@pytest.mark.parametrize("shape", [(2, 1), (2, 1, 4)])
@pytest.mark.parametrize("batched", [True, False])
def test_a_step_that_stops_being_pure_half_way_and_returns_what_it_was_given(batched, shape, method):
    start = torch.zeros(shape)
    with torch.inference_mode(), pytest.raises(ContractError, match="in place"):
        hs.solve(Later(5, plain), start, C.view(2, *[1] * (len(shape) - 1)), method=method, batched=batched)
    later = Later(5, plain)
    with torch.inference_mode(), pytest.raises(ContractError, match=r"state\[0\] in place"):
        hs.solve(
            lambda s, c: (later(s[0], c), 0.5 * s[1]),
            (torch.zeros(2, 1), torch.ones(2)),
            C,
            method=method,
            batched=batched,
        )


@pytest.mark.parametrize("stop", [Stop(1e-6), Stop(0, 0, torch.tensor([2, 9]))], ids=["tolerance", "limits"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_step_that_stops_being_pure_is_found_when_rows_leave(method, stop):
    # Two calls in which nothing happens; the first row is done then.
    gain = torch.tensor([[0.0], [0.9]])

    class Two:
        calls = 0

        def __call__(self, z, c):
            self.calls += 1
            if self.calls > 2:
                z.data.add_(0.125)
            return c * z + 1

    with torch.no_grad(), pytest.raises(ContractError, match="in place"):
        hs.solve(Two(), torch.zeros(2, 1), gain, method=method, sync_every=1, stop=stop)


def test_a_step_that_stops_being_pure_is_found_where_the_gradient_is_recorded():
    weight = torch.tensor(0.5, requires_grad=True)

    def step(z, c):
        if z.requires_grad:
            z.data.add_(1)
        return weight * z + c

    with pytest.raises(ContractError, match="in place"):
        hs.solve(step, torch.zeros(2, 1), torch.ones(2, 1), method=Picard())


# What is fine


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_handing_back_the_state_is_no_change(method, mode):
    calls = []

    def counted(z):
        calls.append(len(z))
        return z

    with mode():
        for step in (counted, lambda z: z.view_as(z), lambda z: z[:]):
            found = hs.solve(step, torch.ones(2, 3), method=method, gradient=OneStep())
            assert found.status.tolist() == [Status.CONVERGED] * 2
            assert found.steps.tolist() == [1, 1]
            # Beside the steps: rows that are looked at alone, and a second look at a step that hands back what it got.
            assert step is not counted or 0 <= sum(calls) - found.row_evaluations <= 6
        calls.clear()
        with torch.no_grad():
            assert hs.solve(counted, torch.ones(2, 3), method=method, stop=Stop(0, 0, 5)).steps.tolist() == [5, 5]
        assert 5 <= len(calls) <= 7
        table = {"z": torch.zeros(2, 3), "table": Carry(torch.arange(6.0).view(2, 3))}
        kept = hs.solve(lambda s: {**s, "z": 0.5 * s["z"] + s["table"]}, table, method=method, gradient=OneStep())
    assert kept.converged.all()


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_nan_that_stays_is_no_change(mode):
    x, mask = torch.tensor([[1.0, torch.nan], [1.0, 2.0]]), torch.tensor([torch.nan, -torch.inf])
    for dtype in (torch.float32, torch.bfloat16):
        context = {"x": x.to(dtype), "mask": Shared(mask.to(dtype))}
        with mode():
            found = hs.solve(
                lambda z, c: torch.where(c["x"].isnan(), 0, 0.5 * z + c["x"]).to(z.dtype),
                torch.zeros(2, 2, dtype=dtype), context, stop=Stop(1e-1), gradient=OneStep(),
            )  # fmt: skip
        assert found.converged.all()


def test_changing_ones_own_new_tensor_in_place_is_fine():
    found = hs.solve(lambda z, c: (0.5 * z).add_(c), torch.zeros(2, 1), C)
    torch.testing.assert_close(found.state, 2 * C, rtol=1e-3, atol=0)


def test_the_observed_loop_refuses_it_too():
    class Nobody:
        def observe(self, step, rows, before, after, context):
            return None

        def keep(self, index):
            raise AssertionError

    problem = Problem.of(by_data, torch.ones(2, 1), C)
    with torch.no_grad(), pytest.raises(ContractError, match="in place"):
        iterate(problem, max_steps=3, monitor=Nobody())
    with torch.inference_mode(), pytest.raises(ContractError, match="in place"):
        list(hs.solve_stream(plain, torch.zeros_like, [torch.ones(1, 2)] * 3, batch_size=2))
