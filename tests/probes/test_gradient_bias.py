"""`gradient_bias` against closed forms and dense linear algebra."""

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.errors import ContractError, InputError
from homeostat.probes.gradient_bias import DEFAULT_GRADIENTS

F64 = torch.float64
TIGHT = hs.Stop(rtol=1e-12, max_steps=2000)
RATE = 0.7


def scalar_model(rate: float = RATE, dtype: torch.dtype = F64, **options):
    """`z = rate z + gain x`, hence `dz / d gain = x / (1 - rate)`; the answer is `scale z`."""
    parameters = {
        name: torch.tensor(value, dtype=dtype, requires_grad=True)
        for name, value in (("rate", rate), ("gain", 1.5), ("scale", 0.5))
    }
    model = hs.from_functions(
        encode=lambda x: parameters["gain"] * x,
        initial_state=torch.zeros_like,
        step=lambda z, x: parameters["rate"] * z + x,
        decode=lambda z, x: parameters["scale"] * z,
        **options,
    )
    return model, parameters


def squared(outputs, targets):
    return (outputs - targets).square().mean(1)


def batches(count: int = 1, rows: int = 4, dtype: torch.dtype = F64):
    torch.manual_seed(0)
    return [(torch.randn(rows, 3, dtype=dtype), torch.randn(rows, 3, dtype=dtype)) for _ in range(count)]


def damped(steps: int, damping: float) -> float:
    return (1 - damping + damping * RATE) ** steps


@pytest.mark.parametrize(
    ("gradient", "error"),
    [
        (hs.OneStep(), RATE),
        (hs.Neumann(terms=1), RATE),
        (hs.Neumann(terms=4), RATE**4),
        (hs.Phantom(steps=5, damping=0.5), damped(5, 0.5)),
        (hs.Phantom(steps=3, damping=1.0), RATE**3),
        (hs.Unrolled(last=6), RATE**6),
        (hs.Unrolled(), 0),
        (hs.Implicit(stop=TIGHT), 0),
    ],
)
def test_closed_forms_on_a_linear_map(gradient, error):
    model, parameters = scalar_model()
    bias = hs.gradient_bias(
        model, batches(), squared, gradients=[gradient], method=hs.Picard(), stop=TIGHT, reference=TIGHT,
        parameters=parameters,
    )  # fmt: skip
    assert bias.reference.converged
    rows = {row.group: row for row in bias.rows}
    for group in ("rate", "gain"):
        assert rows[group].relative_error.value == pytest.approx(error, abs=1e-8)
        assert rows[group].cosine.value == pytest.approx(1)
    # What comes after the fixed point has no bias.
    assert rows["scale"].relative_error.value == pytest.approx(0, abs=1e-9)
    assert 0 <= rows["all"].relative_error.value <= error + 1e-8
    assert [row.parameters for row in bias.rows] == [3, 1, 1, 1]


