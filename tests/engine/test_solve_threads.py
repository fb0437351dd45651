"""What a solve refuses is its own: modules that other threads call at the same time are none of its business."""

import threading
import warnings

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat import Implicit, OneStep, Stop
from homeostat.errors import ContractError

_LONG = 60  # seconds after which a test gives up; nothing waits for so long


class Paused:
    """A step that stops in its first evaluation (or in its first recorded one) until it is let go."""

    def __init__(self, cell, recorded=False) -> None:
        self.cell, self.recorded = cell, recorded
        self.inside, self.go = threading.Event(), threading.Event()

    def __call__(self, z, x):
        if z.requires_grad or not self.recorded:
            self.inside.set()
            assert self.go.wait(_LONG)
        return self.cell(z, x)


def in_thread(function):
    """Run it beside this thread; the list gets what it returns or raises."""
    found = []

    def work():
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, found


@pytest.mark.parametrize("recorded", [False, True])
def test_training_in_another_thread_is_left_alone(recorded):
    step = Paused(lambda z, x: 0.5 * z + x, recorded)
    x = torch.ones(2, 3, requires_grad=True)
    thread, found = in_thread(lambda: hs.solve(step, torch.zeros(2, 3), x, gradient=Implicit()))
    assert step.inside.wait(_LONG)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(torch.randn(4, 3)).sum().backward()
    assert net[1].num_batches_tracked == 1
    step.go.set()
    thread.join(_LONG)
    assert found[0].converged.all()


def test_two_solves_at_once_refuse_what_is_theirs():
    norm = nn.BatchNorm1d(3).train()
    good, bad = Paused(lambda z, x: 0.5 * z + x), Paused(lambda z, x: 0.5 * norm(z) + x)
    x = torch.ones(2, 3)
    first, of_good = in_thread(lambda: hs.solve(good, torch.zeros(2, 3), x, gradient=OneStep()))
    second, of_bad = in_thread(lambda: hs.solve(bad, torch.zeros(2, 3), x, gradient=OneStep()))
    assert good.inside.wait(_LONG)
    assert bad.inside.wait(_LONG)
    good.go.set()  # the one that is done must not take the other's guard away
    first.join(_LONG)
    bad.go.set()
    second.join(_LONG)
    assert of_good[0].converged.all()
    assert isinstance(of_bad[0], ContractError)
    assert "BatchNorm1d in training mode" in str(of_bad[0])
    norm(torch.randn(4, 3))  # outside of a step


def test_a_solve_within_a_step_ends_its_own_refusal_only():
    norm = nn.BatchNorm1d(3).train()

    def step(z, x):
        inner = hs.solve(lambda y, c: 0.5 * y + c, torch.zeros_like(z), x, stop=Stop(1e-3), gradient=OneStep())
        return 0.1 * norm(z) + inner.state

    with pytest.raises(ContractError, match="BatchNorm1d in training mode"):
        hs.solve(step, torch.zeros(2, 3), torch.ones(2, 3))


def test_a_compiled_module_is_refused_in_a_step_and_only_there():
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    norm.compile(backend="eager")
    paused = Paused(lambda z, x: 0.5 * z + x)
    thread, found = in_thread(lambda: hs.solve(paused, torch.zeros(2, 3), torch.ones(2, 3), gradient=OneStep()))
    assert paused.inside.wait(_LONG)
    norm(torch.randn(4, 3))  # compiled here while the other thread looks at its own modules
    with pytest.raises(ContractError, match="BatchNorm1d in training mode"):
        hs.solve(lambda z, x: 0.5 * norm(z) + x, torch.zeros(4, 3), torch.ones(4, 3))
    norm(torch.randn(4, 3))
    paused.go.set()
    thread.join(_LONG)
    assert found[0].converged.all()
