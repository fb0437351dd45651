"""The penalty and the spectral radius against dense Jacobians."""

import pytest
import torch

import homeostat as hs
from homeostat.errors import ContractError
from homeostat.nn import jacobian_penalty, spectral_radius

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_rows(*matrices):
    """A step whose Jacobian in row i is the i-th matrix."""
    stacked = torch.stack([torch.as_tensor(m, dtype=F64) for m in matrices])
    return (lambda z, a: torch.einsum("bij,bj->bi", a, z) + 1), torch.zeros(stacked.shape[:2], dtype=F64), stacked


def cell(z, c):
    return torch.tanh(z @ c["weight"] + c["x"])


def tanh_problem(rows: int = 3, width: int = 5):
    torch.manual_seed(0)
    context = {"x": torch.randn(rows, width, dtype=F64), "weight": hs.Shared(torch.randn(width, width, dtype=F64))}
    return torch.randn(rows, width, dtype=F64), context


def dense(z, c):
    """`(batch, n, n)`: the Jacobians, row by row."""
    bare = {"weight": c["weight"].value}
    return torch.stack([
        torch.func.jacrev(lambda row, x: cell(row[None], {"x": x, **bare})[0])(row, x[None])
        for row, x in zip(z, c["x"], strict=True)
    ])  # fmt: skip


def test_the_penalty_is_the_squared_frobenius_norm_over_n():
    z, c = tanh_problem()
    truth = dense(z, c).square().sum((1, 2)) / 5
    found = jacobian_penalty(cell, z, c, samples=4000, generator=generator())
    torch.testing.assert_close(found, truth, rtol=0.05, atol=0)
    assert found.shape == (3,)
    once = torch.stack([jacobian_penalty(cell, z, c, generator=generator(i)) for i in range(400)])
    torch.testing.assert_close(once.mean(0), truth, rtol=0.15, atol=0)  # one sample is unbiased too


def test_the_penalty_does_not_change_with_the_dimension():
    for n in (1, 16, 4096):
        found = jacobian_penalty(lambda z, _: 0.7 * z, torch.zeros(2, n, dtype=F64))
        torch.testing.assert_close(found, torch.full((2,), 0.49, dtype=F64))


def test_gradients_of_the_penalty():
    # With one unknown an example there is nothing random: the penalty is f'(z)^2.
    weight = torch.tensor(0.8, dtype=F64, requires_grad=True)
    z = torch.tensor([[0.3], [-1.2]], dtype=F64, requires_grad=True)
    shift = torch.tensor([[0.1], [0.2]], dtype=F64, requires_grad=True)
    jacobian_penalty(lambda s, c: torch.tanh(weight * s + c), z, shift).sum().backward()

    w, s, c = (x.detach().clone().requires_grad_() for x in (weight, z, shift))
    (w * (1 - torch.tanh(w * s + c) ** 2)).square().sum().backward()
    for found, truth in ((weight, w), (z, s), (shift, c)):
        torch.testing.assert_close(found.grad, truth.grad)


def test_the_penalty_through_a_solution_and_without_it():
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)

    def step(s, _):
        return torch.tanh(weight * s + 1)

    stop = hs.Stop(rtol=1e-14, max_steps=500)
    state = hs.solve(step, torch.zeros(1, 1, dtype=F64), stop=stop, gradient=hs.Implicit(stop=stop)).state

    def truth(w, through):
        z = torch.zeros(1, 1, dtype=F64)
        for _ in range(200):
            z = torch.tanh(w * z + 1)
        z = z if through else state.detach()
        return (w * (1 - torch.tanh(w * z + 1) ** 2)).square().sum()

    for through, at in ((True, state), (False, state.detach())):
        (found,) = torch.autograd.grad(jacobian_penalty(step, at).sum(), weight, retain_graph=True)
        expected = torch.func.grad(truth)(weight.detach(), through)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


