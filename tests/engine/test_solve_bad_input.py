"""What must not pass in silence, and what happens at the edges, with every method."""

import contextlib
import gc
import math
import warnings
import weakref

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat import Anderson, Broyden, Implicit, OneStep, Phantom, Picard, Status, Stop, Unrolled
from homeostat.engine import Neumann, Shine
from homeostat.errors import ContractError, ConvergenceWarning

F64 = torch.float64
METHODS = [Picard(), Anderson(), Broyden()]
GRADIENTS = [Implicit(), Phantom(), OneStep(), Neumann(), Unrolled(), Unrolled(last=2), Unrolled(checkpoint=True)]


@pytest.fixture(autouse=True)
def no_hook_is_left_behind():
    hooks = torch.nn.modules.module._global_forward_pre_hooks
    before = len(hooks)
    yield
    assert len(hooks) == before


# Tolerances below the precision of the dtype


@pytest.mark.parametrize(("dtype", "used"), [(torch.float32, 2**-27), (torch.bfloat16, 2**-11), (F64, 2**-56)])
@pytest.mark.parametrize("rtol", [1e-18, 1e-60, 1e-300])
def test_a_tolerance_below_the_precision_is_raised_with_a_warning(dtype, used, rtol):
    def solved(rtol):
        return hs.solve(lambda z, _: z / 3 + 1, torch.zeros(2, 3, dtype=dtype), stop=Stop(rtol), method=Picard())

    with pytest.warns(ConvergenceWarning, match="finer than") as seen:
        clamped = solved(rtol)
    assert len(seen) == 1
    assert seen[0].filename == __file__  # the caller's line
    assert f"{used:.2g} is used" in str(seen[0].message)
    with torch.no_grad():
        allowed = solved(used * 1.01)  # says nothing
    assert torch.equal(clamped.steps, allowed.steps)


def test_only_the_rows_whose_tolerance_is_too_fine_are_clamped():
    rtol = torch.tensor([1e-2, 1e-12, 0.0], dtype=F64)
    stop = Stop(rtol, 0.0, 40)
    with pytest.warns(ConvergenceWarning, match="rtol=1e-12 is finer than float32 can resolve; 7.5e-09 is used"):
        found = hs.solve(lambda z, _: z / 2 + 1, torch.zeros(3, 2), stop=stop, method=Picard(), gradient=OneStep())
    assert found.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.MAX_STEPS]
    assert found.steps[2] == 40  # no tolerance stays no tolerance
    assert found.steps[0] < 10 < found.steps[1]
    assert stop.rtol is rtol
    assert rtol.tolist() == [1e-2, 1e-12, 0.0]


def test_the_coarsest_leaf_says_what_can_be_resolved():
    start = (torch.zeros(1, 2, dtype=F64), torch.zeros(1, 2))
    with pytest.warns(ConvergenceWarning, match="finer than float32"):
        hs.solve(lambda s, _: (s[0] / 2 + 1, s[1] / 2 + 1), start, stop=Stop(1e-12))
    carried = (torch.zeros(1, 2, dtype=F64), hs.Carry(torch.zeros(1, 2, dtype=torch.bfloat16)))
    hs.solve(lambda s, _: (s[0] / 2 + 1, s[1]), carried, stop=Stop(1e-12))  # what is not measured limits nothing


# Batch statistics and chance


