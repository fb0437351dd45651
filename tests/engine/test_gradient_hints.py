"""What a caller knows about the adjoint: where it may start, and what its inverse is like."""

import pytest
import torch
from draws import random
from torch import Tensor

import homeostat as hs
from homeostat import CG, GMRES, Anderson, Carry, Implicit, NormalCG, Picard, Shared, Status, Stop
from homeostat.engine import AdjointSolver
from homeostat.errors import ContractError

F64 = torch.float64
DEFAULT = Implicit().method
STOP = Stop(1e-9, max_steps=500)
METHODS = [Picard(), Anderson(), GMRES(), NormalCG(), DEFAULT]
PRECONDITIONED = [Picard(), Picard(damping=0.7), Anderson(), GMRES(), DEFAULT]


def step(z: Tensor, c: tuple[Tensor, Tensor]) -> Tensor:
    return torch.einsum("bij,bj->bi", c[0], z) + c[1]


def pulled(matrices: Tensor, g: Tensor, gradient: Implicit):
    """`u` for one matrix `J` a row, by way of the context's gradient; how the solve went."""
    shift = torch.zeros_like(g, requires_grad=True)
    solution = hs.solve(step, torch.zeros_like(g), (matrices, shift), stop=Stop(0.5, 1e-30), gradient=gradient)
    solution.state.backward(g)
    assert shift.grad is not None
    assert solution.adjoint is not None
    return shift.grad, solution.adjoint


def inverse(vector: Tensor, context: tuple[Tensor, Tensor]) -> Tensor:
    """The preconditioner to end all: `(I - J)^-T`, from the rows of the context."""
    system = torch.eye(vector.shape[1], dtype=context[0].dtype) - context[0]
    return torch.linalg.solve(system.mT, vector.to(system.dtype)[:, :, None])[:, :, 0].to(vector.dtype)


def dense(matrices: Tensor, g: Tensor) -> Tensor:
    return inverse(g, (matrices, g))


def contractions(rows: int, n: int) -> Tensor:
    gains = torch.linspace(0.05, 0.9, rows, dtype=F64)[:, None, None]
    return gains * torch.linalg.qr(random(1, rows, n, n)).Q


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_start_at_the_solution_leaves_nothing_to_do(method) -> None:
    matrices, g = contractions(4, 8), 1e12 * random(2, 4, 8)
    u, adjoint = pulled(matrices, g, Implicit(method, STOP, start=inverse))
    torch.testing.assert_close(u, dense(matrices, g), rtol=1e-8, atol=0)
    assert (adjoint.steps == 1).all()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_any_start_leads_to_the_same_solution(method) -> None:
    matrices, g = contractions(4, 8), random(3, 4, 8)
    g[1] = 0  # no gradient has the solution 0, wherever it begins
    u, adjoint = pulled(matrices, g, Implicit(method, STOP, start=lambda v, _: random(4, *v.shape)))
    torch.testing.assert_close(u, dense(matrices, g), rtol=1e-7, atol=1e-8)
    assert (adjoint.status == Status.CONVERGED).all()
    assert (u[1] == 0).all()


@pytest.mark.parametrize("method", PRECONDITIONED, ids=str)
def test_a_good_preconditioner_saves_steps_and_makes_picard_converge(method) -> None:
    expanding = 2.0 * torch.linalg.qr(random(5, 3, 20, 20)).Q
    matrices, g = torch.cat([contractions(3, 20), expanding]), random(6, 6, 20)
    u, adjoint = pulled(matrices, g, Implicit(method, STOP, preconditioner=inverse))
    torch.testing.assert_close(u, dense(matrices, g), rtol=1e-7, atol=1e-7)
    assert (adjoint.status == Status.CONVERGED).all()
    assert (adjoint.steps <= (30 if method == Picard(damping=0.7) else 4)).all()


