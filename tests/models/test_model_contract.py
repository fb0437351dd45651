"""How somebody's own model joins: `from_functions`, `as_model`, and what they refuse."""

import functools

import pytest
import torch

import homeostat as hs
from homeostat.errors import ContractError
from homeostat.models import IteratedModel, Noise, Own, Zeros, as_model, from_functions


def functions(**changes):
    made = {
        "encode": lambda x: x + 1,
        "initial_state": lambda c: torch.full_like(c, 7.0),
        "step": lambda z, c: z / 2 + c,
        "decode": lambda z, c: z - c,
    }
    return {**made, **changes}


X = torch.arange(6.0).view(3, 2)


def test_the_functions_are_called_as_they_are():
    model = from_functions(**functions(score=lambda z, c: z[:, 0]))
    context = model.encode(X)
    assert torch.equal(context, X + 1)
    assert torch.equal(model.step(context, X), context / 2 + X)
    assert torch.equal(model.decode(context, X), context - X)
    assert torch.equal(model.score(context, X), context[:, 0])
    assert from_functions(**functions()).score(context, X) is None
    solution = hs.solve(model.step, model.initial_state(context, Own()), context)
    torch.testing.assert_close(solution.state, 2 * context, rtol=1e-3, atol=0)


def test_a_one_argument_start_is_the_template_of_every_other_start():
    model = from_functions(**functions())
    assert torch.equal(model.initial_state(X, Own()), torch.full_like(X, 7.0))
    assert torch.equal(model.initial_state(X, Zeros()), torch.zeros_like(X))
    noise = model.initial_state(X, Noise(seed=3))
    assert torch.equal(noise, Noise(seed=3).like(X))
    assert noise.std() > 0


class Drawing:
    def initial_state(self, context, start):
        return context * 0 + start.seed


@pytest.mark.parametrize(
    "draws",
    [
        lambda c, start: c * 0 + start.seed,
        lambda *args: args[0] * 0 + args[1].seed,
        Drawing().initial_state,
        functools.partial(lambda k, c, start: c * 0 + start.seed * k, 1),
    ],
)
def test_a_two_argument_start_draws_for_itself(draws):
    model = from_functions(**functions(initial_state=draws))
    assert torch.equal(model.initial_state(X, Noise(seed=5)), torch.full_like(X, 5.0))


def test_attributes_are_told_and_checked():
    model = from_functions(**functions(), name="mine", trained_steps=30, unit_cost=2.5, stochastic=True)
    assert (model.name, model.trained_steps, model.unit_cost, model.stochastic) == ("mine", 30, 2.5, True)
    assert model.light_cone(10) is None


@pytest.mark.parametrize("name", ["encode", "initial_state", "step", "decode", "score"])
def test_what_cannot_be_called_is_named(name):
    with pytest.raises(ContractError, match=f"{name} must be a function, not 3"):
        from_functions(**functions(**{name: 3}))


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "5"])
def test_impossible_horizons(value):
    with pytest.raises(ContractError, match="trained_steps must be"):
        from_functions(**functions(), trained_steps=value)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), True, "1"])
def test_impossible_costs(value):
    with pytest.raises(ContractError, match="unit_cost must be"):
        from_functions(**functions(), unit_cost=value)


def test_unknown_functions_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword"):
        from_functions(**functions(), halt=lambda z, c: z)


class Duck:
    trained_steps = 12

    def __init__(self, **changes):
        for name, function in functions(**changes).items():
            setattr(self, name, function)


def test_anything_with_the_functions_is_a_model():
    model = as_model(Duck())
    assert isinstance(model, IteratedModel)
    assert (model.name, model.trained_steps, model.unit_cost) == ("Duck", 12, 1.0)
    assert torch.equal(model.step(X, X), X * 1.5)
    assert as_model(model) is model


@pytest.mark.parametrize("name", ["encode", "initial_state", "step", "decode"])
def test_a_missing_function_is_named(name):
    duck = Duck()
    delattr(duck, name)
    with pytest.raises(ContractError, match=rf"build\(\) returned Duck, which has no function {name}\(\)"):
        as_model(duck, where="build()")
    setattr(duck, name, 5)
    with pytest.raises(ContractError, match=rf"has no function {name}\(\)"):
        as_model(duck)


def test_an_abstract_model_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        IteratedModel()


@pytest.mark.parametrize(
    ("initial_state", "told"),
    [
        (torch.zeros_like, False),
        (lambda c: torch.zeros_like(c), False),
        (lambda c, width=4: torch.zeros_like(c), False),
        (lambda c, start=None: start.like(torch.zeros_like(c)), True),
        (lambda c, start: start.like(torch.zeros_like(c)), True),
    ],
)
def test_initial_state_is_told_the_start_only_where_it_asks_for_it(initial_state, told):
    model = from_functions(
        encode=lambda x: x,
        initial_state=initial_state,
        step=lambda z, c: z,
        decode=lambda z, c: z,
        light_cone=lambda s: s,
    )
    context = torch.zeros(3, 5)
    assert bool(model.initial_state(context, Noise()).any())  # either way a noise start is noise
    assert model._draws_start is told
    assert model.light_cone(7) == 7
