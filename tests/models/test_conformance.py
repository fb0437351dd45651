"""The conformance check: every fault is found by its own check, and what keeps the contract passes."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat.errors import InputError
from homeostat.models import RecallConfig, load, shipped
from homeostat.models.conformance import Conformance, check_model
from homeostat.models.registry import NETS, build_net
from homeostat.tasks import PrefixSums, get_task
from homeostat.training import RECIPES

torch.manual_seed(0)
INPUTS = torch.randn(5, 3)
TARGETS = INPUTS.argmax(1)


class Good:
    """Two leaves, one of them whole numbers; a context with a part that is shared; everything there is to judge."""

    trained_steps = 6
    unit_cost = 2.0
    name = "good"

    def encode(self, x):
        return {"x": x, "gain": hs.Shared(torch.tensor(0.5))}

    def initial_state(self, context):
        return {"z": torch.zeros_like(context["x"]), "count": torch.zeros(len(context["x"]), dtype=torch.long)}

    def step(self, state, context):
        return {"z": torch.tanh(context["gain"] * state["z"] + context["x"]), "count": state["count"] + 1}

    def decode(self, state, context):
        return 2 * state["z"]

    def score(self, state, context):
        return state["z"].abs().amax(1)

    def correct(self, outputs, targets):
        return outputs.argmax(1) == targets

    def symbols(self, outputs, targets):
        return self.correct(outputs, targets).float()

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def answers(self, outputs):
        return outputs.argmax(1)


def checked(model: Any, inputs: Any = INPUTS, targets: Any = TARGETS, **options: Any) -> Conformance:
    return check_model(model, inputs, targets, **options)


def made(**functions: Callable) -> Good:
    """A good model with some functions replaced; each is given the good model's own one first."""
    good = Good()
    for name, function in functions.items():
        own = getattr(good, name, None)
        one = name in ("encode", "initial_state", "answers")  # what takes more arguments is told the start
        bound = functools.partial(function, own)
        setattr(good, name, (lambda x, bound=bound: bound(x)) if one else bound)
    return good


def changed(**leaves: Callable) -> Callable:
    """A step that does something to leaves of what the good one returns."""
    return lambda own, state, context: {
        name: leaves.get(name, lambda leaf: leaf)(leaf) for name, leaf in own(state, context).items()
    }


def test_a_good_model_passes_everything() -> None:
    found = checked(Good())
    assert [check.status for check in found.checks] == ["passed"] * 17, found
    assert found.passed
    assert (found.model, found.rows, found.steps) == ("good", 5, 8)
    text = repr(found)
    assert text.startswith("good: 17 passed, 0 failed, 0 not tested (5 examples, 8 steps)")
    assert "tolerance 1e-04" in text
    assert all(len(line) <= 120 for line in text.splitlines())


class Counting:
    """Something that is remembered from call to call."""

    def __init__(self) -> None:
        self.calls = 0
        self.last: torch.Tensor = torch.zeros(3)

    def remember_batch(self, own, x):
        self.last = x.mean(0)
        return own(x)

    def remember_first(self, own, x):
        self.last = x[0]
        return own(x)

    def use(self, own, state, context):
        new = own(state, context)
        return {**new, "z": new["z"] + self.last}

    def count(self, own, state, context):
        self.calls += 1
        new = own(state, context)
        return {**new, "z": new["z"] + 0.01 * self.calls}


def remembering() -> Good:
    memory = Counting()
    return made(encode=memory.remember_first, step=memory.use)


def counting() -> Good:
    return made(step=Counting().count)


def in_training_mode() -> Good:
    norm = nn.BatchNorm1d(3)

    class WithNorm(Good):
        def __init__(self) -> None:
            self.norm = norm

        def step(self, state, context):
            return {**super().step(state, context), "z": self.norm(state["z"] + context["x"])}

    return WithNorm()


def noisy(own, state, context):
    new = own(state, context)
    return {**new, "z": new["z"] + torch.randn_like(new["z"])}


def numpy_like_noise() -> Callable:
    generator = torch.Generator()

    def step(own, state, context):
        new = own(state, context)
        return {**new, "z": new["z"] + torch.randn(new["z"].shape, generator=generator)}

    return step


def add_in_place(own, state, context):
    state["z"].add_(1.0)
    return own(state, context)


