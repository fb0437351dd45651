"""The linear systems that adjoint solvers are held against: drawn from their seed, and what they claim to be."""

import pytest
import torch
from benchmarks.adjoint import Attempt, worse
from benchmarks.systems import FAMILIES, System, random_system

import homeostat as hs
from homeostat.engine import AdjointSolver, Obstacle


@pytest.mark.parametrize("family", FAMILIES)
def test_a_system_follows_from_its_family_and_seed_and_can_be_solved(family: str) -> None:
    once, again, other = random_system(family, 2), random_system(family, 2), random_system(family, 4)
    assert once.name == again.name != other.name
    assert torch.equal(once.jacobian, again.jacobian)
    assert torch.equal(once.gradient, again.gradient)
    assert sum(once.sizes) == len(once.jacobian)
    matrix = torch.eye(len(once.jacobian), dtype=torch.float64) - once.jacobian
    u = torch.linalg.solve(matrix.T, once.gradient[0])[None]
    assert once.residual(u) < 1e-9
    assert once.residual(u + 1e-3 * u.abs().max()) > 1e-9


def smallest(system: System) -> float:
    return float(torch.linalg.svdvals(torch.eye(len(system.jacobian), dtype=torch.float64) - system.jacobian).min())


def radius(system: System) -> float:
    return float(torch.linalg.eigvals(system.jacobian).abs().max())


def norm(system: System) -> float:
    return float(torch.linalg.matrix_norm(system.jacobian, 2))


def test_families_are_what_they_say() -> None:
    for seed in range(8):
        system = {family: random_system(family, seed) for family in FAMILIES}
        normal = system["normal"].jacobian
        torch.testing.assert_close(normal @ normal.T, normal.T @ normal)
        assert radius(system["normal"]) < 1
        skew = system["non-normal"].jacobian
        assert norm(system["non-normal"]) > 1.5
        assert (skew @ skew.T - skew.T @ skew).norm() > 0.5 * skew.norm()
        assert 0.999 < radius(system["expanding"]) < 5.001
        assert smallest(system["expanding"]) > 1e-3
        assert 1e-7 < smallest(system["ill-conditioned"]) < 1.1e-2
        assert smallest(system["near-singular 1e-4"]) < 1.1e-4
        assert smallest(system["near-singular 1e-8"]) < 1.1e-8
        gain = torch.linalg.svdvals(system["rotations"].jacobian)
        torch.testing.assert_close(gain, gain[:1].expand_as(gain))
        nilpotent = system["nilpotent"].jacobian
        assert torch.equal(nilpotent, nilpotent.triu(1))
        assert norm(system["badly scaled"]) > 50
        assert len(system["badly scaled"].sizes) == 2
        assert len(system["several leaves"].sizes) == 3


def test_worse_is_not_solved_where_the_other_is_or_a_larger_residual() -> None:
    def attempt(status: hs.Status, told: float) -> Attempt:
        return Attempt(random_system("normal", 0), status, Obstacle.NONE, AdjointSolver.GMRES, told, told, 10)

    solved, near = attempt(hs.Status.CONVERGED, 1e-10), attempt(hs.Status.STALLED, 1e-3)
    far = attempt(hs.Status.MAX_STEPS, 1e-1)
    assert not worse(solved, solved)
    assert not worse(solved, far)
    assert not worse(near, far)
    assert worse(far, near)
    assert worse(near, solved)
    assert attempt(hs.Status.CONVERGED, 1e-6).false
    assert not far.false
