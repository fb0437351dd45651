"""What stands around torchdeq's layer: normalisation, dropout, losses, and its own examples by another import."""

import argparse

import pytest
import torch
import torchdeq
import torchdeq.dropout
import torchdeq.loss
import torchdeq.norm
from torch import nn

import homeostat.compat.torchdeq as ours
from homeostat.errors import ContractError, InputError

LAYERS = [
    nn.Linear(4, 6),
    nn.Conv1d(2, 3, 3),
    nn.Conv2d(2, 3, 3),
    nn.ConvTranspose1d(2, 3, 3),
    nn.ConvTranspose2d(2, 3, 3),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize(
    "options", [{}, {"learn_scale": False, "target_norm": 0.7}, {"clip": True, "clip_value": 0.9}], ids=str
)
def test_normalised_weights(layer, kind, options):
    """Checkpoints of one load into the other, and give the same weights and gradients."""
    found = []
    for library in (torchdeq, ours):
        module = nn.Sequential(type(layer)(*_sizes(layer)))
        module.load_state_dict({f"0.{k}": v for k, v in layer.state_dict().items()})
        library.norm.apply_norm(module, kind, **options)
        found.append(module)
    assert {k: v.shape for k, v in found[0].state_dict().items()} == {
        k: v.shape for k, v in found[1].state_dict().items()
    }
    found[1].load_state_dict(found[0].state_dict())
    gradients = []
    for library, module in zip((torchdeq, ours), found, strict=True):
        for _ in range(3):
            library.norm.reset_norm(module)
        module[0].weight.pow(3).sum().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[0][0].weight, found[1][0].weight)
    torch.testing.assert_close(gradients[0], gradients[1])
    weight = found[1][0].weight.detach().clone()
    ours.remove_norm(found[1].eval())
    torch.testing.assert_close(found[1][0].weight, weight, check_dtype=False)
    assert set(found[1].state_dict()) == {"0.weight", "0.bias"}


def _sizes(layer):
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size


