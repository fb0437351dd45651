"""`homeostat.compat.torchdeq` beside torchdeq itself, on the same maps: values, gradients, statistics."""

import argparse
import inspect
import pickle

import pytest
import torch
import torchdeq
from torch import nn

import homeostat as hs
from homeostat.compat import torchdeq as ours
from homeostat.errors import ContractError, InputError

BOTH = (torchdeq, ours)
SOLVERS = ["fixed_point_iter", "simple_fixed_point_iter", "anderson", "broyden"]


class Cell(nn.Module):
    """A contraction of one tensor, or of two of different shapes."""

    def __init__(self, width=12, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(width, width, dtype=dtype)
        self.second = nn.Linear(width, width, dtype=dtype)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.mul_(0.5 / torch.linalg.matrix_norm(layer.weight, 2))

    def forward(self, z, x):
        return torch.tanh(self.first(z) + x)

    def pair(self, a, b, x):
        b = b.flatten(1)
        return [torch.tanh(self.first(b) + x), torch.tanh(self.second(a) - x).view(len(a), 3, 4)]


def problem(rows=6):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 12, generator=draw, dtype=torch.float64, requires_grad=True)
    aim = torch.randn(rows, 12, generator=draw, dtype=torch.float64)
    return Cell(), x, aim


def run(library, *, pair=False, kwargs=None, train=True, **options):
    """States, statistics and gradients of a layer of either library."""
    cell, x, aim = problem()
    deq = library.get_deq(**options).train(train)
    start = torch.zeros(6, 12, dtype=torch.float64)
    if pair:
        states, info = deq(lambda a, b: cell.pair(a, b, x), [start, start.view(6, 3, 4)], **(kwargs or {}))
        loss = sum(((a + b.flatten(1)) * aim).sum() for a, b in states)
    else:
        states, info = deq(lambda z: cell(z, x), start, **(kwargs or {}))
        loss = sum((z * aim).sum() for z in states)
    gradients = torch.autograd.grad(loss, [cell.first.weight, x]) if train else []
    return states, info, gradients


def assert_same(mine, theirs, tol=1e-5):
    flat = [[t for z in found for t in (z if isinstance(z, list) else [z])] for found in (mine, theirs)]
    assert len(flat[0]) == len(flat[1])
    for a, b in zip(*flat, strict=True):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("core", ["sliced", "indexing"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers(solver, core, train):
    options = {"f_solver": solver, "core": core, "f_tol": 1e-9, "b_tol": 1e-9, "f_max_iter": 80, "b_max_iter": 80}
    theirs, info, gradients = run(torchdeq, ift=True, train=train, **options)
    mine, own, own_gradients = run(ours, ift=True, train=train, **options)
    assert_same(mine, theirs)
    assert_same(own_gradients, gradients)
    assert set(own) == set(info)
    for key in ("nstep", "abs_lowest", "rel_lowest", "sradius"):
        assert own[key].shape == info[key].shape, key
    if solver.endswith("fixed_point_iter"):  # the same iteration: the same numbers, to float32
        for key in own:
            torch.testing.assert_close(own[key].float(), info[key].float(), rtol=1e-4, atol=1e-7, msg=key)


@pytest.mark.parametrize("mode", ["abs", "rel"])
@pytest.mark.parametrize("limit", [0, 3, 7, 30])
def test_statistics_and_stops_of_plain_iteration(mode, limit):
    options = {"f_solver": "fixed_point_iter", "f_stop_mode": mode, "f_tol": 1e-3, "f_max_iter": limit}
    theirs, info, _ = run(torchdeq, **options)
    mine, own, _ = run(ours, **options)
    assert_same(mine, theirs, 1e-12)
    for key in own:
        torch.testing.assert_close(own[key], info[key].float(), rtol=1e-5, atol=1e-8, msg=key)


@pytest.mark.parametrize("b_solver", ["fixed_point_iter", "anderson", "broyden"])
@pytest.mark.parametrize("hook", [True, False])
def test_implicit_gradient_of_two_tensors(b_solver, hook):
    options = {"ift": not hook, "hook_ift": hook, "b_solver": b_solver, "b_tol": 1e-10, "f_tol": 1e-10}
    options |= {"f_max_iter": 100, "b_max_iter": 100}
    theirs, _, gradients = run(torchdeq, pair=True, **options)
    mine, _, own_gradients = run(ours, pair=True, **options)
    assert isinstance(mine[0], list)
    assert_same(mine, theirs)
    assert_same(own_gradients, gradients)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_truncated_adjoint_is_truncated_alike(limit):
    options = {"ift": True, "b_max_iter": limit, "f_max_iter": 100, "f_tol": 1e-12}
    *_, theirs = run(torchdeq, **options)
    *_, mine = run(ours, **options)
    assert_same(mine, theirs, 1e-9)


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"grad": 1},
        {"grad": 5, "tau": 0.5},
        {"grad": [3]},
        {"grad": 6, "sup_gap": 2},
        {"grad": 6, "sup_loc": [2, 3], "tau": 0.8},
        {"grad": 6, "sup_loc": [2, 6]},
        {"n_states": 3},
        {"n_states": 4, "grad": 2, "tau": 0.7, "f_max_iter": 10},
        {"n_states": 2, "grad": [1, 3]},
        {"indexing": [2, 5], "f_max_iter": 9},
        {"n_states": 2, "ift": True, "b_max_iter": 80, "b_tol": 1e-10},
    ],
    ids=str,
)
@pytest.mark.parametrize("core", ["sliced", "indexing"])
def test_phantom_gradients_and_sampled_states(core, options, pair):
    options = {"f_max_iter": 12, "f_tol": 1e-14, "core": core, **options}
    theirs, info, gradients = run(torchdeq, pair=pair, **options)
    mine, own, own_gradients = run(ours, pair=pair, **options)
    assert len(mine) == len(theirs)
    assert_same(mine, theirs, 1e-9)
    assert_same(own_gradients, gradients, 1e-8)
    torch.testing.assert_close(own["nstep"], info["nstep"])