def nothing_in_place(own, state, context):
    state["z"].mul_(1)  # the same numbers, and yet a write
    return own(state, context)


def context_in_place(own, state, context):
    context["x"].mul_(1.5)
    return own(state, context)


def shared_in_place(own, state, context):
    context["gain"].add_(0.1)
    return own(state, context)


def inputs_in_place(own, x):
    x.clamp_(-0.1, 0.1)
    return own(x)


def decode_in_place(own, state, context):
    return own(state, context) if state["z"].clamp_(-0.1, 0.1) is None else state["z"] * 2


def grows(own, state, context):
    new = own(state, context)
    return {**new, "z": torch.where(new["count"][:, None] >= 5, torch.inf, new["z"])}


def needs_two(own, state, context):
    return own(state, context) if 1 / (len(context["x"]) - 1) else state


def without(key: str) -> Callable:
    return lambda own, state, context: {k: v for k, v in own(state, context).items() if k != key}


def odd_start(own, context, start):
    state = own(context)
    if start.kind == "own":
        return state
    return {**state, "z": torch.zeros(len(context["x"]), 7)}


def drawn_start(own, context):
    return {**own(context), "z": torch.randn_like(context["x"])}


def wide_decode(own, state, context):
    outputs = own(state, context)
    return outputs if bool((state["count"] > 0).any()) else outputs[:, :1]