def test_without_gradients_there_is_no_graph():
    z, c = tanh_problem()
    weight = torch.nn.Parameter(c["weight"].value)
    context = {**c, "weight": hs.Shared(weight)}
    with torch.no_grad():
        assert not jacobian_penalty(cell, z, context).requires_grad
        assert not spectral_radius(cell, z, context, differentiable=True).requires_grad
    assert jacobian_penalty(cell, z, context).requires_grad
    assert not spectral_radius(cell, z, context).requires_grad
    assert spectral_radius(cell, z, context, differentiable=True).requires_grad
    assert weight.grad is None
    with torch.inference_mode(), pytest.raises(ContractError, match=r"use torch\.no_grad"):
        spectral_radius(cell, z, c)


def rotation(modulus: float, angle: float) -> torch.Tensor:
    c, s = torch.cos(torch.tensor(angle, dtype=F64)), torch.sin(torch.tensor(angle, dtype=F64))
    return modulus * torch.stack([torch.stack([c, -s]), torch.stack([s, c])])


def test_spectral_radius_of_a_turn_scaled():
    step, z, a = linear_rows(rotation(0.9, 1.1), rotation(0.3, 3.0), rotation(1.4, 1.5707963))
    found = spectral_radius(step, z, a, generator=generator())
    torch.testing.assert_close(found, torch.tensor([0.9, 0.3, 1.4], dtype=F64))


def test_spectral_radius_of_symmetric_matrices():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 12, dtype=F64))[0]
    spectrum = torch.linspace(-0.8, 0.5, 12, dtype=F64)  # the largest in size is negative
    step, z, a = linear_rows(basis @ spectrum.diag() @ basis.T, torch.eye(12) * 0.25)
    found = spectral_radius(step, z, a, generator=generator())
    torch.testing.assert_close(found, torch.tensor([0.8, 0.25], dtype=F64), rtol=5e-3, atol=0)


def test_spectral_radius_of_matrices_that_are_not_normal():
    torch.manual_seed(1)
    shear = torch.tensor([[0.5, 40.0], [0.0, 0.4]], dtype=F64)  # norm 40, radius 0.5
    squeeze = torch.tensor([[5.0, 0.0], [0.0, 0.2]], dtype=F64)
    ellipse = squeeze @ rotation(0.9, 0.7) @ torch.linalg.inv(squeeze)  # a pair that turns on a long ellipse
    step, z, a = linear_rows(shear, ellipse)
    truth = torch.linalg.eigvals(a).abs().amax(1)
    torch.testing.assert_close(truth, torch.tensor([0.5, 0.9], dtype=F64))
    torch.testing.assert_close(spectral_radius(step, z, a, generator=generator()), truth, rtol=0.1, atol=0)
    closer = spectral_radius(step, z, a, iterations=1000, generator=generator())
    torch.testing.assert_close(closer, truth, rtol=0.01, atol=0)
    nilpotent = torch.diag(torch.ones(4, dtype=F64), 1)
    step, z, a = linear_rows(nilpotent, torch.zeros(5, 5))
    assert spectral_radius(step, z, a).tolist() == [0, 0]


def test_spectral_radius_of_a_cell():
    z, c = tanh_problem(4, 8)
    truth = torch.linalg.eigvals(dense(z, c)).abs().amax(1)
    found = spectral_radius(cell, z, c, iterations=400, generator=generator())
    torch.testing.assert_close(found, truth, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["symmetric", "one real", "negative", "two close", "pair"])
def test_the_derivative_of_the_spectral_radius(kind):
    torch.manual_seed(3)
    basis = torch.randn(4, 4, dtype=F64)
    core = torch.diag(torch.tensor([0.9, -0.3, 0.2, 0.1], dtype=F64))
    if kind == "symmetric":
        basis = torch.linalg.qr(basis)[0]
    if kind == "negative":
        core[0, 0] = -0.9
    if kind == "two close":
        core[1, 1] = 0.895
    if kind == "pair":
        core[:2, :2] = rotation(0.9, 0.8)
    matrix = (basis @ core @ torch.linalg.inv(basis)).requires_grad_()
    (truth,) = torch.autograd.grad(torch.linalg.eigvals(matrix).abs().max(), matrix)
    found = spectral_radius(
        lambda s, _: s @ matrix.T, torch.zeros(1, 4, dtype=F64), generator=generator(), differentiable=True
    )
    (gradient,) = torch.autograd.grad(found.sum(), matrix)
    torch.testing.assert_close(gradient, truth, rtol=1e-6, atol=1e-6)