@pytest.mark.parametrize("method", PRECONDITIONED, ids=str)
@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")
def test_the_residual_is_the_true_one_whatever_the_preconditioner(method) -> None:
    # One that all but hides a direction, one that makes too much of it, one that is nonsense, and one that is 0.
    matrices, g = contractions(4, 8), random(7, 4, 8)
    scales = torch.ones(4, 8, dtype=F64)
    scales[0, 3], scales[1, 3], scales[3] = 1e-7, 1e3, 0
    mix = torch.diag_embed(scales)
    mix[2] = random(8, 8, 8)
    shift = torch.zeros_like(g, requires_grad=True)
    gradient = Implicit(
        method, Stop(1e-6, max_steps=300), preconditioner=lambda v, c: torch.einsum("bij,bj->bi", c[2], v)
    )
    solution = hs.solve(step, torch.zeros_like(g), (matrices, shift, mix), stop=Stop(0.5, 1e-30), gradient=gradient)
    (u,) = torch.autograd.grad(solution.state, shift, g)
    adjoint = solution.adjoint
    assert adjoint is not None
    after = torch.einsum("bij,bi->bj", matrices, u) + g
    true = (after - u).norm(dim=1) / after.norm(dim=1)
    kept = adjoint.status != Status.DIVERGED
    torch.testing.assert_close(true[kept], adjoint.residual[kept], rtol=1e-4, atol=1e-13)
    assert ((adjoint.residual <= 1e-6) == (adjoint.status == Status.CONVERGED))[kept].all()
    if method == DEFAULT:  # NormalCG does without
        assert (adjoint.status == Status.CONVERGED).all()


def test_they_get_the_rows_that_are_solved_with_their_context() -> None:
    matrices, g = contractions(6, 8), random(9, 6, 8)
    g[2, 0] = torch.inf
    known = dense(matrices, g.nan_to_num(posinf=0.0))
    sizes = []

    def check(v: Tensor, c: tuple[Tensor, Tensor]) -> Tensor:
        sizes.append(len(v))
        places = [next(i for i in range(6) if torch.equal(matrices[i], m)) for m in c[0]]
        assert 2 not in places
        return torch.stack([0.5 * x if i % 2 else x for i, x in zip(places, v, strict=True)])

    def start(v: Tensor, c: tuple[Tensor, Tensor]) -> Tensor:
        assert torch.isfinite(v).all()
        return check(v, c)

    with pytest.warns(hs.errors.ConvergenceWarning, match="1 of 6"):
        u, _ = pulled(matrices, g, Implicit(GMRES(restart=2), STOP, start=start, preconditioner=check))
    good = [0, 1, 3, 4, 5]
    torch.testing.assert_close(u[good], known[good], rtol=1e-6, atol=1e-7)
    assert sizes[0] == 5 > min(sizes)


def test_vectors_have_the_structure_of_the_state() -> None:
    # Two measured leaves in a dict, a counter, and a leaf that is carried; a context with a shared part.
    seen = []

    def inner(s, c):
        a, b = s["a"], s["b"][0]
        return {"a": c["gain"] * b + c["x"], "b": (c["gain"] * a, s["b"][1] + 1), "n": s["n"] + 1}

    def hint(v, c):
        assert v["n"] is None
        assert v["b"][1] is None
        assert isinstance(c["gain"], Tensor)
        seen.append((v["a"].shape, v["b"][0].dtype, len(c["x"])))
        gain = c["gain"]  # u_a = g_a + gain u_b, u_b = g_b + gain u_a
        return {
            "a": (v["a"] + gain * v["b"][0]) / (1 - gain**2),
            "b": ((v["b"][0] + gain * v["a"]) / (1 - gain**2), None),
            "n": None,
        }

    x = random(10, 3, 2).requires_grad_()
    start = {"a": 0 * x.detach(), "b": (0 * x.detach(), Carry(torch.zeros(3))), "n": torch.zeros(3, dtype=torch.int64)}
    context = {"gain": Shared(torch.tensor(0.9, dtype=F64)), "x": x}
    for options in ({"start": hint}, {"preconditioner": hint}):
        gradient = Implicit(GMRES(), STOP, **options)
        solution = hs.solve(inner, start, context, stop=Stop(1e-10, max_steps=2000), gradient=gradient)
        (u,) = torch.autograd.grad(solution.state["a"].sum(), x)
        torch.testing.assert_close(u, torch.full_like(u, 1 / (1 - 0.81)))
        assert solution.adjoint is not None
        assert (solution.adjoint.steps <= 3).all()
    assert set(seen) == {(torch.Size([3, 2]), F64, 3)}


