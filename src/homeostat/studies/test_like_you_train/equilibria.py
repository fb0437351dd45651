"""The equilibrium models of the study: trained at a fixed budget with either gradient, and what is measured of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from homeostat.probes.estimates import share
from homeostat.probes.report.words import number
from homeostat.probes.results import Estimate
from homeostat.studies.figures import Axis, Figure, Panels, Point, Series
from homeostat.studies.gaps import Gaps
from homeostat.studies.measures.curve import Curve
from homeostat.studies.nets import Net
from homeostat.studies.statistics import effect
from homeostat.studies.study import Values
from homeostat.studies.test_like_you_train.presets import Preset
from homeostat.training import FixedDepth, get_recipe

GRADIENTS = {"implicit": "", "unrolled": "-unrolled"}
"""Gradients by name, with what is added to the name of the recipe."""

Data = Literal["training", "held-out"]


@dataclass(frozen=True)
class Equilibrium:
    """One net, trained with N steps, and its loss over test budgets."""

    gradient: str
    horizon: int
    seed: int
    net: Net
    training: Curve
    held_out: Curve

    @property
    def jobs(self) -> tuple[Net | Curve, ...]:
        return (self.net, self.training, self.held_out)


def equilibria(
    preset: Preset,
    recipe: str,
    *,
    horizons: Sequence[int],
    seeds: int,
    budgets: Sequence[int],
    count: int,
    seconds: float,
) -> list[Equilibrium]:
    """Nets for each gradient, horizon and seed; horizons are budgets too.

    Args:
        recipe: the one with the implicit gradient.
        seconds: of training on one core, for each step of the horizon.
    """
    found = []
    every = tuple(sorted({*budgets, *horizons}))
    for gradient, ending in GRADIENTS.items():
        for horizon in horizons:
            changed = get_recipe(recipe + ending).changed(
                name=f"{recipe}{ending}, N = {horizon}",
                description=f"{recipe}{ending} with {horizon} steps",
                depth=FixedDepth(steps=horizon),
            )
            for seed in range(seeds):
                net = Net(recipe=preset.recipe(changed), seed=seed, expected=1 if preset.shrink else seconds * horizon)
                curves = [
                    Curve(net=net, count=count, budgets=every, data=data, expected=0.1 if preset.shrink else 4.0)
                    for data in ("training", "held-out")
                ]
                found.append(Equilibrium(gradient, horizon, seed, net, curves[0], curves[1]))
    return found


class Measured:
    """What the jobs found, by data, gradient and horizon."""

    def __init__(self, nets: Sequence[Equilibrium], values: Values) -> None:
        self._nets, self._values = nets, values
        self.kinds = tuple(dict.fromkeys((one.gradient, one.horizon) for one in nets))
        self.horizons = tuple(dict.fromkeys(horizon for _, horizon in self.kinds))
        self.budgets = nets[0].training.budgets
        self._gaps = {
            (data, *kind): Gaps.of([getattr(one, data.replace("-", "_")) for one in self.nets(*kind)], values, kind[1])
            for data in ("training", "held-out")
            for kind in self.kinds
        }

    def nets(self, gradient: str, horizon: int) -> list[Equilibrium]:
        """Those of one kind, by seed."""
        return [one for one in self._nets if (one.gradient, one.horizon) == (gradient, horizon)]

    def gaps(self, data: Data, gradient: str, horizon: int) -> Gaps:
        """Curves of the nets of one kind."""
        return self._gaps[data, gradient, horizon]

    @property
    def deepest(self) -> int:
        return self.budgets[-1]

    def lowest_at_horizon(self) -> list[tuple[str, Estimate]]:
        """For each gradient the share of nets whose lowest mean training loss over all budgets is at N."""
        return [
            (
                gradient,
                share([
                    best == horizon
                    for horizon in self.horizons
                    for best in self.gaps("training", gradient, horizon).best()
                ]),
            )
            for gradient in GRADIENTS
        ]  # fmt: skip

    def deep_gaps(self, data: Data) -> list[tuple[str, Estimate]]:
        """D at the deepest budget, of every kind of net trained with fewer steps."""
        return [
            (f"{gradient}, N = {horizon}", self.gaps(data, gradient, horizon).gap(self.deepest))
            for gradient, horizon in self.kinds
            if horizon < self.deepest
        ]

    def unrolled_less_implicit(self) -> list[tuple[str, Estimate]]:
        """D at the deepest budget on the data of the training, unrolled minus implicit, of each horizon."""
        return [
            (
                f"N = {horizon}",
                effect(
                    *(self.gaps("training", kind, horizon).change(self.deepest) for kind in ("unrolled", "implicit"))
                ),
            )
            for horizon in self.horizons
            if horizon < self.deepest
        ]

    def fits(self) -> str:
        """What training reached with either gradient, without which a difference of D says little, in words."""
        found = [
            f"N = {horizon}: "
            + ", ".join(
                f"{self.gaps('training', kind, horizon).loss(horizon).value:.3g} ({kind})" for kind in GRADIENTS
            )
            for horizon in self.horizons
        ]
        return f"Training loss at N, by which a net that learnt less has less to lose: {'; '.join(found)}."

    def minima(self) -> str:
        """Where the training loss of each net is lowest, in words."""
        return "; ".join(
            f"{gradient}, N = {horizon}: {', '.join(map(str, self.gaps('training', gradient, horizon).best()))}"
            for gradient, horizon in self.kinds
        )

    def seconds(self, gradient: str, horizon: int) -> str:
        """Mean seconds of a training."""
        found = [self._values(one.net)["training_seconds"] for one in self.nets(gradient, horizon)]
        return f"{sum(found) / len(found):.0f}"

    def adjoint_residual(self, gradient: str, horizon: int) -> str:
        """Median over seeds of the adjoint's relative residual in the last training step; empty without one."""
        found = [self._values(one.net)["last_residuals"].get("adjoint") for one in self.nets(gradient, horizon)]
        known = sorted(value for value in found if value is not None)
        return number(known[len(known) // 2]) if known else ""

    def panels(self, name: str, caption: str, columns: Sequence["Column"]) -> Panels:
        """A row of panels for each gradient, a line for each horizon, over test steps."""
        panels = []
        for gradient in GRADIENTS:
            for column in columns:
                series = []
                for horizon in self.horizons:
                    gaps = self.gaps(column.data, gradient, horizon)
                    points = []
                    for budget in self.budgets:
                        found = column.of(gaps, budget)
                        label = f"{gradient}, N = {horizon}, {budget} steps"
                        points.append(Point(budget, found.value, found.low, found.high, text=label))
                    series.append(Series(f"N = {horizon}", tuple(points), lines=True))
                panels.append(
                    Figure(
                        f"{name}-{gradient}-{column.name}",
                        f"{gradient}: {column.words}",
                        Axis("test steps", scale="log"),
                        column.axis,
                        tuple(series),
                    )
                )
        return Panels(name, caption, tuple(panels), columns=len(columns))


@dataclass(frozen=True)
class Column:
    """What one column of panels shows."""

    name: str
    words: str
    data: Data
    axis: Axis
    of: Callable[[Gaps, int], Estimate]
