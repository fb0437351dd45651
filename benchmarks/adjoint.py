"""Solving for gradients: 200 linear systems, by each method alone and by several in turn: products and residuals."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import homeostat as hs
from benchmarks.results import Figure, Target
from benchmarks.systems import FAMILIES, System, random_systems
from homeostat import GMRES, Anderson, NormalCG
from homeostat.engine import AdjointSolver, Obstacle

_STEPS = 500
_DEFAULT = "Anderson, GMRES, NormalCG in turn (default)"
_METHODS: dict[str, Any] = {
    "Anderson": Anderson(),
    "GMRES": GMRES(),
    "GMRES (restart 20)": GMRES(restart=20),
    "NormalCG": NormalCG(),
    _DEFAULT: hs.Implicit().method,
}
# Float32 rounds what is returned and what the residual is measured with.
_ROUNDING = 1.02


@dataclass(frozen=True)
class Attempt:
    """One system by one method: what was said of it, and what is true."""

    system: System
    status: hs.Status
    obstacle: Obstacle
    solver: AdjointSolver
    told: float
    true: float
    products: int

    @property
    def reached(self) -> bool:
        return self.status == hs.Status.CONVERGED

    @property
    def false(self) -> bool:
        """Called converged, and not within its tolerance."""
        return self.reached and self.true > _ROUNDING * self.system.rtol

    @classmethod
    def of(cls, system: System, method: Any) -> "Attempt":
        u, adjoint = system.solve(hs.Implicit(method, hs.Stop(system.rtol, max_steps=_STEPS)))
        codes = hs.Status(int(adjoint.status)), Obstacle(int(adjoint.obstacle)), AdjointSolver(int(adjoint.method))
        return cls(system, *codes, float(adjoint.residual), system.residual(u), adjoint.row_evaluations)

    def __str__(self) -> str:
        reason = f", {self.obstacle}" if self.obstacle else ""
        return f"{self.system.name}: {self.true:.1e} by {self.solver}, {self.status}{reason}"


def worse(ours: Attempt, alone: Attempt) -> bool:
    """Whether an attempt is worse than another: not solved where that one is, or left with a larger residual."""
    return not ours.reached and (alone.reached or ours.told > alone.told)


def measure(device: str = "cpu", share: float = 1.0) -> Iterator[Figure]:
    """Systems that reach their tolerance, by method; the default against GMRES alone."""
    if device != "cpu":  # products are the same anywhere
        return
    systems = list(random_systems(max(2, round(20 * share))))
    found = {name: [Attempt.of(system, method) for system in systems] for name, method in _METHODS.items()}
    for name, attempts in found.items():
        left = [str(a) for a in attempts if not a.reached]
        products, worst = sum(a.products for a in attempts), max(a.true for a in attempts)
        said = Counter(f"{a.status}{f', {a.obstacle}' if a.obstacle else ''}" for a in attempts if not a.reached)
        note = f"{products:,} products, largest residual {worst:.1e}"
        note += "".join(f"; {count} {kind}" for kind, count in said.items())
        yield Figure(
            "adjoint",
            f"adjoint of {len(systems)} linear systems, {_STEPS} steps a method: reached their tolerance, {name}",
            100 * sum(a.reached for a in attempts) / len(systems),
            "%",
            note=note,
            details={
                "left": left,
                "families": {
                    family: sum(a.reached for a in attempts if a.system.name.startswith(f"{family} "))
                    for family in FAMILIES
                },
                "products": [[a.system.name, a.products] for a in attempts],
            },
        )
    ours, alone = found[_DEFAULT], found["GMRES"]
    lost = [str(a) for a, b in zip(ours, alone, strict=True) if worse(a, b)]
    name = "the same systems, default worse than GMRES alone (not solved where it is, or a larger residual)"
    yield Figure("adjoint", name, len(lost), "systems", target=Target(0), details={"systems": lost})
    false = [f"{name}: {a}" for name, attempts in found.items() for a in attempts if a.false]
    name = "the same systems, all methods: called converged and not within tolerance in float64"
    yield Figure("adjoint", name, len(false), "systems", target=Target(0), details={"systems": false})
    ratio = sum(a.products for a in ours) / sum(a.products for a in alone)
    yield Figure("adjoint", "the same systems, products of the default over those of GMRES alone", ratio, "x")