@pytest.mark.parametrize(
    "kwargs", [{"tau": 0.6}, {"return_final": True}, {"f_max_iter": 5}, {"f_max_iter": 5, "tau": 0.5}]
)
def test_options_of_one_call(kwargs):
    given = dict(kwargs)
    theirs, info, _ = run(torchdeq, kwargs={"solver_kwargs": kwargs}, f_tol=1e-6)
    mine, own, _ = run(ours, kwargs={"solver_kwargs": kwargs}, f_tol=1e-6)
    assert kwargs == given
    assert_same(mine, theirs, 1e-9)
    torch.testing.assert_close(own["abs_trace"], info["abs_trace"].float(), rtol=1e-5, atol=1e-8)


def test_evaluation_steps():
    for options in ({"eval_factor": 0.5}, {"eval_f_max_iter": 7}):
        theirs, info, _ = run(torchdeq, train=False, f_tol=1e-14, f_max_iter=11, **options)
        mine, own, _ = run(ours, train=False, f_tol=1e-14, f_max_iter=11, **options)
        assert_same(mine, theirs, 1e-12)
        assert own["abs_trace"].shape == info["abs_trace"].shape


def test_statistics_of_the_backward_pass():
    seen = {}
    for library in BOTH:
        infos = []
        kwargs = {"backward_writer": infos.append}
        run(library, ift=True, kwargs=kwargs, f_max_iter=60, f_tol=1e-10, b_max_iter=60, b_tol=1e-6)
        (seen[library],) = infos
    lowest = seen[ours]["abs_lowest"]
    assert lowest.shape == seen[torchdeq]["abs_lowest"].shape
    assert (lowest < 1e-6).all()


def test_a_map_that_couples_its_rows():
    """Rows are nodes of a graph here; one that is left behind at its own first good state would hold up the others."""
    draw = torch.Generator().manual_seed(3)
    mixing = torch.rand(5, 5, generator=draw, dtype=torch.float64)
    mixing = 0.8 * mixing / mixing.sum(1, keepdim=True)
    x = torch.zeros(5, 2, dtype=torch.float64)
    x[0] = 1.0
    exact = torch.linalg.solve(torch.eye(5, dtype=torch.float64) - mixing, x)
    for solver in SOLVERS[:1] + SOLVERS[2:]:
        source = x.clone().requires_grad_()
        deq = ours.get_deq(f_solver=solver, f_max_iter=300, f_tol=1e-10, ift=True, b_max_iter=300, b_tol=1e-10)
        (z,), _ = deq(lambda z, s=source: mixing @ z + s, torch.zeros_like(x))
        torch.testing.assert_close(z.detach(), exact, rtol=1e-7, atol=1e-7)
        z[:, 0].sum().backward()
        wanted = torch.linalg.solve(
            (torch.eye(5, dtype=torch.float64) - mixing).T, torch.ones(5, 1, dtype=torch.float64)
        )
        torch.testing.assert_close(source.grad[:, :1], wanted, rtol=1e-7, atol=1e-7)