class Normalised(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), norm

    def forward(self, z, x):
        return torch.tanh(0.3 * self.norm(self.linear(z)) + x)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(6), nn.SyncBatchNorm(6), nn.BatchNorm1d(6, track_running_stats=False)], ids=repr
)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_batch_norm_in_training_mode_within_step_is_refused_by_name(method, grad, norm):
    cell = Normalised(norm).train()
    with torch.set_grad_enabled(grad):
        with pytest.raises(ContractError, match=f"{type(norm).__name__} in training mode"):
            hs.solve(cell, torch.zeros(4, 6), torch.randn(4, 6), method=method)
        with pytest.raises(ContractError, match=f"{type(norm).__name__} in training mode"):
            hs.nn.Equilibrium(cell, method=method)(torch.randn(4, 6))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_batch_norm_in_evaluation_mode_and_other_norms_are_fine(method):
    torch.manual_seed(1)  # maps that have one fixed point
    x = torch.randn(4, 6)
    for norm in (nn.BatchNorm1d(6).eval(), nn.LayerNorm(6), nn.GroupNorm(2, 6)):
        cell = Normalised(norm)
        cell.norm.train(not isinstance(norm, nn.BatchNorm1d))
        layer = hs.nn.Equilibrium(cell, method=method)
        found = layer.solve(x)
        assert (found.status == Status.CONVERGED).all()
        found.state.sum().backward()
        assert cell.linear.weight.grad is not None
        alone = layer.solve(x[1:2])
        torch.testing.assert_close(alone.state, found.state[1:2], rtol=0, atol=1e-3)


def test_batch_norm_elsewhere_in_the_model_is_nobodys_business():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)).train()
    layer = hs.nn.Equilibrium(Normalised(nn.LayerNorm(6)))
    layer(encoder(torch.randn(5, 3))).sum().backward()
    layer(encoder(torch.randn(5, 3)))
    assert encoder[1].num_batches_tracked == 2


@pytest.mark.parametrize("gradient", [Implicit(), Neumann()], ids=str)
def test_dropout_in_training_mode_warns_where_a_fixed_point_is_differentiated(gradient):
    torch.manual_seed(0)
    cell = Normalised(nn.Dropout(0.1)).train()
    with pytest.warns(ConvergenceWarning) as seen:
        hs.solve(cell, torch.zeros(2, 6), torch.randn(2, 6), stop=Stop(max_steps=10), gradient=gradient)
    assert any("Dropout in training mode" in str(warning.message) for warning in seen)


@pytest.mark.parametrize("drop", [nn.Dropout(0.5).eval(), nn.Dropout(0.0)], ids=["eval", "p=0"])
def test_dropout_that_does_nothing_is_not_warned_of(drop):
    torch.manual_seed(0)
    cell = Normalised(drop)
    hs.solve(cell, torch.zeros(2, 6), torch.randn(2, 6))
    cell.norm.train(drop.p == 0)
    hs.solve(cell, torch.zeros(2, 6), torch.randn(2, 6)).state.sum().backward()


