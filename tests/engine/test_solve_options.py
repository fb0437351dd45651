"""Options refuse nonsense when they are made, and every one can be made bare."""

import dataclasses
import inspect
import json
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


@pytest.mark.parametrize("whole", [np.int64, np.int8, np.uint16])
@pytest.mark.parametrize("real", [np.float64, np.float32, np.float16])
def test_numbers_from_numpy_are_numbers_and_kept_as_plain_ones(whole, real):
    half, three = real(0.5), whole(3)
    pairs = [
        (Stop(half, half, three), Stop(0.5, 0.5, 3)),
        (Stop(rtol=three), Stop(rtol=3)),
        (Picard(half), Picard(0.5)),
        (hs.Anderson(three, half), hs.Anderson(3, 0.5)),
        (hs.Broyden(three), hs.Broyden(3)),
        (hs.GMRES(three), hs.GMRES(3)),
        (Implicit(hs.Anderson(three), Stop(half)), Implicit(hs.Anderson(3), Stop(0.5))),
        (hs.Phantom(three, half), hs.Phantom(3, 0.5)),
        (hs.Neumann(three), hs.Neumann(3)),
        (hs.Shine(half), hs.Shine(0.5)),
        (Unrolled(last=three), Unrolled(last=3)),
        (hs.bilevel.GradientDescent(half, most_halvings=three), hs.bilevel.GradientDescent(0.5, most_halvings=3)),
        (hs.inference.Breadth(three), hs.inference.Breadth(3)),
    ]
    for given, plain in pairs:
        assert given == plain
        assert repr(given) == repr(plain)
        json.dumps(dataclasses.asdict(given), default=str)
        for value in dataclasses.asdict(given).values():
            assert not isinstance(value, np.generic)


def test_numbers_from_numpy_do_as_plain_ones_in_calls():
    start = torch.zeros(2, 3)
    given = hs.solve(lambda z, _: 0.5 * z + 1, start, sync_every=np.int64(4), stop=Stop(np.float32(1e-3)))
    plain = hs.solve(lambda z, _: 0.5 * z + 1, start, sync_every=4, stop=Stop(float(np.float32(1e-3))))
    assert torch.equal(given.state, plain.state)
    contexts = [torch.ones(1, 3) for _ in range(4)]
    sizes = {"batch_size": np.int64(2), "look_ahead": np.uint8(1), "sync_every": np.int8(2), "refill": np.float32(0.5)}
    found = list(hs.solve_stream(lambda z, c: 0.5 * z + c, torch.zeros_like, contexts, **sizes))
    assert len(found) == 4


@pytest.mark.parametrize("value", [np.array(3), np.array([3]), np.bool_(True), torch.tensor(3), np.complex64(3), "3"])
@pytest.mark.parametrize(
    "make", [lambda v: Stop(rtol=v), lambda v: Stop(max_steps=v), hs.Anderson, hs.Broyden, hs.Phantom, Unrolled]
)
def test_what_is_no_number_is_refused_as_before(make, value):
    with pytest.raises(ValueError, match="must be"):
        make(value)


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


@pytest.mark.parametrize(
    ("option", "home"),
    [
        ("rtol", r"stop=hs\.Stop\(rtol="), ("tol", r"stop=hs\.Stop\(rtol="), ("atol", r"stop=hs\.Stop\(atol="),
        ("max_steps", r"stop=hs\.Stop\(max_steps="), ("max_iter", r"stop=hs\.Stop\(max_steps="),
        ("memory", r"method=hs\.Anderson\(memory="), ("on_failure", r"gradient=hs\.Implicit\(on_failure="),
    ],
)  # fmt: skip
def test_an_option_in_the_wrong_place_is_told_the_right_one(option, home):
    for call in (hs.solve, hs.solve_stream):
        with pytest.raises(TypeError, match=home):
            call(lambda z, c: z, torch.zeros(1, 1), **{option: 1})


def test_the_signature_is_that_of_solve():
    assert list(inspect.signature(hs.solve).parameters)[:3] == ["step", "state", "context"]