BROKEN = {
    "shape": lambda v, _: v[:, :3],
    "rows": lambda v, _: v.sum(0),
    "dtype": lambda v, _: v.float(),
    "nothing": lambda v, _: None,
    "structure": lambda v, _: (v, v),
    "nan": lambda v, _: v * torch.nan,
}


@pytest.mark.parametrize("name", ["start", "preconditioner"])
@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("method", [Picard(), GMRES(), DEFAULT], ids=str)
def test_what_breaks_the_contract_is_named(name: str, kind: str, method) -> None:
    matrices, g = contractions(2, 8), random(11, 2, 8)
    with pytest.raises(ContractError, match=name):
        pulled(matrices, g, Implicit(method, STOP, **{name: BROKEN[kind]}))


def test_what_makes_no_sense_is_refused_when_it_is_made() -> None:
    for name in ("start", "preconditioner"):
        with pytest.raises(TypeError, match=name):
            Implicit(**{name: torch.eye(3)})
    with pytest.raises(ValueError, match="symmetric"):
        Implicit(CG(), preconditioner=inverse)
    with pytest.raises(ValueError, match="NormalCG"):
        Implicit(NormalCG(), preconditioner=inverse)
    Implicit((GMRES(), NormalCG()), preconditioner=inverse)


def test_a_diagonal_preconditioner_helps_a_badly_scaled_system() -> None:
    # A row's rates are spread over [-1000, 0.9]: slow without, and every rate the same with.
    rates = torch.linspace(-1000, 0.9, 60, dtype=F64)
    matrices = (torch.diag(rates) + 0.01 * random(12, 60, 60))[None]
    g = random(13, 1, 60)
    _, plain = pulled(matrices, g, Implicit(GMRES(), STOP))
    u, better = pulled(matrices, g, Implicit(GMRES(), STOP, preconditioner=lambda v, _: v / (1 - rates)))
    torch.testing.assert_close(u, dense(matrices, g), rtol=1e-6, atol=1e-6)
    assert int(better.steps) < 0.5 * int(plain.steps)
    assert better.method.tolist() == [AdjointSolver.GMRES]


@pytest.mark.parametrize("name", ["start", "preconditioner"])
def test_a_function_that_closes_over_a_batch_is_named(name: str) -> None:
    # Rows leave before the last of them is solved; a start gets only those whose gradient is finite.
    matrices, g = contractions(8, 8), random(15, 8, 8)
    scales = torch.ones(8, 8, dtype=F64)
    if name == "start":
        g[3, 0] = torch.inf
    with pytest.raises(ContractError, match=rf"{name} closes over scales \(8, 8\)"):
        pulled(matrices, g, Implicit(GMRES(restart=2), STOP, **{name: lambda v, _: v * scales}))


class _Mixing(torch.autograd.Function):
    """The state as it is, whose gradient mixes the rows from some moment on."""

    mixes = False

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g + 0.01 * g.mean(0) if _Mixing.mixes else g


def test_rows_that_hear_of_one_another_in_the_adjoint_are_named_without_the_engines_insides(monkeypatch) -> None:
    rate = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.05, 0.2], dtype=F64)[:, None]
    weight = torch.tensor(0.9, dtype=F64, requires_grad=True)
    state = hs.solve(
        lambda z, c: torch.tanh(weight * c * _Mixing.apply(z) + c), torch.zeros(8, 4, dtype=F64), rate,
        stop=Stop(1e-12), gradient=Implicit(Picard(), Stop(1e-12)),
    ).state  # fmt: skip
    monkeypatch.setattr(_Mixing, "mixes", True)
    with pytest.raises(ContractError, match="a gradient of other rows reaches row") as caught:
        state.sum().backward()
    assert not hasattr(caught.value, "__notes__")