def test_spectral_radius_in_evaluation():
    gain = torch.tensor([[0.5], [0.9]])
    _, info = ours.get_deq().eval()(lambda z: gain * z + 1, torch.zeros(2, 4), sradius_mode=True)
    torch.testing.assert_close(info["sradius"], gain[:, 0])
    _, info = ours.get_deq().eval()(lambda z: gain * z + 1, torch.zeros(2, 4))
    assert info["sradius"].tolist() == [0.0]


# Where it differs on purpose.


def test_evaluation_keeps_the_gradient_that_torchdeq_cuts():
    cell, x, aim = problem()
    for options in ({"ift": True, "b_max_iter": 80}, {"grad": 30}):
        layer = ours.get_deq(f_max_iter=80, f_tol=1e-10, **options)
        found = []
        for mode in (True, False):
            (z,), _ = layer.train(mode)(lambda z: cell(z, x), torch.zeros(6, 12, dtype=torch.float64))
            found.append(torch.autograd.grad((z * aim).sum(), x)[0])
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            (z,), _ = layer.eval()(lambda z: cell(z, x), torch.zeros(6, 12, dtype=torch.float64))
        assert not z.requires_grad


def test_a_solve_that_ends_early_still_returns_its_solution_and_every_state():
    cell, x, _ = problem()
    found = {}
    for library in BOTH:
        deq = library.get_deq(core="indexing", n_states=4, f_max_iter=100, f_tol=1e-8)
        found[library], info = deq(lambda z: cell(z, x), torch.zeros(6, 12, dtype=torch.float64))
        assert info["nstep"].max() < 50
    assert len(found[torchdeq]) == 1  # and that is the state of step 25
    assert len(found[ours]) == 4
    assert (cell(found[ours][-1], x) - found[ours][-1]).norm() < 1e-7


def test_one_nan_does_not_spoil_the_best_state():
    calls = []

    def step(z):
        calls.append(1)
        return z * float("nan") if len(calls) == 6 else 0.5 * z + 1

    (z,), info = ours.get_deq(f_max_iter=6).eval()(step, torch.zeros(2, 3))
    assert info["nstep"].tolist() == [5.0, 5.0]
    torch.testing.assert_close(z, torch.full((2, 3), 2 - 2 * 0.5**5))


def test_two_calls_before_one_backward():
    cell, x, _ = problem()
    deq = ours.get_deq(hook_ift=True, f_max_iter=60, b_max_iter=60, b_tol=1e-10, f_tol=1e-10)
    start = torch.zeros(6, 12, dtype=torch.float64)
    once = torch.autograd.grad(deq(lambda z: cell(z, x), start)[0][0].sum(), x)[0]
    twice = sum(deq(lambda z: cell(z, x), start)[0][0].sum() for _ in range(2))
    torch.testing.assert_close(torch.autograd.grad(twice, x)[0], 2 * once)


