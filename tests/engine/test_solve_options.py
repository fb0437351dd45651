"""Options refuse nonsense when they are made, and every one can be made bare."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import homeostat as hs
from homeostat import Implicit, Picard, Stop, Unrolled


@pytest.mark.parametrize("option", [Stop, Picard, Implicit, Unrolled])
def test_every_option_can_be_made_bare_and_is_frozen(option):
    made = option()
    assert made == option()
    for field in dataclasses.fields(made):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, field.name, 1)
    with pytest.raises(TypeError):
        option(no_such_option=1)


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, True, "1e-3", None, 1j])
def test_impossible_tolerances(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        Stop(**{name: value})


@pytest.mark.parametrize("value", [-1, 1.0, True, None, math.nan, "5"])
def test_impossible_step_limits(value):
    with pytest.raises(ValueError, match="max_steps must be"):
        Stop(max_steps=value)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(1e-3),
        torch.zeros(2, 2),
        torch.tensor([1e-3, -1e-3]),
        torch.tensor([1e-3, math.nan]),
        torch.tensor([1e-3, math.inf]),
        torch.tensor([True, False]),
        torch.tensor([1j]),
    ],
)
def test_impossible_tolerance_tensors(value):
    with pytest.raises(ValueError, match="rtol must"):
        Stop(rtol=value)


@pytest.mark.parametrize(
    "value", [torch.tensor(3), torch.zeros(1, 1).long(), torch.tensor([3.0]), torch.tensor([True]), torch.tensor([-1])]
)
def test_impossible_limit_tensors(value):
    with pytest.raises(ValueError, match="max_steps must"):
        Stop(max_steps=value)


def test_an_absolute_tolerance_is_a_number():
    with pytest.raises(ValueError, match="atol must be"):
        Stop(atol=torch.zeros(3))


def test_numbers_from_numpy_are_numbers():
    assert Stop(rtol=np.float64(1e-3), atol=0).rtol == 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"stop": 1e-3},
        {"stop": Stop(rtol=torch.zeros(2))},
        {"stop": Stop(max_steps=torch.ones(2, dtype=torch.int32))},
        {"on_failure": "ignore"},
        {"on_failure": None},
    ],
)
def test_impossible_implicit_options(options):
    with pytest.raises(ValueError, match=r"must be|takes plain numbers"):
        Implicit(**options)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "all"])
def test_impossible_truncations(value):
    with pytest.raises(ValueError, match="last must be"):
        Unrolled(last=value)


def test_status_values_are_fixed():
    # They are stored in files.
    assert {kind.name: int(kind) for kind in hs.Status} == {
        "CONVERGED": 0,
        "CYCLING": 1,
        "STALLED": 2,
        "MAX_STEPS": 3,
        "DIVERGED": 4,
        "STOPPED": 5,
    }