NOISE = {
    "dropout": lambda z: nn.functional.dropout(torch.tanh(0.5 * z + 1), 0.5),
    "numbers": lambda z: torch.tanh(0.5 * z + torch.randn_like(z)),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("kind", NOISE)
def test_noise_that_lets_no_row_finish_is_called_noise(kind, method, batched, grad):
    torch.manual_seed(0)
    weight = torch.ones(16, requires_grad=True)

    def step(z):
        return NOISE[kind](z * weight)

    with torch.set_grad_enabled(grad), pytest.warns(ConvergenceWarning) as seen:
        found = hs.solve(step, torch.zeros(4, 16), method=method, batched=batched, stop=Stop(max_steps=60))
    assert (found.status == Status.MAX_STEPS).all()
    assert any("random numbers" in str(warning.message) for warning in seen)


def test_only_noise_is_called_noise():
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        drawn = torch.randn(4, 16)
        steps = {
            "slow": lambda z: 0.999 * z + 1,
            "drawn and dropped": lambda z: 0.999 * z + 1 + 0 * torch.randn_like(z),
            "drawn before": lambda z: 0.999 * z + drawn,
        }
        for step in steps.values():
            found = hs.solve(step, torch.zeros(4, 16), method=Picard(), stop=Stop(max_steps=9), batched=False)
            assert (found.status == Status.MAX_STEPS).all()
        noisy = lambda z: 0.5 * z + torch.randn_like(z)  # noqa: E731
        hs.solve(noisy, torch.zeros(4, 16), stop=Stop(rtol=0, max_steps=9))  # was not asked to come to an end


def test_naming_noise_draws_no_numbers():
    def after(step):
        torch.manual_seed(3)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            hs.solve(step, torch.zeros(4, 16), method=Picard(), stop=Stop(max_steps=5), batched=False)
        return torch.rand(1)

    def step(z):
        return 0.5 * z + torch.randn_like(z)

    torch.manual_seed(3)
    for _ in range(5):
        torch.randn(4, 16)
    wanted = torch.rand(1)
    assert torch.equal(after(step), wanted)


# Dtypes that do not fit


class Mixed(nn.Module):
    def __init__(self, make, dtype) -> None:
        super().__init__()
        self.inner = make(4, 4, **({} if make is nn.Linear else {"kernel_size": 1}), dtype=dtype)

    def forward(self, z, x):
        return torch.tanh(0.5 * self.inner(z) + x)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("make", [nn.Linear, nn.Conv1d])
def test_a_state_and_weights_of_two_dtypes_are_both_named(make, method):
    shape = (2, 4) if make is nn.Linear else (2, 4, 3)
    for state, weights in ((F64, torch.float32), (torch.float32, F64)):
        with pytest.raises(ContractError) as caught:
            hs.solve(
                Mixed(make, weights), torch.zeros(shape, dtype=state), torch.zeros(shape, dtype=state), method=method
            )
        for part in ("state is " + str(state)[6:], "weight is " + str(weights)[6:]):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
    weight = torch.eye(4)
    with pytest.raises(ContractError, match=r"state is float64, weight is float32"):
        hs.solve(lambda z: torch.tanh(weight @ z), torch.zeros(4, dtype=F64), method=method, batched=False)


# Options


@pytest.mark.parametrize("method", [Anderson, Broyden, "anderson", "Broyden()", hs.Stop()])
def test_methods_are_made_objects(method):
    with pytest.raises(TypeError, match=r"method must be an instance such as hs\.Anderson"):
        hs.solve(lambda z, _: z, torch.zeros(1, 1), method=method)


@pytest.mark.parametrize("keyword", ["anderson", "tol", "memory", "rtol", "compile_", "Trace"])
def test_unknown_keywords(keyword):
    with pytest.raises(TypeError, match=keyword):
        hs.solve(lambda z, _: z, torch.zeros(1, 1), **{keyword: 1})


@pytest.mark.parametrize("make", [Anderson, Broyden])
@pytest.mark.parametrize("memory", [0, -3, 2.0, True, None, "5"])
def test_impossible_memories(make, memory):
    with pytest.raises(ValueError, match="memory must be a whole number, 1 or more"):
        make(memory=memory)


@pytest.mark.parametrize("make", [Picard, Anderson])
@pytest.mark.parametrize("damping", [0, -0.5, 1.5, math.nan, math.inf, True, None])
def test_impossible_dampings(make, damping):
    with pytest.raises(ValueError, match="damping must be above 0 and at most 1"):
        make(damping=damping)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_one_tolerance_a_row_means_one_for_every_row(method):
    for stop in (Stop(rtol=torch.full((2,), 1e-3)), Stop(max_steps=torch.full((4,), 3))):
        with pytest.raises(ContractError, match=r"has [24] entries, the state has 3 rows"):
            hs.solve(lambda z, _: z, torch.zeros(3, 1), method=method, stop=stop)


# Edges


@pytest.mark.parametrize("returns", ["last", "best"])
@pytest.mark.parametrize("gradient", [*GRADIENTS, Shine()], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_no_rows_and_no_steps(method, gradient, returns):
    truncated = isinstance(gradient, Unrolled) and gradient.last is not None and returns == "best"
    foreign = isinstance(gradient, Shine) and not isinstance(method, Broyden)
    if truncated or foreign:
        weight = torch.full((3,), 0.5, requires_grad=True)
        with pytest.raises(ContractError, match=r"Unrolled\(last=None\)|Broyden"):
            hs.solve(lambda z, _: weight * z, torch.ones(2, 3), method=method, gradient=gradient, returns=returns)
        return
    weight = torch.full((3,), 0.5, requires_grad=True)
    options = {"method": method, "gradient": gradient, "returns": returns}
    empty = hs.solve(lambda z, c: weight * z + c, torch.zeros(0, 3), torch.zeros(0, 3), **options)
    assert empty.state.shape == (0, 3)
    assert empty.steps.shape == empty.status.shape == empty.residual.shape == (0,)
    assert empty.row_evaluations == 0
    if empty.state.requires_grad:
        empty.state.sum().backward()
        assert weight.grad is None or not weight.grad.any()
    start = torch.randn(2, 3)
    # MAX_STEPS is no convergence, and said where a gradient is asked for; what was not computed needs none.
    with torch.no_grad():
        none = hs.solve(lambda z, c: weight * z + c, start, torch.ones(2, 3), stop=Stop(max_steps=0), **options)
    assert torch.equal(none.state, start)
    assert none.steps.tolist() == [0, 0]
    assert none.status.tolist() == [Status.MAX_STEPS] * 2
    assert none.row_evaluations == 0


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1, 1), (3,)])
def test_one_row_and_one_unknown(method, shape):
    found = hs.solve(lambda z, _: torch.cos(z), torch.zeros(shape, dtype=F64), method=method, stop=Stop(1e-12))
    assert (found.status == Status.CONVERGED).all()
    torch.testing.assert_close(found.state, torch.full(shape, 0.7390851332151607, dtype=F64))
    assert found.steps.shape == shape[:1]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("empty", [(2, 0), (2, 0, 3), (2, 3, 0)])
