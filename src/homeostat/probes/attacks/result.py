"""What `attack` found, as values."""

from dataclasses import dataclass

from homeostat.probes.columns import columns, number, percent
from homeostat.probes.results import Estimate


@dataclass(frozen=True, repr=False)
class AttackRow:
    """The examples of one difficulty, each from the worst start that was found for it.

    Worst is meant figure by figure: one start may give the lowest cosine of an example, and another one a wrong
    answer. The model's own start counts among them. An example counts as failed where a state is not finite or out of
    bounds: its cosine is 0 then, or what another start made of it if that is lower, its answer wrong and another one.
    """

    difficulty: str
    count: int
    exact_clean: Estimate | None
    """Share answered right from the model's own start. None without a judge."""
    exact_attacked: Estimate | None
    """Share answered right from every start that was tried."""
    exact_random: Estimate | None
    """The same over the starts that needed no gradient: random ones, and another example's limit."""
    agreement: Estimate | None
    """Share whose decoded answer is the clean one from every start. None without a decoder."""
    agreement_random: Estimate | None
    cosine_attacked: Estimate
    """Mean over examples of the lowest cosine of the last state with the clean one, flattened; cycles of one period up
    to their phase."""
    cosine_random: Estimate
    """The same over the starts that needed no gradient."""
    null: Estimate
    """Cosine between *different* examples' clean limits: what it is worth nothing."""
    radius: float
    """Of the ball, as root mean square over the floating entries of a state."""
    length: float
    """The same as Euclidean length, that of the largest state."""
    unit: float
    """Median over examples of the root mean square of the clean limits: the radius in absolute terms over that asked
    for."""
    failed: int
    """Examples that were not finite from some start, the own one included."""
    evaluations: int
    """Evaluations of `step`, times examples; those that the way back takes again are counted, products with its
    Jacobian are not."""
    cosines: tuple[float, ...]
    cosines_random: tuple[float, ...]
    agreements: tuple[bool, ...] | None
    corrects: tuple[bool, ...] | None
    """By example, as `cosine_attacked`, `agreement` and `exact_attacked`."""

    def __repr__(self) -> str:
        return "\n".join(_lines((self,)))


@dataclass(frozen=True, repr=False)
class Attack:
    """How far an adversary who may choose the start gets; print it for a table."""

    model: str
    objective: str
    method: str
    radius: float
    """In units of the typical size of a state."""
    steps: int
    restarts: int
    iterations: int
    grad_steps: int
    rtol: float
    seed: int
    dtype: str
    device: str
    rows: tuple[AttackRow, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    """What could not be done, and why."""

    def of(self, difficulty: str) -> AttackRow:
        """The row of this difficulty."""
        for row in self.rows:
            if row.difficulty == difficulty:
                return row
        raise KeyError(f"no difficulty {difficulty!r}; there are {[row.difficulty for row in self.rows]}")

    @property
    def evaluations(self) -> int:
        """Evaluations of `step`, times examples, over all difficulties."""
        return sum(row.evaluations for row in self.rows)

    def __repr__(self) -> str:
        text = [
            f"{self.model}: starts within {self.radius:g} times the size of a state, chosen against its "
            f"{'answer' if self.objective == 'answer' else 'limit'} ({self.method}, {self.restarts} restarts of "
            f"{self.iterations} iterations through {self.grad_steps} steps), each run for {self.steps} steps "
            f"({self.dtype})",
            *_lines(self.rows),
            "Worst over all starts of an example. random: those that needed no gradient. exact, agreement: %. null: "
            "between different examples.",
            *self.notes,
        ]
        return "\n".join(text)


def _lines(rows: tuple[AttackRow, ...]) -> list[str]:
    heads = [
        "examples",
        "n",
        "exact",
        "attacked",
        "random",
        "agreement",
        "cosine",
        "random",
        "null",
        "radius",
        "failed",
    ]
    lines = [
        [
            row.difficulty,
            str(row.count),
            percent(row.exact_clean),
            percent(row.exact_attacked),
            percent(row.exact_random),
            percent(row.agreement),
            number(row.cosine_attacked),
            number(row.cosine_random),
            number(row.null),
            f"{row.radius:.3g}",
            str(row.failed),
        ]
        for row in rows
    ]
    return columns(heads, lines)