class Net(nn.Module):
    """A model that is a module; `tanh` where asked, else linear."""

    trained_steps = 4

    def __init__(self, bound: bool = False) -> None:
        super().__init__()
        self.bound = bound
        self.encoder = nn.Linear(3, 5)
        self.cell = nn.Linear(5, 5, bias=False)
        self.head = nn.Linear(5, 2)
        self.drop = nn.Dropout(0.5)

    def encode(self, x):
        return self.drop(self.encoder(x))

    def initial_state(self, context):
        return torch.zeros_like(context)

    def step(self, z, x):
        new = self.cell(z) + x
        return torch.tanh(new) if self.bound else new

    def decode(self, z, x):
        return self.head(z)

    def loss(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")


def net(bound: bool = False) -> Net:
    torch.manual_seed(0)
    model = Net(bound).double()
    with torch.no_grad():
        matrix = torch.randn(5, 5, dtype=F64).triu(1) + 0.6 * torch.eye(5, dtype=F64)  # far from normal
        model.cell.weight.copy_(matrix)
    return model


def labelled(count: int = 1, rows: int = 4):
    torch.manual_seed(1)
    return [(torch.randn(rows, 3, dtype=F64), torch.randint(2, (rows,))) for _ in range(count)]


def test_a_linear_map_that_is_not_normal_against_dense_algebra():
    model, (batch,) = net(), labelled()
    x, y = batch
    bias = hs.gradient_bias(model, [batch], gradients=[hs.OneStep()], stop=TIGHT, reference=TIGHT)

    model.eval()
    with torch.no_grad():
        a = model.cell.weight
        z = torch.linalg.solve(torch.eye(5, dtype=F64) - a, model.encode(x).T).T
        logits = model.head(z)
        g = (logits.softmax(1) - F.one_hot(y, 2)) @ model.head.weight / len(y)
        u = torch.linalg.solve((torch.eye(5, dtype=F64) - a).T, g.T).T
        truth = {
            "cell": (u.T @ z, g.T @ z),
            "encoder": (torch.cat([u.T @ x, u.sum(0)[:, None]], 1), torch.cat([g.T @ x, g.sum(0)[:, None]], 1)),
        }
    for group, (exact, cheap) in truth.items():
        row = bias.at("OneStep()", group)
        assert row.relative_error.value == pytest.approx(((cheap - exact).norm() / exact.norm()).item(), rel=1e-6)
        cosine = (cheap * exact).sum() / (cheap.norm() * exact.norm())
        assert row.cosine.value == pytest.approx(cosine.item(), rel=1e-6)
    assert bias.at("OneStep()", "head").relative_error.value < 1e-9


def test_the_defaults_on_a_module_leave_it_as_it_was():
    model = net(bound=True)
    model.encoder.eval()
    bias = hs.gradient_bias(model, labelled(3))
    assert all(p.grad is None for p in model.parameters())
    assert (model.training, model.encoder.training, model.cell.training) == (True, False, True)
    names = list(dict.fromkeys(row.gradient for row in bias.rows))
    assert names == [
        "OneStep()",
        "Neumann(terms=5)",
        "Phantom(steps=5, damping=0.5)",
        "Unrolled(last=5)",
        "Implicit(rtol=0.01)",
        "Implicit()",
    ]
    assert len(names) == len(DEFAULT_GRADIENTS)
    assert [row.group for row in bias.rows[:4]] == ["all", "encoder", "cell", "head"]
    assert (bias.batches, bias.examples, bias.dtype) == (3, 12, "float64")
    errors = {name: bias.at(name).relative_error for name in names}
    assert errors["Implicit()"].value < 1e-3 < errors["Neumann(terms=5)"].value < errors["OneStep()"].value < 1
    for estimate in errors.values():
        assert estimate.count == 3
        assert estimate.low <= estimate.value <= estimate.high


def test_the_table_says_what_a_number_rests_on():
    text = repr(hs.gradient_bias(net(bound=True), labelled(2)))
    for pattern in (
        r"8 examples in 2 batches, float64",
        r"reference: converged at rtol 1.0e-10, largest residual \S+ forward, \S+ adjoint; \d+\.\d evaluations",
        r"gradient +group +relative error +cosine +evaluations +seconds +unconverged",
        r"OneStep\(\) +all +\S+ \[\S+, \S+\] +\S+ \[\S+, \S+\] +\d+\.\d +0\.\d{4} +0 of 8",
        r"Mean over batches \[95 % interval\]",
    ):
        assert re.search(pattern, text), pattern
    assert "One batch: no interval" in repr(hs.gradient_bias(net(bound=True), labelled(1)))


def test_a_reference_that_did_not_converge_says_so():
    model, parameters = scalar_model(rate=0.999)
    bias = hs.gradient_bias(
        model, batches(), squared, parameters=parameters, method=hs.Picard(), gradients=[hs.OneStep()],
        reference=hs.Stop(rtol=1e-10, max_steps=5),
    )  # fmt: skip
    assert not bias.reference.converged
    assert bias.reference.forward_unconverged == 4
    assert bias.reference.forward_residual > 1e-10
    assert "NOT CONVERGED (forward 4" in repr(bias)
    assert "two wrong gradients" in repr(bias)


def test_costs_and_unconverged_rows_stand_beside_the_numbers():
    model, parameters = scalar_model()
    bias = hs.gradient_bias(
        model, batches(), squared, parameters=parameters, method=hs.Picard(), stop=hs.Stop(rtol=0, max_steps=10),
        gradients=[hs.OneStep(), hs.Neumann(terms=4)],
    )  # fmt: skip
    one, series = bias.at("OneStep()"), bias.at("Neumann(terms=4)")
    assert one.evaluations == 11
    assert series.evaluations == 14
    assert one.unconverged == series.unconverged == 4
    assert one.seconds > 0


def test_groups_names_and_scalar_losses():
    model, parameters = scalar_model()
    options = {"parameters": parameters, "gradients": {"cheap": hs.OneStep()}}
    by_row = hs.gradient_bias(model, batches(), squared, group=lambda name: "only", **options)
    by_mean = hs.gradient_bias(model, {"a": batches()}, F.mse_loss, group=str, **options)
    assert {row.group for row in by_row.rows} == {"all"}
    assert {row.group for row in by_mean.rows} == {"all", "rate", "gain", "scale"}
    assert by_row.at("cheap").relative_error.value == pytest.approx(by_mean.at("cheap").relative_error.value)
    with pytest.raises(KeyError, match="no row 'dear', 'all'"):
        by_row.at("dear")


def test_a_parameter_without_a_gradient():
    model, parameters = scalar_model()
    parameters["idle"] = torch.ones(2, dtype=F64, requires_grad=True)
    parameters["fixed"] = torch.ones(2, dtype=F64)
    bias = hs.gradient_bias(model, batches(2), squared, parameters=parameters, gradients=[hs.OneStep()])
    row = bias.at("OneStep()", "idle")
    assert row.relative_error.value == 0
    assert math.isnan(row.cosine.value)
    assert "fixed" not in {row.group for row in bias.rows}


def test_float32_has_a_reference_that_it_can_reach():
    model, parameters = scalar_model(dtype=torch.float32)
    bias = hs.gradient_bias(model, batches(dtype=torch.float32), squared, parameters=parameters)
    assert bias.reference.converged
    assert bias.dtype == "float32"
    assert bias.at("OneStep()", "gain").relative_error.value == pytest.approx(RATE, rel=1e-3)


def test_bad_input():
    model, parameters = scalar_model()
    good = {"parameters": parameters}
    with pytest.raises(InputError, match="the model is no module"):
        hs.gradient_bias(model, batches(), squared)
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        hs.gradient_bias(model, batches(), squared, parameters={"a": torch.ones(1)})
    with pytest.raises(InputError, match="there is no loss"):
        hs.gradient_bias(model, batches(), **good)
    with pytest.raises(InputError, match="there are no examples"):
        hs.gradient_bias(model, [], squared, **good)
    with pytest.raises(InputError, match=r"two gradients are called Implicit\(\)"):
        hs.gradient_bias(model, batches(), squared, gradients=[hs.Implicit(), hs.Implicit()], **good)
    with pytest.raises(InputError, match="no gradient to measure"):
        hs.gradient_bias(model, batches(), squared, gradients=[], **good)
    with pytest.raises(TypeError, match="a gradient must be an instance"):
        hs.gradient_bias(model, batches(), squared, gradients=["implicit"], **good)
    with pytest.raises(InputError, match="plain numbers"):
        hs.gradient_bias(model, batches(), squared, stop=hs.Stop(max_steps=torch.tensor([1])), **good)
    with pytest.raises(ContractError, match=r"loss must return \(4,\) or a mean, not \(4, 3\)"):
        hs.gradient_bias(model, batches(), lambda o, t: (o - t).square(), **good)
    random, parameters = scalar_model(stochastic=True)
    with pytest.raises(ContractError, match="draws random numbers"):
        hs.gradient_bias(random, batches(), squared, parameters=parameters)
