"""The statements T1 to T6 on random draws, under their conditions."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from homeostat.bilevel.affine import (
    AffineProblem,
    CrossEntropy,
    Huber,
    Inequality,
    QuadraticTasks,
    Squared,
    change_of_loss,
    draw_affine,
    draw_tasks,
    first_order,
    fitted_rate,
    largest_gain,
    more_steps_cannot_help,
    more_steps_help,
    no_regret,
    outer_minimiser,
    problem_that_gains_most,
    tightness,
    vanishing,
)
from homeostat.studies.jobs import Job, Place

# Of the iterate, the parameters, and what is made small; the rank of K.
OVER = ((4, 4, 4, 4), (6, 6, 6, 3), (5, 9, 8, 5), (6, 4, 3, 3))
UNDER = ((4, 2, 4, 4), (6, 3, 6, 6), (5, 3, 8, 5), (8, 2, 8, 5))

STEPS = (1, 4, 16)
"""N of the training."""

CURVE_STEPS = 4
CURVE_EXTRAS = (-4, -3, -2, -1, 0, 1, 2, 4, 6, 8, 12, 16, 24, 32)
QUANTILES = (0.05, 0.5, 0.95)

HELP_STEPS = (1, 4, 16, 64)
HELP_RATIOS = (0.25, 0.5, 1, 2, 4, 16, 64)
"""Of extra steps to N, where that is a whole number."""

FINENESS = (1, 4, 16, 64, 256, 1024)
"""By how much eta |K|^2 is divided, from `FIRST_STEP` on, to see the first-order sign come true."""
FIRST_STEP = 0.5

SLOPE = 0.05
"""How far a fitted slope may be from the expected one, relative to it."""

SHARP = 1e-6
"""How far from 1 the tightness of a problem that gains most may be."""

SHOWN = 60
"""Draws in the figure of slopes."""

ZERO = 1e-12
"""Relative to the size of the data, D of a single task counts as 0 below this."""


def extras(steps: int) -> list[int]:
    """The numbers of extra steps that an inequality is tested at."""
    return sorted({-steps, -1, 1, steps, 8 * steps})


class TheoryDraws(Job):
    """Each statement on `draws` random problems."""

    draws: int
    seed: int = 0

    @property
    def label(self) -> str:
        return f"theory on {self.draws} draws"

    @property
    def seconds(self) -> float:
        return 1 + 0.02 * self.draws

    def run(self, place: Place) -> dict[str, Any]:
        parts: dict[str, Callable[[], Any]] = {
            "T1": self._t1,
            "T2": self._t2,
            "T3": self._t3,
            "T4": self._t4,
            "T5": self._t5,
            "T6": self._t6,
            "helped": self._helped,
            "curves": self._curves,
        }
        tell, found = place.teller(), {}
        for number, (name, part) in enumerate(parts.items()):
            tell(number / len(parts), name)
            found[name] = part()
        return found

    def _problems(self, shapes: tuple[tuple[int, ...], ...], **options: Any) -> Iterator[tuple[AffineProblem, Tensor]]:
        """The draws, spread over some shapes."""
        for number, (n, d, m, rank) in enumerate(shapes):
            rows = len(range(number, self.draws, len(shapes)))
            seed = 1000 * self.seed + number
            if rows:
                yield draw_affine(rows, n, d, m=m, rank=rank, seed=seed, **options)

    def _t1(self) -> dict[str, Any]:
        kept: dict[str, _Kept] = {"squared": _Kept(), "logistic": _Kept(), "Huber": _Kept()}
        for problem, target in self._problems(OVER):
            losses = (Squared(target), CrossEntropy(torch.sigmoid(target)), Huber(target))
            for kept_of, loss in zip(kept.values(), losses, strict=True):
                found = []
                for steps in STEPS:
                    theta = outer_minimiser(problem, loss, steps)
                    found += [more_steps_cannot_help(problem, loss, steps, e, theta=theta) for e in extras(steps)]
                kept_of.add(found)
        return {name: of.values() for name, of in kept.items()}

    def _t2(self) -> dict[str, Any]:
        kept = {"overparametrised": _Kept(), "underparametrised": _Kept()}
        tight: dict[str, list[float]] = {str(steps): [] for steps in STEPS}
        for name, shapes in (("overparametrised", OVER), ("underparametrised", UNDER)):
            for problem, target in self._problems(shapes):
                found = {n: [largest_gain(problem, Squared(target), n, e) for e in extras(n)] for n in STEPS}
                kept[name].add([one for of in found.values() for one in of])
                if name == "underparametrised":
                    for n, of in found.items():
                        # The best of the extra numbers of steps; going back is not one of them.
                        gains = [tightness(one) for one, extra in zip(of, extras(n), strict=True) if extra > 0]
                        tight[str(n)] += torch.stack(gains).amax(0).tolist()
        sharp = []
        for problem, _ in self._problems(((6, 2, 6, 4),), spectrum=0.6, step=(0.1, 0.9)):
            for steps, extra in ((1, 1), (2, 4), (4, -1)):
                chosen, loss = problem_that_gains_most(problem, steps, extra, seed=self.seed)
                sharp.append(tightness(largest_gain(chosen, loss, steps, extra)))
        return {
            **{name: of.values() for name, of in kept.items()},
            "tightness": {name: _levels(of) for name, of in tight.items()},
            "sharp": _count(torch.stack(sharp).amin(0) >= 1 - SHARP),
        }

    def _t3(self) -> dict[str, Any]:
        bound, rates = _Kept(), {}
        for name, shapes, d in (("overparametrised", OVER, 4), ("underparametrised", UNDER, 2)):
            for problem, target in self._problems(shapes):
                loss = Squared(target)
                bound.add([vanishing(problem, loss, steps, extra) for steps in STEPS for extra in extras(steps)])
            for problem, target in self._problems(((6, d, 6, 4),), spectrum=0.6, step=(0.1, 1.0)):
                rate = fitted_rate(problem, Squared(target), extra=4)
                rates[name] = {
                    "within": _count((rate.ratio - 1).abs() <= SLOPE),
                    "ratio": [float(rate.ratio.quantile(q)) for q in QUANTILES],
                    "slope": rate.slope[:SHOWN].tolist(),
                    "contraction": problem.contraction[:SHOWN].log().tolist(),
                }
        return {"bound": bound.values(), "rates": rates}

    def _t4(self) -> dict[str, Any]:
        kept, regret = _Kept(), 0.0
        for problem, planted in self._problems(UNDER):
            theta = planted[:, : problem.U.shape[2]]
            found = []
            for steps in STEPS:
                loss = Squared(problem.at(theta, steps))  # targets that the model reaches after N steps
                untrained = loss(problem.at(torch.zeros_like(theta), steps))
                for extra in extras(steps):
                    change = change_of_loss(problem, loss, steps, extra)
                    regret = max(regret, float((change.before / untrained).max()))
                    found.append(no_regret(change.before, change.after, torch.zeros_like(untrained)))
            kept.add(found)
        return {**kept.values(), "largest_regret": regret}

    def _t5(self) -> dict[str, Any]:
        bound, wrong = _Kept(), []
        for problem, target in self._problems(UNDER):
            found = [first_order(problem, Squared(target), n, extra) for n in STEPS for extra in (1, n)]
            bound.add([one.bound for one in found])
            wrong.append(torch.stack([one.certain & ~one.agrees for one in found]).any(0))
        agrees: dict[str, list[dict[str, Any]]] = {"eta N kept": [], "N kept": []}
        for name, of in agrees.items():
            for fine in FINENESS:
                share = FIRST_STEP / fine
                steps = 4 * fine if name == "eta N kept" else 4
                found = [
                    first_order(problem, Squared(target), steps, 1).agrees
                    for problem, target in self._problems(UNDER, step=(share, share))
                ]
                of.append({"share": share, "steps": steps, **_count(torch.cat(found))})
        return {"bound": bound.values(), "certain_agree": _count(~torch.cat(wrong)), "agrees": agrees}

    def _t6(self) -> dict[str, Any]:
        kept, below, one = _Kept(), [], []
        kinds = [(tasks, common) for tasks in (2, 5) for common in (True, False)]
        for number, (tasks, common) in enumerate(kinds):
            rows = len(range(number, self.draws, len(kinds)))
            if rows:
                problem = draw_tasks(rows, tasks, 3, common=common, seed=1000 * self.seed + number)
                pairs = [(steps, extra) for steps in STEPS for extra in (1, 4)]
                kept.add([more_steps_help(problem, *pair) for pair in pairs])
                found = torch.stack([problem.change(*pair).value for pair in pairs])
                below.append((found < 0).all(0))
        single = draw_tasks(self.draws, 1, 3, seed=1000 * self.seed + 10)
        size = single.centres.square().sum(2).mean(1)
        for steps in STEPS:
            one.append(single.change(steps, 4).value.abs() <= ZERO * size)
        eye = torch.eye(3, dtype=torch.float64).expand(self.draws, 2, 3, 3)
        centres = draw_tasks(self.draws, 2, 3, seed=1000 * self.seed + 11).centres
        outside = QuadraticTasks(2 * eye, centres, 1.0, 0.5).change(1, 1).value
        return {
            "bound": kept.values(),
            "several_below_zero": _count(torch.cat(below)),
            "one_is_zero": _count(torch.stack(one).all(0)),
            "outside_above_zero": _count(outside > ZERO * centres.square().sum(2).mean(1)),
        }

    def _helped(self) -> list[dict[str, Any]]:
        """For which draws more steps lower the loss: random targets, each shape by itself."""
        rows = []
        for shape, (problem, target) in zip(UNDER, self._problems(UNDER), strict=False):
            for steps in HELP_STEPS:
                for ratio in HELP_RATIOS:
                    if (extra := round(ratio * steps)) == ratio * steps:
                        found = change_of_loss(problem, Squared(target), steps, extra)
                        rows.append({"shape": list(shape), "steps": steps, "ratio": ratio, **_count(found.value < 0)})
        return rows

    def _curves(self) -> list[dict[str, Any]]:
        """D over extra steps, relative to the loss after N, for the draws at some quantiles of D(N, N)."""
        curves = []
        for name, d in (("overparametrised", 4), ("underparametrised", 1)):
            for problem, target in self._problems(((6, d, 6, 3),)):
                loss = Squared(target)
                found = [change_of_loss(problem, loss, CURVE_STEPS, extra) for extra in CURVE_EXTRAS]
                change = torch.stack([one.value / one.before for one in found])
                bound = (largest_gain(problem, loss, CURVE_STEPS, 1).right / found[0].before).clamp_max(0.0)
                order = change[CURVE_EXTRAS.index(CURVE_STEPS)].argsort()
                for quantile in QUANTILES:
                    row = int(order[round(quantile * (len(order) - 1))])
                    curves.append(
                        {
                            "regime": name,
                            "quantile": quantile,
                            "change": change[:, row].tolist(),
                            "bound": float(bound[row]),
                        }
                    )
        return curves


class _Kept:
    """Which draws keep an inequality wherever it was tested, and the least slack seen."""

    def __init__(self) -> None:
        self._held: list[Tensor] = []
        self._least = float("inf")

    def add(self, found: list[Inequality]) -> None:
        """All that was found of some draws."""
        self._held.append(torch.stack([one.holds for one in found]).all(0))
        self._least = min(self._least, *(float(one.relative_slack.min()) for one in found))

    def values(self) -> dict[str, Any]:
        """As plain values."""
        return {**_count(torch.cat(self._held)), "least_slack": self._least}


def _count(hits: Tensor) -> dict[str, int]:
    return {"hits": int(hits.sum()), "of": len(hits)}


def _levels(values: list[float]) -> list[dict[str, float]]:
    """For levels from 0 to 1: how many values are above 0, then how many are at least so large."""
    found = [{"level": 0.0, **_count(torch.tensor(values) > 0)}]
    return found + [{"level": k / 20, **_count(torch.tensor(values) >= k / 20)} for k in range(1, 21)]