def test_second_derivatives_are_refused_and_not_wrong():
    cell, x, _ = problem()
    (z,), _ = ours.get_deq(ift=True)(lambda z: cell(z, x), torch.zeros(6, 12, dtype=torch.float64))
    (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        first.sum().backward()


def test_layers_can_be_pickled_and_leave_their_arguments_alone():
    options = {"f_solver": "anderson", "grad": [2]}
    deq = ours.get_deq(options, ift=True)
    assert options == {"f_solver": "anderson", "grad": [2]}
    again = pickle.loads(pickle.dumps(deq))
    assert again.options == deq.options
    assert "f_solver='anderson'" in repr(again)


def test_torchdeqs_own_options_are_all_known():
    """Every keyword of torchdeq's layers, with its default, and every argument of its parser."""
    known = {}
    for core in (torchdeq.core.DEQBase, torchdeq.core.DEQSliced, torchdeq.core.DEQIndexing):
        parameters = inspect.signature(core.__init__).parameters.values()
        known |= {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "args"}
    for name, default in known.items():
        ours.get_deq(**{name: default})
    parsers = []
    for library in BOTH:
        parser = argparse.ArgumentParser()
        library.add_deq_args(parser)
        parsers.append(vars(parser.parse_args([])))
    assert parsers[0] == parsers[1]
    ours.get_deq(argparse.Namespace(**parsers[0], hidden=3, lr=0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"f_maxiter": 3}, "did you mean 'f_max_iter'"),
        ({"colour": 3}, "no option 'colour'; there are"),
        ({"f_solver": "newton"}, "f_solver must be"),
        ({"f_max_iter": 0.5}, "f_max_iter must be a whole number"),
        ({"grad": 0}, "grad must be a whole number"),
        ({"grad": []}, "grad must be"),
        ({"grad": [1, 2], "n_states": 3}, "2 numbers for 3 returned states"),
        ({"tau": 0.0}, "tau must be"),
        ({"ift": "yes"}, "ift must be True or False"),
        ({"f_tol": float("nan")}, "f_tol must be"),
        ({"indexing": [7, 3]}, "indexing must rise"),
        ({"sup_gap": 5, "grad": 3}, "no state would be returned"),
        ({"no_stat": True}, "simple_fixed_point_iter"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises((InputError, ValueError), match=message):
        ours.get_deq(**options)
    if set(options) & {"f_maxiter", "colour"}:
        with pytest.raises(InputError, match=message):
            ours.get_deq(options)


def test_what_a_call_cannot_have():
    deq, start = ours.get_deq(), torch.zeros(2, 3)
    with pytest.raises(InputError, match="no option 'beta'"):
        deq(lambda z: z, start, solver_kwargs={"beta": 1.0})
    with pytest.warns(UserWarning, match="lam has no effect"):
        ours.get_deq(f_solver="anderson")(lambda z: 0.5 * z + 1, start, solver_kwargs={"lam": 1e-3})
    with pytest.warns(UserWarning, match="tau has no effect on the solver broyden"):
        ours.get_deq(f_solver="broyden")(lambda z: 0.5 * z + 1, start, solver_kwargs={"tau": 0.5})
    with pytest.raises(ContractError, match="step changed state"):
        deq(lambda z: z[:, :2], start)
    with pytest.raises(ContractError, match="z_init must be"):
        deq(lambda z: z, [1.0, 2.0])
    with pytest.raises(ContractError, match="BatchNorm1d"):
        deq(nn.BatchNorm1d(3), start)
    with pytest.raises(InputError, match="func must be a function"):
        deq(3, start)
    with pytest.raises(ImportError, match=r"no register_solver: homeostat\.solve"):
        from homeostat.compat.torchdeq import register_solver  # noqa: F401
    with pytest.warns(UserWarning, match="did you mean 'f_max_iter'"):
        ours.get_deq(argparse.Namespace(f_maxiter=3))


def test_solvers_as_functions():
    cell, x, _ = problem()
    start = torch.zeros(6, 12, dtype=torch.float64)
    with torch.no_grad():
        exact = hs.solve(cell, start, x, stop=hs.Stop(rtol=1e-12)).state
        for name in SOLVERS:
            options = {"max_iter": 40, "tol": 1e-9, "indexing": [3]}
            theirs = torchdeq.solver.get_solver(name)(lambda z, tau=1.0: cell(z, x), start, **options)
            mine = ours.get_solver(name)(lambda z: cell(z, x), start, **options)
            assert len(mine[1]) == len(theirs[1]) == 1 or name in ("anderson", "broyden")
            torch.testing.assert_close(mine[0], exact, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(theirs[0], exact, rtol=1e-3, atol=1e-3)
        z, fz = torch.ones(2, 3), torch.full((2, 3), 2.0)
        for args in ((z, fz, 4), ([z, z], [fz, z], 4)):
            mine, theirs = (library.solver.solver_stat_from_final_step(*args) for library in BOTH)
            for key in theirs:
                torch.testing.assert_close(mine[key], theirs[key])