def test_leaves_without_elements(method, empty):
    start = (torch.zeros(empty, dtype=F64), torch.zeros(2, 1, dtype=F64), torch.zeros(2, 2))
    found = hs.solve(lambda s, _: (s[0] + 1, s[1] / 2 + 1, s[2]), start, method=method, stop=Stop(1e-6))
    assert (found.status == Status.CONVERGED).all()
    assert found.state[0].shape == empty
    torch.testing.assert_close(found.state[1], torch.full((2, 1), 2.0, dtype=F64), rtol=1e-5, atol=0)
    lone = hs.solve(lambda z, _: z + 1, torch.zeros(empty), method=method)
    assert lone.status.tolist() == [Status.CONVERGED] * 2
    assert lone.steps.tolist() == [1, 1]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_huge_and_tiny_numbers(method):
    scale = torch.tensor([1e-30, 1e-3, 1e3, 1e27])[:, None]
    found = hs.solve(lambda z, s: 0.9 * z + s, torch.zeros(4, 3), scale, method=method, stop=Stop(1e-5, 0.0, 300))
    assert (found.status == Status.CONVERGED).all()
    torch.testing.assert_close(found.state / scale, torch.full((4, 3), 10.0), rtol=1e-3, atol=0)
    with torch.no_grad():
        beyond = hs.solve(lambda z, _: z, torch.full((1, 2), 1e37), method=method)
    assert beyond.status.item() == Status.DIVERGED
    assert beyond.state.isfinite().all()


# A step that breaks its contract late, or raises


class Late:
    """Behaves for two steps, and then does something else."""

    def __init__(self, then) -> None:
        self.calls, self.then = 0, then

    def __call__(self, state, context):
        self.calls += 1
        a, b = state
        good = (0.9 * a + context, 0.8 * b + 1)
        return self.then(*good) if self.calls == 3 else good


class Broken(Exception):
    pass


def broken(*_):
    raise Broken("from within")


