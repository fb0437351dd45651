"""Models around torchdeq's own `deq(f, z0)`, and what their adapters make of them."""

import pytest
import torch
import torchdeq
from torch import nn

import homeostat as hs
from homeostat.errors import ContractError
from homeostat.models import Noise, Own
from homeostat.models.adapters import from_torchdeq
from homeostat.probes.limits.classify import classify_limits


class Classifier(nn.Module):
    """A torchdeq user's model: encoder, normalised cell with dropout, closure, decoder."""

    def __init__(self, norm="weight_norm", dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(5, 16), nn.Linear(16, 3)
        self.linear, self.dropout = nn.Linear(16, 16), torchdeq.VariationalDropout(dropout)
        if norm:
            torchdeq.apply_norm(self.linear, norm, learn_scale=False, target_norm=0.4)
        self.deq = torchdeq.get_deq(f_max_iter=100, f_tol=1e-6)

    def make_f(self, x):
        return lambda z: torch.tanh(self.dropout(self.linear(z)) + x)

    def forward(self, inputs):
        torchdeq.reset_deq(self)
        x = self.encoder(inputs)
        z_out, _ = self.deq(self.make_f(x), torch.zeros_like(x))
        return self.decoder(z_out[-1])


def adapted(model):
    return from_torchdeq(
        encode=model.encoder,
        make_f=model.make_f,
        z0=torch.zeros_like,
        decode=lambda z, x: model.decoder(z),
        modules=model,
        trained_steps=100,
    )


@pytest.mark.parametrize("norm", [None, "weight_norm", "spectral_norm"])
def test_the_adapter_ends_where_torchdeq_ends(norm):
    model = Classifier(norm)
    for _ in range(30):  # the power iteration of a spectral norm goes on at each reset in training
        torchdeq.reset_deq(model)
    model.eval()
    inputs = torch.randn(32, 5, generator=torch.Generator().manual_seed(1))
    ours = adapted(model)
    with torch.no_grad():
        before = model(inputs)
        # Weights that an optimiser has changed: encode has to compute the normalised ones anew, as forward does.
        for parameter in model.linear.parameters():
            parameter.add_(0.1 * torch.ones_like(parameter).bernoulli_(generator=torch.Generator().manual_seed(2)))
        context = ours.encode(inputs)
        solution = hs.solve(ours.step, ours.initial_state(context, Own()), context, stop=hs.Stop(rtol=1e-6))
        answer = ours.decode(solution.state, context)
        wanted = model(inputs)
        assert (before - wanted).abs().max() > 1e-3
    assert bool(solution.converged.all())
    assert len(solution.steps.unique()) > 1  # rows left one by one, each with its context
    torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-5)


def test_several_tensors():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)

    def cell(a, b, x):
        return [torch.tanh(0.4 * first(b) + x["x"]), torch.tanh(0.4 * second(a) - x["x"])]

    model = from_torchdeq(
        encode=lambda x: {"x": x},
        cell=cell,
        z0=lambda x: [torch.zeros_like(x["x"]), torch.ones_like(x["x"])],
        decode=lambda z, x: z[0] + z[1],
        modules=[first, second],
    )
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs, _ = torchdeq.get_deq(f_tol=1e-6, f_max_iter=100).eval()(
            lambda a, b: cell(a, b, {"x": x}), model.encode(x) and [x, x]
        )
        context = model.encode(x)
        for start in (Own(), Noise(scale=0.5)):
            state = model.initial_state(context, start)
            assert isinstance(state, tuple)
            found = hs.solve(model.step, state, context, stop=hs.Stop(rtol=1e-6)).state
            torch.testing.assert_close(
                model.decode(found, context), theirs[-1][0] + theirs[-1][1], rtol=1e-4, atol=1e-5
            )


def test_probes_find_the_modules():
    model = Classifier(dropout=0.5).train()
    inputs = torch.randn(6, 5)
    with pytest.raises(ContractError, match="keeps one mask for a whole batch"):
        adapted(model).encode(inputs)
    found = classify_limits(adapted(model), [(inputs, None)], steps=100, checks=())
    assert found.of("all examples").shares["fixed point"].value == 1.0
    assert model.training
    assert model.dropout.training


def test_nonsense():
    functions = {"encode": nn.Identity(), "z0": torch.zeros_like, "decode": lambda z, x: z}
    with pytest.raises(ContractError, match="give cell or make_f"):
        from_torchdeq(**functions)
    with pytest.raises(ContractError, match="give cell or make_f"):
        from_torchdeq(**functions, cell=nn.Identity(), make_f=lambda x: x)
    with pytest.raises(ContractError, match="make_f must be a function"):
        from_torchdeq(**functions, make_f=3)
    with pytest.raises(ContractError, match="trained_steps"):
        from_torchdeq(**functions, make_f=lambda x: x, trained_steps=0)
    model = from_torchdeq(**functions, cell=nn.Bilinear(3, 3, 3))
    assert len(list(model.parameters())) == 2
