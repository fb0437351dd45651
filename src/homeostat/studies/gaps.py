"""D(N, dN): what a net's loss, and its answers, change by when it takes other than its trained number of steps.

D(N, dN) = loss after N + dN steps - loss after N steps, example by example, of a net trained with N. Above 0 other
budgets are worse.

Source: Ramzi, Ablin, Peyré, Moreau, "Test like you train in implicit deep learning", arXiv 2305.15042.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homeostat.probes.results import Estimate
from homeostat.studies.figures import Point, Series
from homeostat.studies.measures.curve import Curve
from homeostat.studies.statistics import over_seeds
from homeostat.studies.study import Values

LOST = 20.0
"""The most that an example's loss counts for, and what it counts for where its state is not finite: a loss without
bound would let one example decide a mean. In nats it is a share of 2e-9 for the right answer; squared errors here are
far below it."""


@dataclass(frozen=True)
class Gaps:
    """Curves of several nets, trained alike with different seeds, on the same kind of examples."""

    horizon: int
    budgets: tuple[int, ...]
    losses: tuple[NDArray[np.float64], ...]
    """`(examples, budgets)` for each net."""
    correct: tuple[NDArray[np.float64], ...] | None
    residuals: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(cls, curves: Sequence[Curve], values: Values, horizon: int) -> "Gaps":
        """What the jobs found."""
        found = [values(curve) for curve in curves]
        right = [record["correct"] for record in found if record.get("correct") is not None]
        return cls(
            horizon,
            tuple(found[0]["budgets"]),
            tuple(np.minimum(_matrix(record["loss"], LOST), LOST) for record in found),
            tuple(_matrix(r, 0.0) for r in right) if len(right) == len(found) else None,
            tuple(_matrix(record["residual"], math.inf) for record in found),
        )

    def loss(self, budget: int) -> Estimate:
        """Mean loss at a budget, with an interval over nets and examples."""
        return over_seeds([loss[:, self._at(budget)] for loss in self.losses])

    def exact(self, budget: int) -> Estimate:
        """Share answered right in full, with an interval over nets and examples."""
        return over_seeds(self.hits(budget))

    def hits(self, budget: int) -> list[NDArray[np.bool_]]:
        """Which examples each net answers right in full."""
        assert self.correct is not None
        return [right[:, self._at(budget)] > 0.5 for right in self.correct]

    def change(self, budget: int) -> list[NDArray[np.float64]]:
        """D of each example of each net."""
        at, trained = self._at(budget), self._at(self.horizon)
        return [loss[:, at] - loss[:, trained] for loss in self.losses]

    def gap(self, budget: int) -> Estimate:
        """D at a budget, with an interval over nets and examples."""
        return over_seeds(self.change(budget))

    def normalised(self, budget: int) -> list[float]:
        """D over the mean loss at the horizon, of each net."""
        at, trained = self._at(budget), self._at(self.horizon)
        return [float((loss[:, at].mean() - (n := loss[:, trained].mean())) / n) for loss in self.losses]

    def best(self) -> list[int]:
        """Of each net the budget of its lowest mean loss, the smallest one of equals; chosen afterwards."""
        return [self.budgets[int(loss.mean(0).argmin())] for loss in self.losses]

    def residual(self, budget: int) -> float:
        """Median relative residual (root mean square) over nets and examples; infinite states count as infinite."""
        return float(np.median(np.concatenate([r[:, self._at(budget)] for r in self.residuals])))

    def series(self, name: str, *, each: bool = False, group: int | None = None, hollow: bool = False) -> list[Series]:
        """Loss against budget: a line with intervals, or with `each` a line for each net."""
        if not each:
            points = [_point(budget, self.loss(budget), name) for budget in self.budgets]
            return [Series(name, tuple(points), lines=True, group=group, hollow=hollow)]
        return [
            Series(
                f"{name}, seed {seed}",
                tuple(
                    Point(b, float(m), text=f"{name}, seed {seed}")
                    for b, m in zip(self.budgets, loss.mean(0), strict=True)
                ),
                lines=True,
                group=group,
                hollow=hollow,
            )
            for seed, loss in enumerate(self.losses)
        ]

    def _at(self, budget: int) -> int:
        return self.budgets.index(budget)


def _point(x: float, estimate: Estimate, text: str) -> Point:
    return Point(x, estimate.value, estimate.low, estimate.high, text=text)


def _matrix(rows: Sequence[Sequence[Any]], missing: float) -> NDArray[np.float64]:
    """`(examples, budgets)` from a list for each budget; None, which stands for what is not finite, is `missing`."""
    found = np.array([[missing if v is None else float(v) for v in row] for row in rows], dtype=float)
    return found.T