BREAKS = {
    "dtype": (lambda a, b: (a, b.double()), ContractError, r"step changed state\[1\]: float32 \(3, 2\)"),
    "shape": (lambda a, b: (a[:, :1], b), ContractError, r"step changed state\[0\]: float32 \(3, 4\) .* became"),
    "rows": (lambda a, b: (a, b[:2]), ContractError, r"step changed state\[1\]"),
    "device": (lambda a, b: (a.to("meta"), b), ContractError, r"state\[0\].*on cpu became .*on meta"),
    "structure": (lambda a, b: (a, b, b), ContractError, r"structure of its state: state\[2\] is new"),
    "container": (lambda a, b: [a, b], ContractError, "structure of its state"),
    "nothing": (lambda a, b: None, ContractError, "structure of its state"),
    "a number": (lambda a, b: (a, 1.0), ContractError, r"step changed state\[1\]: .* became a float"),
    "exception": (broken, Broken, "from within"),
    "interrupt": (lambda a, b: (_ for _ in ()).throw(KeyboardInterrupt), KeyboardInterrupt, None),
}


@pytest.mark.parametrize("gradient", [None, Implicit(), Unrolled(), Unrolled(last=1)], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("what", BREAKS)
def test_a_step_that_breaks_its_contract_late(what, method, gradient):
    then, error, message = BREAKS[what]
    step = Late(then)
    start = (torch.zeros(3, 4), torch.ones(3, 2))
    context = torch.ones(3, 4, requires_grad=gradient is not None)
    with torch.set_grad_enabled(gradient is not None):
        with pytest.raises(error, match=message) as seen:
            hs.solve(step, start, context, method=method, gradient=gradient or OneStep())
        assert step.calls == 3
        if error is not ContractError:
            assert seen.value.__cause__ is None
        # Nothing is half-done: the arguments are what they were, and the same solve goes well now.
        assert not start[0].any()
        assert (start[1] == 1).all()
        assert context.grad is None
        found = hs.solve(step, start, context, method=method, gradient=gradient or OneStep(), stop=Stop(1e-6))
        plain = gradient == Unrolled(last=1)  # its last step is, and may be too little where Anderson's was enough
        assert plain or (found.status == Status.CONVERGED).all()
        assert torch.is_grad_enabled() is (gradient is not None)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_an_exception_in_the_first_step_leaves_no_hook_and_no_state_behind(method):
    class Cell(nn.Module):
        def forward(self, z, x):
            raise Broken

    start, layer = torch.zeros(2, 3), hs.nn.Equilibrium(Cell(), method=method)
    with pytest.raises(Broken):
        layer(start)
    # A module that would be refused within `step` may be called outside of it.
    nn.BatchNorm1d(3).train()(torch.randn(4, 3))


def test_a_solve_within_a_step_leaves_no_hook_behind():
    def outer(z, _):
        inner = hs.solve(lambda y, c: 0.5 * y + c, torch.zeros_like(z), 0.1 * z + 1, stop=Stop(1e-7))
        return inner.state

    with torch.no_grad():
        found = hs.solve(outer, torch.zeros(2, 3, dtype=F64), stop=Stop(1e-6))
    torch.testing.assert_close(found.state, torch.full((2, 3), 2.5, dtype=F64), rtol=1e-5, atol=0)
    nn.BatchNorm1d(3).train()(torch.randn(4, 3))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_failed_solve_keeps_nothing_alive(method):
    held = []

    def step(z, c):
        held.append(torch.ones(1, 3))
        if len(held) == 8:
            raise Broken
        return 0.99 * z + c + held[-1]

    context = torch.zeros(2, 3, requires_grad=True)
    with contextlib.suppress(Broken):
        hs.solve(step, torch.zeros(2, 3), context, method=method, gradient=Unrolled())
    last = weakref.ref(held[-2])
    held.clear()
    gc.collect()
    assert last() is None


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_step_that_writes_into_its_state_is_refused(method):
    with pytest.raises(ContractError, match="in place"):
        hs.solve(lambda z, _: z.mul_(0.5).add_(1), torch.zeros(2, 3), method=method)
    with pytest.raises(ContractError, match=r"state\['b'\] in place"):
        hs.solve(
            lambda s, _: {"a": s["a"] / 2, "b": s["b"].add_(1)},
            {"a": torch.ones(2, 3), "b": torch.ones(2)},
            method=method,
        )
