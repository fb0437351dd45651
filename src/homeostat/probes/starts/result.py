"""What `align_starts` found, as values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from homeostat.probes import estimates
from homeostat.probes.columns import columns, number, percent
from homeostat.probes.results import Estimate


@dataclass(frozen=True, repr=False)
class StartAlignment:
    """Where the runs from one start end, at one difficulty, compared with the runs from `reference`.

    The tuples hold one entry an example, in the order of the examples. An example counts as failed where a state is
    not finite or out of bounds, in this run or in the one that it is compared with: its cosine is 0, its distance
    infinite, its answer wrong and another one.
    """

    difficulty: str
    start: str
    reference: str
    """`zeros` or `own`: the start of the runs that these are compared with."""
    cosine: Estimate
    """Mean cosine of the two last states of an example, over its floating leaves, flattened; cycles of one period up
    to their phase. 1 is the same. NaN where start and reference are the same state, so that there is nothing to
    compare."""
    plain: Estimate
    """The same without regard to phases, as the paper and its code have it."""
    phase_aligned: int
    """Examples that were compared up to phase: both ends are cycles of one period."""
    null: Estimate
    """The same as `cosine` between *different* examples' last states (of the reference): what it is worth nothing."""
    restart: Estimate
    """The same as `cosine` between the reference's last states and those of a run that goes on from them for as many
    steps. What is missing to 1 here is not due to the start: these examples have not settled."""
    distance: float
    """Median of RMS(a - b) / RMS(b), b the reference; up to phase."""
    agreement: Estimate | None
    """Share of examples whose decoded answers are the same in full, at the last step. None without a decoder."""
    exact: Estimate | None
    """Share of examples answered right in full from this start. None without a judge."""
    failed: int
    cosines: tuple[float, ...]
    plain_cosines: tuple[float, ...]
    nulls: tuple[float, ...]
    restarts: tuple[float, ...]
    distances: tuple[float, ...]
    agreements: tuple[float, ...] | None
    """1 or 0; for all pairs the share of pairs."""
    corrects: tuple[float, ...] | None

    @property
    def count(self) -> int:
        return len(self.cosines)

    def __repr__(self) -> str:
        return "\n".join(_lines([self]))


@dataclass(frozen=True, repr=False)
class StartAlignments:
    """Where runs from several starts end; print it for a table."""

    model: str
    steps: int
    rtol: float
    """Relative residual at which a state counts as repeated, for the periods of cycles."""
    seed: int
    dtype: str
    device: str
    rows: tuple[StartAlignment, ...]
    """Difficulty by difficulty, start by start."""
    evaluations: int
    """Evaluations of `step`, times examples, over all runs."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""

    def of(self, difficulty: str, start: str) -> StartAlignment:
        """The row of this difficulty and start."""
        for row in self.rows:
            if (row.difficulty, row.start) == (difficulty, start):
                return row
        raise KeyError(f"no row {difficulty!r}, {start!r}; there are {[(r.difficulty, r.start) for r in self.rows]}")

    @property
    def algorithm_1(self) -> Estimate:
        """Algorithm 1 of arXiv 2211.09961, over the examples of all difficulties: `plain` of the start `swapped`."""
        return self._pooled("swapped")

    @property
    def all_pairs(self) -> Estimate:
        """The same as in the authors' code: `plain` of the start `all pairs`."""
        return self._pooled("all pairs")

    def _pooled(self, start: str) -> Estimate:
        rows = [row for row in self.rows if row.start == start]
        if not rows:
            raise KeyError(f"the start {start!r} was not measured; there are {sorted({r.start for r in self.rows})}")
        return mean_of([value for row in rows for value in row.plain_cosines], self.seed)

    def __repr__(self) -> str:
        text = [
            f"{self.model}: where runs from other starts end after {self.steps} steps ({self.dtype})",
            *_lines(self.rows),
            "cosine: with the run from the reference start, cycles up to phase. null: between different examples. "
            "restart: run on from the limit. distance: median. agreement, exact: %.",
            *self.notes,
        ]
        return "\n".join(text)


def mean_of(values: Iterable[float], seed: int) -> Estimate:
    """Mean over the examples that could be measured, which are those whose value is not NaN."""
    return estimates.mean([value for value in values if value == value], seed=seed)


def _lines(rows: Sequence[StartAlignment]) -> list[str]:
    phased = any(row.phase_aligned for row in rows)
    heads = ["examples", "start", "reference", "n", "cosine", "null", "restart", "distance", "agreement", "exact"]
    heads += ["failed"] + (["without phase", "cycles"] if phased else [])
    lines = []
    for row in rows:
        cells = [row.difficulty, row.start, row.reference, str(row.count)]
        cells += [number(row.cosine), number(row.null), number(row.restart)]
        cells += ["–" if row.distance != row.distance else f"{row.distance:.2g}"]
        cells += [percent(row.agreement), percent(row.exact), str(row.failed)]
        lines.append(cells + ([number(row.plain), str(row.phase_aligned)] if phased else []))
    return columns(heads, lines, names=3)