def test_which_layers_are_normalised():
    for options in ({"filter_out": "skip"}, {"prefix_filter_out": ["skip"]}):
        names = []
        for library in (torchdeq, ours):
            net = nn.ModuleDict({"skip": nn.Linear(2, 2), "keep": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
            library.norm.apply_norm(net, **options)
            names.append([name for name, _ in net.named_parameters()])
        assert sorted(names[0]) == sorted(names[1])
        assert "keep.weight_g" in names[1]
    args = argparse.Namespace(norm_type="none", hidden=3)
    net = nn.Linear(2, 2)
    ours.apply_norm(net, args=args)
    assert "weight" in dict(net.named_parameters())
    ours.apply_norm(net, args={"norm_type": "weight_norm", "norm_no_scale": True, "norm_target_norm": 2.0})
    torch.testing.assert_close(net.weight.norm(dim=1), torch.full((2,), 2.0))
    with pytest.raises(ContractError, match="normalised already"):
        ours.apply_norm(net)
    with pytest.raises(InputError, match="norm_type must be"):
        ours.apply_norm(nn.Linear(2, 2), "batch_norm")
    with pytest.raises(InputError, match="no option 'cilp'"):
        ours.apply_norm(nn.Linear(2, 2), cilp=True)


SHAPES = {"": (3, 5), "1d": (3, 4, 5), "2d": (3, 4, 5, 6), "3d": (3, 2, 4, 5, 6)}


@pytest.mark.parametrize("token_first", [True, False])
@pytest.mark.parametrize(
    "name", ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "DropToken1d", "DropToken2d", "DropToken3d"]
)
def test_dropouts(name, token_first):
    x = torch.ones(SHAPES[name.removeprefix("DropToken").removeprefix("Dropout")])
    options = {} if name == "Dropout" else {"token_first": token_first}
    masks = []
    for library in (torchdeq, ours):
        dropout = getattr(library.dropout, f"Variational{name}")(0.5, **options)
        torch.manual_seed(0)
        first = dropout(x)
        torch.testing.assert_close(dropout(x), first)
        assert set(first.unique().tolist()) <= {0.0, 2.0}
        masks.append(dropout.mask.shape)
        library.dropout.reset_dropout(dropout)
        assert dropout.mask is None
        torch.testing.assert_close(dropout.eval()(x), x)
    assert masks[0] == masks[1]
    if name != "Dropout":
        with pytest.raises(ContractError, match="dimensions"):
            getattr(ours, f"Variational{name}")(0.5)(torch.ones(2, 3))


@pytest.mark.parametrize(
    "options", [{}, {"gamma": 0.5}, {"weight_func": "linear"}, {"weight_func": "linear", "bias": 0.1}]
)
def test_corrections(options):
    states = [torch.full((2,), float(k)) for k in range(4)]
    args = (states, torch.ones(2), [torch.tensor(1.0), torch.tensor(3.0)])

    def crit(z, y, m):
        return (m * (z - y).square()).sum()

    for values in (False, True):
        mine = ours.fp_correction(crit, args, return_loss_values=values, **options)
        theirs = torchdeq.loss.fp_correction(crit, args, return_loss_values=values, **options)
        torch.testing.assert_close(mine, theirs)
    assert ours.fp_correction(crit, args, "const", c=2.0) == 2 * sum(
        ours.fp_correction(crit, args, "const", return_loss_values=True)[1]
    )
    with pytest.raises(InputError, match="no weights 'cubic'"):
        ours.fp_correction(crit, args, "cubic")


def test_measures_of_the_jacobian():
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 5, generator=draw, dtype=torch.float64)
    matrix = matrix + matrix.T
    z = torch.randn(3, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    found = []
    for library in (torchdeq, ours):
        torch.manual_seed(3)
        f = z @ matrix
        found.append((library.loss.jac_reg(f, z, 4), library.loss.power_method(z @ matrix, z, 500)[1]))
    torch.testing.assert_close(found[0], found[1])
    largest = torch.linalg.eigvalsh(matrix).abs().max()
    torch.testing.assert_close(found[1][1], largest.expand(3), rtol=1e-6, atol=1e-6)


PROGRAM = """
import argparse
import torch
from torchdeq import get_deq, reset_deq
from torchdeq.norm import apply_norm, reset_norm
from torchdeq.dropout import VariationalDropout
from torchdeq.loss import fp_correction, jac_reg
from torchdeq.solver import solver_stat_from_final_step
from torchdeq.utils import add_deq_args

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=8)
add_deq_args(parser)
args = parser.parse_args(ARGUMENTS)

class Layer(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        self.linear = torch.nn.Linear(args.width, args.width)
        self.dropout = VariationalDropout(0.0)
        apply_norm(self, args=args)
        self.deq = get_deq(args)

    def forward(self, x, **kwargs):
        reset_deq(self)
        f = lambda z: torch.tanh(self.dropout(0.5 * self.linear(z)) + x)
        z_out, info = self.deq(f, torch.zeros_like(x), **kwargs)
        z = z_out[-1].detach().requires_grad_()
        torch.manual_seed(7)
        return z_out, info, jac_reg(f(z), z), solver_stat_from_final_step(z, f(z), 1)

torch.manual_seed(0)
layer, head = Layer(args), torch.nn.Linear(args.width, 2)
optimiser = torch.optim.SGD([*layer.parameters(), *head.parameters()], 0.1)
losses = []
for step in range(5):
    torch.manual_seed(step)
    x = torch.randn(6, args.width)
    y = torch.randint(2, (6,))
    z_out, info, penalty, final = layer(x)
    loss = fp_correction(torch.nn.functional.cross_entropy, ([head(z) for z in z_out], y), gamma=args.gamma)
    optimiser.zero_grad()
    (loss + 0.1 * penalty).backward()
    optimiser.step()
    losses.append(loss.item())
    losses.append(float(final["rel_lowest"].max() < 1))
layer.eval()
z_out, info, *_ = layer(x, sradius_mode=args.sradius_mode)
result = losses, z_out[-1].detach(), sorted(info)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--ift --f_solver anderson --b_solver anderson --f_tol 1e-5 --b_tol 1e-5 --f_max_iter 60 --b_max_iter 60",
        "--f_solver broyden --grad 4 --tau 0.7 --f_tol 1e-5 --f_max_iter 60 --norm_type none",
        "--core indexing --n_states 3 --f_max_iter 9 --f_tol 1e-12 --norm_clip",
        "--core sliced --indexing 3 6 --f_max_iter 9 --grad 1 2 3 --f_tol 1e-12 --norm_no_scale --norm_target_norm 0.8",
        "--f_solver simple_fixed_point_iter --f_max_iter 20 --grad 3 --sup_loc 1 2",
    ],
)
def test_a_whole_program_by_another_import(arguments):
    """The shape of torchdeq's own example: parser, normalised layer, closure, several losses, a penalty, evaluation."""
    results = []
    for name in ("torchdeq", "homeostat.compat.torchdeq"):
        names = {"ARGUMENTS": arguments.split()}
        exec(PROGRAM.replace("from torchdeq", f"from {name}"), names)
        results.append(names["result"])
    (theirs, their_state, their_keys), (mine, my_state, my_keys) = results
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(my_state, their_state, rtol=2e-3, atol=2e-3)
    assert my_keys == their_keys


def test_small_helpers():
    torch.manual_seed(0)
    start = ours.mixed_init((50, 40))
    torch.manual_seed(0)
    torch.testing.assert_close(start, torchdeq.utils.mixed_init((50, 40)))
    layer = nn.Linear(3, 3)
    x = torch.ones(2, 3, requires_grad=True)
    ours.mem_gc(layer, (x,)).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 3))