FAULTS: dict[str, tuple[Callable[[], Any], str, str]] = {
    # what is wrong: (model, check that finds it, what it says)
    "no function": (
        lambda: type("Half", (), {"encode": Good.encode})(),
        "functions",
        "no function initial_state, step, decode",
    ),
    "score that is a number": (lambda: _with(score=0.5), "functions", "score must be a function, not 0.5"),
    "horizon": (lambda: _with(trained_steps=0), "attributes", "trained_steps is 0; it must be None or a whole number"),
    "cost": (lambda: _with(unit_cost=-1.0), "attributes", "unit_cost is -1.0; it must be a number above 0"),
    "stochastic": (lambda: _with(stochastic="yes"), "attributes", "stochastic is 'yes'; it must be a bool"),
    "encode fails": (lambda: made(encode=lambda own, x: 1 / 0), "encode", "fails: ZeroDivisionError"),
    "context is a number": (
        lambda: made(encode=lambda own, x: {**own(x), "k": 3}),
        "encode",
        r"context\['k'\] is an int, not a tensor: wrap it in homeostat.Shared",
    ),
    "context is not batch first": (
        lambda: made(encode=lambda own, x: {**own(x), "t": x.T}),
        "context by example",
        r"context\['t'\] has 3 rows for 5 examples; its first dimension must be the batch",
    ),
    "context that has as many rows by chance": (
        lambda: made(encode=lambda own, x: {**own(x), "mask": torch.ones(5, 5)}),
        "context by example",
        r"context\['mask'\] has 5 rows for 4 examples as for 5 examples: it is not per example",
    ),
    "shared that is not": (
        lambda: made(encode=lambda own, x: {**own(x), "mean": hs.Shared(x.mean(0))}),
        "context by example",
        r"context\['mean'\] is marked Shared, and yet is another one for 4 of the 5 examples",
    ),
    "start without a batch": (
        lambda: made(initial_state=lambda own, c: {**own(c), "z": torch.zeros(3)}),
        "initial_state",
        "the start is for 5 examples, the state has 3 rows",
    ),
    "start that is not finite": (
        lambda: made(initial_state=lambda own, c: {**own(c), "z": c["x"] * torch.nan}),
        "initial_state",
        r"state\['z'\] is not finite before the first step",
    ),
    "start of whole numbers": (
        lambda: made(initial_state=lambda own, c: {"count": own(c)["count"]}),
        "initial_state",
        "no floating leaf",
    ),
    "noise of another shape": (
        lambda: _starting(odd_start),
        "other starts",
        r"Zeros\(\)\): state\['z'\] is torch.float32 \(5, 7\), of the model's own start",
    ),
    "start by chance": (
        lambda: made(initial_state=drawn_start),
        "repeatable",
        "initial_state draws from torch's global generator",
    ),
    "step changes structure": (
        lambda: made(step=without("count")),
        "step keeps the state",
        r"state\['count'\] is missing",
    ),
    "step changes shape": (
        lambda: made(step=changed(z=lambda z: z[:, :2])),
        "step keeps the state",
        r"state\['z'\]: float32 \(5, 3\) on cpu became float32 \(5, 2\)",
    ),
    "step promotes dtype": (
        lambda: made(step=changed(z=lambda z: z.double())),
        "step keeps the state",
        r"state\['z'\]: float32 \(5, 3\) on cpu became float64",
    ),
    "step changes dtype of whole numbers": (
        lambda: made(step=changed(count=lambda n: n.int())),
        "step keeps the state",
        r"state\['count'\]: int64 \(5,\) on cpu became int32",
    ),
    "step changes device": (
        lambda: made(step=changed(z=lambda z: z.to("meta"))),
        "step keeps the state",
        r"on cpu became float32 \(5, 3\) on meta",
    ),
    "step fails": (lambda: made(step=lambda own, s, c: c["nothing"]), "step keeps the state", "fails: KeyError"),
    "step in place on the state": (
        lambda: made(step=add_in_place),
        "nothing in place",
        r"step changes state\['z'\] in place",
    ),
    "step writes the same in place": (
        lambda: made(step=nothing_in_place),
        "nothing in place",
        r"step writes to state\['z'\] in place",
    ),
    "step in place on the context": (
        lambda: made(step=context_in_place),
        "nothing in place",
        r"step changes context\['x'\] in place",
    ),
    "step in place on what is shared": (
        lambda: made(step=shared_in_place),
        "nothing in place",
        r"step changes context\['gain'\] in place",
    ),
    "encode in place": (lambda: made(encode=inputs_in_place), "nothing in place", "encode changes inputs in place"),
    "decode in place": (
        lambda: made(decode=decode_in_place),
        "nothing in place",
        r"decode writes to state\['z'\] in place",
    ),
    "not finite after some steps": (
        lambda: made(step=grows),
        "finite",
        r"state\['z'\] is not finite after step 5 of 8, for 5 of 5 examples, the first of them example 0",
    ),
    "decode needs a step": (
        lambda: made(decode=lambda own, s, c: [own(s, c)][int(s["count"].min() < 1)]),
        "decode",
        "decode fails before the first step: IndexError",
    ),
    "decode of another shape": (
        lambda: made(decode=wide_decode),
        "decode",
        r"\(5, 1\) before the first step and outputs float32 \(5, 3\) after three",
    ),
    "decode without a batch": (
        lambda: made(decode=lambda own, s, c: own(s, c).mean()),
        "decode",
        r"outputs has shape \(\) before the first step; its first dimension must be the batch, 5",
    ),
    "decode gives NaN": (
        lambda: made(decode=lambda own, s, c: own(s, c) * torch.nan),
        "decode",
        "outputs has NaN before the first step",
    ),
    "score of another shape": (
        lambda: made(score=lambda own, s, c: s["z"]),
        "score",
        r"score returns shape \(5, 3\); it must be \(5,\), one number an example",
    ),
    "score that is not finite": (lambda: made(score=lambda own, s, c: own(s, c) * torch.inf), "score", "is not finite"),
    "chance that is not said": (
        lambda: made(step=noisy),
        "repeatable",
        "step draws from torch's global generator: state.* say stochastic = True",
    ),
    "chance without a seed": (lambda: made(step=numpy_like_noise()), "repeatable", "the same seed of torch"),
    "a counter": (counting, "repeatable", "called again with the same arguments and the same seed of torch"),
    "something left behind by encode": (
        remembering,
        "nothing remembered",
        "step gives something else after another batch was encoded",
    ),
    "encode hears of the batch": (
        lambda: made(encode=lambda own, x: own(x - x.mean(0))),
        "same in any batch",
        "encode gives something else for example 0 alone than in the batch of 5: context",
    ),
    "start hears of the batch": (
        lambda: made(initial_state=lambda own, c: {**own(c), "z": c["x"] - c["x"].mean(0)}),
        "same in any batch",
        "initial_state gives something else",
    ),
    "step hears of the batch": (
        lambda: made(step=lambda own, s, c: {**own(s, c), "z": s["z"] + c["x"].mean(0)}),
        "same in any batch",
        r"step gives something else for example 0 alone than in the batch of 5: state\['z'\] differs by",
    ),
    "step hears of its neighbours": (
        lambda: made(step=lambda own, s, c: {**own(s, c), "z": c["x"] + 0.1 * c["x"].roll(1, 0)}),
        "same in any batch",
        "step gives something else",
    ),
    "step reads rows by number": (
        lambda: made(step=lambda own, s, c: {**own(s, c), "z": c["x"] + torch.arange(len(c["x"]))[:, None]}),
        "same in any batch",
        "step gives something else for example 2 alone",
    ),
    "decode hears of the batch": (
        lambda: made(decode=lambda own, s, c: own(s, c) / (1 + own(s, c).abs().max())),
        "same in any batch",
        "decode gives something else",
    ),
    "score hears of the batch": (
        lambda: made(score=lambda own, s, c: own(s, c) - own(s, c).mean()),
        "same in any batch",
        "score gives something else",
    ),
    "batch norm in training mode": (in_training_mode, "evaluation mode", r"norm \(BatchNorm1d\) is in training mode"),
    "a batch of one": (
        lambda: made(step=needs_two),
        "small batches",
        "a batch of one example fails: ZeroDivisionError",
    ),
    "rows from nothing": (
        lambda: made(decode=lambda own, s, c: own(s, c) if len(c["x"]) else torch.zeros(1, 3)),
        "small batches",
        r"outputs has shape \(1, 3\) for a batch of 0 examples",
    ),
    "correct of another shape": (
        lambda: made(correct=lambda own, o, t: own(o, t).all()),
        "judge",
        r"correct\(outputs, targets\) returns shape \(\); it must be \(5,\)",
    ),
    "symbols beyond a share": (
        lambda: made(symbols=lambda own, o, t: own(o, t) + 2),
        "judge",
        "symbols.* a share from 0 to 1",
    ),
    "loss of a batch": (
        lambda: made(loss=lambda own, o, t: own(o, t).mean()),
        "judge",
        r"loss\(outputs, targets\) returns shape \(\)",
    ),
    "loss that is NaN": (lambda: made(loss=lambda own, o, t: own(o, t) * torch.nan), "judge", "loss.* returns NaN"),
    "answers that are not whole": (
        lambda: made(answers=lambda own, o: o),
        "judge",
        r"answers\(outputs\) returns torch.float32 \(5, 3\); it must be whole numbers",
    ),
}