def test_the_derivative_is_that_of_the_number_returned():
    torch.manual_seed(4)
    direction = torch.randn(3, 3, dtype=F64)
    matrix = torch.tensor([[0.7, 0.2, 0.0], [0.0, 0.3, 0.1], [0.1, 0.0, 0.2]], dtype=F64)

    def radius(t, differentiable=False):
        a = matrix + t * direction
        return spectral_radius(
            lambda s, _: s @ a.T, torch.zeros(1, 3, dtype=F64), iterations=120, generator=generator(),
            differentiable=differentiable,
        )  # fmt: skip

    t = torch.zeros((), dtype=F64, requires_grad=True)
    (found,) = torch.autograd.grad(radius(t, True).sum(), t)
    central = (radius(1e-6) - radius(-1e-6)) / 2e-6
    assert found.item() == pytest.approx(central.item(), rel=1e-6)


def test_rows_do_not_mix():
    z, c = tanh_problem()
    broken = z.clone()
    broken[1] = torch.nan
    for measure in (jacobian_penalty, spectral_radius):
        whole = measure(cell, z, c, generator=generator())
        found = measure(cell, broken, c, generator=generator())
        assert torch.equal(found[[0, 2]], whole[[0, 2]])
        assert found[1].isnan()


def test_nests_marks_and_leaves_that_are_not_measured():
    # Two measured leaves that drive each other, a carried one that must not count, and an integer one.
    def step(state, c):
        a, b, noise, count = state["a"], state["b"], state["noise"], state["count"]
        return {
            "a": c["gain"] * b[:, None].expand_as(a) + 100 * noise,
            "b": c["own"] * a.mean(1),
            "noise": 3 * noise,
            "count": count + 1,
        }

    state = {
        "a": torch.zeros(2, 3, dtype=F64),
        "b": torch.zeros(2),
        "noise": hs.Carry(torch.ones(2, 3, dtype=F64)),
        "count": torch.zeros(2, dtype=torch.int64),
    }

    def mixed(state, c):
        bare = {**state, "b": state["b"].double()}
        new = step(bare, c)
        return {**new, "b": new["b"].float()}

    context = {"gain": hs.Shared(0.5), "own": torch.tensor([0.5, 0.9])}
    found = spectral_radius(mixed, state, context)
    torch.testing.assert_close(found.float(), (0.5 * torch.tensor([0.5, 0.9])).sqrt())
    # ||J||_F^2 = 3 gain^2 + 3 (own / 3)^2, and four floating entries count.
    penalty = jacobian_penalty(mixed, state, context, samples=2000, generator=generator())
    truth = (3 * 0.25 + torch.tensor([0.5, 0.9]) ** 2 / 3) / 4
    torch.testing.assert_close(penalty.float(), truth, rtol=0.1, atol=0)


def test_a_context_made_from_the_state_is_held_fixed():
    z = torch.tensor([[0.5]], dtype=F64, requires_grad=True)
    found = jacobian_penalty(lambda s, c: 0.5 * s + c, z, 10 * z)
    assert found.item() == pytest.approx(0.25)


def test_a_step_that_ignores_its_state_and_no_rows():
    assert jacobian_penalty(lambda z, c: c, torch.zeros(2, 3), torch.ones(2, 3)).tolist() == [0, 0]
    assert spectral_radius(lambda z, c: c, torch.zeros(2, 3), torch.ones(2, 3)).tolist() == [0, 0]
    assert jacobian_penalty(lambda z, _: 0.5 * z, torch.zeros(0, 3)).shape == (0,)
    assert spectral_radius(lambda z, _: 0.5 * z, torch.zeros(0, 3)).shape == (0,)


def test_bad_input():
    with pytest.raises(ValueError, match="samples must be"):
        jacobian_penalty(lambda z, _: z, torch.zeros(2, 3), samples=0)
    with pytest.raises(ValueError, match="iterations must be a whole number, 2 or more"):
        spectral_radius(lambda z, _: z, torch.zeros(2, 3), iterations=1)
    with pytest.raises(ContractError, match="step changed state"):
        spectral_radius(lambda z, _: z[:, :2], torch.zeros(2, 3))
