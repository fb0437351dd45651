"""What `measure_dynamics` found, as values."""

from dataclasses import dataclass

from homeostat.probes.columns import columns, percent
from homeostat.probes.dynamics.jacobians import CONVERGED
from homeostat.probes.figures import figure, interval
from homeostat.probes.results import Estimate


@dataclass(frozen=True)
class ExampleDynamics:
    """One example. None is what could not be measured; everything is None where the run failed."""

    index: int
    failed: bool
    """The run left the finite numbers."""
    residual: float | None
    """Relative residual after the last step: how much of a limit the place is where radius and norm are taken."""
    radius: float | None
    radius_converged: bool
    norm: float | None
    contraction: float | None
    """Mean ratio of successive step lengths over the last steps before rounding; None where it does not move."""
    lyapunov: float | None
    """Nats per step over the second half of the run, where the tangent has turned to where it grows most."""
    lyapunov_whole: float | None
    """The same over the whole run: what a difference at the start becomes, by step."""
    recovery: int | None
    """Steps until a perturbed limit is back; None where it is not within the budget."""


@dataclass(frozen=True)
class DynamicsRow:
    """One difficulty: medians over its examples with their intervals; a failed example counts as the worst."""

    difficulty: str
    examples: tuple[ExampleDynamics, ...]
    settled: Estimate
    """Share of examples whose last residual is within `settle_rtol`."""
    radius: Estimate
    norm: Estimate
    stable: Estimate
    """Share of examples with a radius below 1."""
    false_alarms: Estimate
    """Share of examples with a norm above 1 although the radius is below 1."""
    contraction: Estimate
    lyapunov: Estimate
    recovery: Estimate
    """Steps; infinite where half of the examples or more do not recover."""
    recovered: Estimate
    answer_kept: Estimate | None
    """Share of perturbed runs that end in the same decoded answer. None where answers are not known."""
    failed: int
    unconverged: int
    """Examples whose radius was not found to 1 %."""

    @property
    def count(self) -> int:
        return len(self.examples)


@dataclass(frozen=True, repr=False)
class Dynamics:
    """What `measure_dynamics` found; print it for a table."""

    model: str
    steps: int
    iterations: int
    perturbation: float
    tolerance: float
    settle_rtol: float
    rows: tuple[DynamicsRow, ...]

    def of(self, difficulty: str) -> DynamicsRow:
        """The row of this difficulty."""
        for row in self.rows:
            if row.difficulty == difficulty:
                return row
        raise KeyError(f"no difficulty {difficulty!r}; there are {[row.difficulty for row in self.rows]}")

    def __repr__(self) -> str:
        return _table(self)


def _table(found: Dynamics) -> str:
    heads = ["examples", "n", "radius", "norm", "radius < 1, %", "contraction", "Lyapunov", "recovery", "recovered, %"]
    judged = any(row.answer_kept is not None for row in found.rows)
    lines = [
        [
            row.difficulty,
            str(row.count),
            interval(row.radius),
            interval(row.norm),
            percent(row.stable),
            interval(row.contraction),
            interval(row.lyapunov),
            interval(row.recovery),
            percent(row.recovered),
            *([percent(row.answer_kept)] if judged else []),
        ]
        for row in found.rows
    ]
    notes = [
        "Medians [95 % interval]. radius, norm: of the Jacobian at the limit; a norm above 1 alone is a false alarm, "
        "differences die out where the radius is below 1. contraction: ratio of successive step lengths. Lyapunov: "
        f"nats per step. recovery: steps back to within {figure(found.tolerance)} from a perturbation of "
        f"{figure(found.perturbation)} of the limit's norm."
    ]
    for row in found.rows:
        low = row.settled.value
        if low < 1:
            notes.append(
                f"{row.difficulty}: {percent(row.settled)} % have settled (residual within {found.settle_rtol:g}); of "
                "the others, radius and norm are those of a place on the way."
            )
        if row.failed:
            notes.append(f"{row.difficulty}: {row.failed} of {row.count} runs failed; they count as the worst.")
        if row.unconverged:
            notes.append(
                f"{row.difficulty}: {row.unconverged} of {row.count} radii were not found to {CONVERGED:.0%} in "
                f"{found.iterations} iterations; they are on the low side."
            )
        if row.false_alarms.value > 0:
            notes.append(f"{row.difficulty}: {percent(row.false_alarms)} % have a norm above 1 and a radius below 1.")
    title = f"{found.model}: dynamics after {found.steps} steps"
    return "\n".join([title, *columns([*heads, *(["answer kept, %"] if judged else [])], lines), *notes])