def _with(**attributes: Any) -> Good:
    good = Good()
    for name, value in attributes.items():
        setattr(good, name, value)
    return good


def _starting(function: Callable) -> Good:
    good = Good()
    own = good.initial_state
    good.initial_state = lambda context, start: function(own, context, start)
    return good


@functools.cache
def found_in(fault: str) -> Conformance:
    torch.manual_seed(1)
    return checked(FAULTS[fault][0](), INPUTS.clone())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_check(fault: str) -> None:
    _, name, message = FAULTS[fault]
    found = found_in(fault)
    assert not found.passed
    by_name = {check.name: check for check in found.checks}
    assert by_name[name].status == "failed", found
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(by_name[name].message)
    assert by_name[name].message in " ".join(repr(found).split()) or len(by_name[name].message) > 60


# These faults show in other checks too, each for its own reason.
ALSO = {
    "a batch of one": {"same in any batch"},
    "batch norm in training mode": {"same in any batch", "small batches"},
    "something left behind by encode": {"same in any batch"},
}


@pytest.mark.parametrize("fault", [f for f, (_, name, _) in FAULTS.items() if name != "functions"])
def test_a_fault_is_found_by_its_check_alone(fault: str) -> None:
    """Whoever reads the table must not be sent to look for faults that are not there."""
    failed = {check.name for check in found_in(fault).failed} - {FAULTS[fault][1]}
    assert failed <= ALSO.get(fault, set()), failed


def test_what_a_model_draws_is_its_own_business_if_it_says_so() -> None:
    model = made(step=noisy)
    model.stochastic = True
    found = {check.name: check for check in checked(model).checks}
    assert found["repeatable"].status == "passed"
    assert "as it says" in found["repeatable"].message
    assert found["same in any batch"].status == "not tested"
    model = _with(stochastic=True)
    assert "though stochastic says otherwise" in {c.name: c for c in checked(model).checks}["repeatable"].message


