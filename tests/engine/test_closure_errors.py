"""A batch in a closure, wherever rows leave: the error says what the step closes over and what would be right."""

import functools
import math

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat import Anderson, Broyden, Implicit, OneStep, Phantom, Picard, Stop, Unrolled
from homeostat.engine import Neumann
from homeostat.errors import ContractError

METHODS = [Picard(), Anderson(), Broyden()]
GRADIENTS = [Implicit(), Phantom(), OneStep(), Neumann(), Unrolled(), Unrolled(last=2), Unrolled(checkpoint=True)]
ROWS = 5
GLOBAL = torch.ones(ROWS, 3)


def said(caught) -> str:
    """All that a user reads."""
    return " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def in_lambda(inputs):
    return lambda z: 0.5 * z + inputs


def in_function(inputs):
    inner = in_lambda(inputs)

    def step(z):
        return inner(z)

    return step


def in_partial(inputs):
    return functools.partial(lambda z, inputs: 0.5 * z + inputs, inputs=inputs)


class InObject:
    def __init__(self, inputs) -> None:
        self.inputs = inputs

    def __call__(self, z):
        return 0.5 * z + self.inputs

    def step(self, z):
        return 0.5 * z + self.inputs


class InModule(nn.Module):
    def __init__(self, inputs) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, z):
        return 0.5 * z + self.inputs


PLACES = {
    "lambda": in_lambda, "function": in_function, "partial": in_partial, "object": InObject,
    "method": lambda x: InObject(x).step, "module": InModule,
}  # fmt: skip


def start_with_a_nan():
    start = torch.zeros(ROWS, 3)
    start[1, 1] = math.nan
    return start


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_start_that_is_not_finite(place, method):
    with pytest.raises(ContractError) as caught:
        hs.solve(place(torch.ones(ROWS, 3)), start_with_a_nan(), method=method)
    assert "inputs (5, 3)" in said(caught)
    for word in ("context", "Shared", "batched=False", "4 rows of 5"):
        assert word in said(caught)
    assert isinstance(caught.value.__cause__, RuntimeError)  # what PyTorch said


def test_a_batch_among_the_globals():
    with pytest.raises(ContractError, match=r"closes over GLOBAL \(5, 3\)"):
        hs.solve(lambda z: 0.5 * z + GLOBAL, start_with_a_nan())


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_limits_that_differ_by_row(method):
    inputs = torch.ones(ROWS, 3)
    with pytest.raises(ContractError) as caught:
        hs.solve(in_lambda(inputs), torch.zeros(ROWS, 3), method=method, stop=Stop(0, 0, torch.tensor([9, 3, 9, 9, 9])))
    assert "inputs (5, 3)" in said(caught)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_a_row_that_diverges(gradient, method):
    inputs = torch.ones(ROWS, 3)
    gain = torch.tensor([0.5, 0.5, 1e30, 0.5, 0.5])[:, None].requires_grad_()
    with pytest.raises(ContractError) as caught:
        hs.solve(lambda z, c: c * (z + inputs), torch.zeros(ROWS, 3), gain, method=method, gradient=gradient)
    assert "inputs (5, 3)" in said(caught)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_a_row_that_diverged_without_a_tolerance(gradient, method):
    # All rows stay to the end: where the gradient is recorded is the first place at which there are fewer.
    inputs = torch.ones(ROWS, 3)
    gain = torch.tensor([0.5, 0.5, 1e30, 0.5, 0.5])[:, None].requires_grad_()
    with pytest.raises(ContractError) as caught:
        hs.solve(
            lambda z, c: c * (z + inputs), torch.zeros(ROWS, 3), gain, method=method, gradient=gradient,
            stop=Stop(0, 0, 4),
        )  # fmt: skip
    assert "inputs (5, 3)" in said(caught)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_stream(method):
    inputs = torch.ones(ROWS, 3)
    contexts = [torch.full((1, 3), 0.1 * i) for i in range(8)]
    for batch_size in (3, 8):
        with pytest.raises(ContractError) as caught:
            list(
                hs.solve_stream(
                    lambda z, c: c * z + inputs, torch.zeros_like, contexts, batch_size=batch_size, method=method
                )
            )
        assert "inputs (5, 3)" in said(caught)
        assert "examples of its input" in said(caught)


def test_indices_into_a_batch():
    inputs, at = torch.ones(ROWS, 3), torch.arange(ROWS)
    with pytest.raises(IndexError) as caught:
        hs.solve(lambda z: 0.5 * z[at] + inputs, start_with_a_nan())
    assert "context" in said(caught)
    assert "inputs (5, 3)" in said(caught)


def test_errors_of_the_step_itself_are_left_alone():
    class Broken(Exception):
        pass

    def step(z):
        if len(z) < ROWS:
            raise Broken("mine")
        return 0.5 * z + inputs

    inputs = torch.ones(ROWS, 3)
    with pytest.raises(Broken, match="mine") as caught:
        hs.solve(step, start_with_a_nan())
    assert not hasattr(caught.value, "__notes__")
    assert caught.value.__cause__ is None
    with pytest.raises(RuntimeError, match="must match") as raw:  # at first, with all rows: nothing to explain
        hs.solve(lambda z: 0.5 * z + torch.ones(4, 3), torch.zeros(ROWS, 3))
    assert not hasattr(raw.value, "__notes__")