def test_buffers_that_running_changes() -> None:
    class Running(nn.Module):
        encode, initial_state, decode = Good.encode, Good.initial_state, Good.decode

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))

        def step(self, state, context):
            self.seen += context["x"].mean(0)
            return Good.step(self, state, context)

    found = checked(Running())
    assert [(check.name, check.message) for check in found.failed] == [
        ("nothing remembered", "running the model changes its own seen; it must stay as it is in evaluation mode")
    ]


def test_a_module_is_checked_in_evaluation_mode_and_left_in_its_own() -> None:
    class WithNorm(nn.Module):
        encode, initial_state, decode = Good.encode, Good.initial_state, Good.decode

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)

        def step(self, state, context):
            return {**state, "z": self.drop(self.norm(state["z"] + context["x"]))}

    model = WithNorm()
    model.drop.eval()
    assert checked(model).passed
    assert model.training
    assert model.norm.training
    assert not model.drop.training


def test_rows_of_little_consequence() -> None:
    """One example leaves what is said of batches untested; what is missing is said to be missing."""
    found = checked(Good(), INPUTS[:1], None)
    assert found.passed
    untested = {check.name: check.message for check in found.checks if check.status == "not tested"}
    assert untested.keys() == {"context by example", "nothing remembered", "same in any batch"}
    assert untested["same in any batch"] == "needs 2 examples"
    bare = hs.from_functions(
        encode=lambda x: x, initial_state=lambda x: 0 * x, step=lambda z, x: x, decode=lambda z, x: z
    )
    untested = {check.name for check in checked(bare, targets=None).checks if check.status == "not tested"}
    assert untested == {"score", "judge"}


def test_tolerance_is_what_rounding_needs() -> None:
    slight = made(step=lambda own, s, c: {**own(s, c), "z": own(s, c)["z"] + 1e-3 * c["x"].mean()})
    assert not checked(slight).passed
    assert checked(slight, rtol=0.1).passed
    for dtype in (torch.float64, torch.bfloat16):
        found = checked(Good(), INPUTS.to(dtype))
        assert found.passed
        tolerance = next(check.tolerance for check in found.checks if check.name == "same in any batch")
        assert tolerance == {torch.float64: 1e-9, torch.bfloat16: 1e-1}[dtype]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.zeros(0, 3)}, "one row at least"),
        ({"inputs": {"a": torch.zeros(2), "b": torch.zeros(3)}}, "as many rows each"),
        ({"inputs": "text"}, "a tensor or a nest of tensors"),
        ({"steps": 0}, "steps must be a whole number from 1 to 100,000, not 0"),
        ({"rtol": float("nan")}, "rtol must be a number from 0 up to 1, not nan"),
        ({"seed": -1}, "seed must be a whole number of 0 or more, not -1"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(Good(), **change)


@pytest.mark.parametrize("name", shipped())
def test_shipped_checkpoints_pass(name: str) -> None:
    checkpoint = load(name)
    task = get_task(checkpoint.config.task.name, **checkpoint.config.task.options)
    inputs, targets = task.sample(task.sizes[0], 3, split="test", seed=0)
    found = check_model(checkpoint.model, inputs, targets, judge=task)
    assert found.passed, found
    assert {check.name for check in found.checks if check.status == "not tested"} <= {"score"}


@pytest.mark.parametrize("config", NETS)
def test_networks_of_the_package_pass(config: type) -> None:
    """With fresh weights, on instances of the task that a recipe trains them for."""
    recipe = next(r for r in RECIPES.values() if isinstance(r.model or RecallConfig.of(PrefixSums(), width=8), config))
    task = get_task(recipe.task.name, **recipe.task.options)
    net = build_net(recipe.model or RecallConfig.of(PrefixSums(), width=8), name=recipe.name, trained_steps=3)
    inputs, targets = task.sample(min(recipe.sizes), 3, split="train", seed=0)
    found = check_model(net, inputs, targets, judge=task)
    assert found.passed, found


def test_networks_stay_in_their_own_dtype() -> None:
    net = build_net(RecallConfig.of(PrefixSums(), width=8), name="bits").double()
    inputs, targets = PrefixSums().sample(8, 4, split="test", seed=0)
    assert check_model(net, inputs.double(), targets, judge=PrefixSums()).passed
