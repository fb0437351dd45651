"""Section 4: the implicit and the phantom gradient."""

from collections.abc import Callable, Sequence

import numpy as np

from homeostat.studies.claims import Above, Claim, Given, decide
from homeostat.studies.figures import Axis, Figure, Point, Series, Table
from homeostat.studies.path_independence.prefix_nets import (
    ALIGNMENT,
    NOT_ALL_ALIKE,
    ROUGH,
    Measured,
    cost_table,
    prefix_nets,
)
from homeostat.studies.path_independence.presets import Preset
from homeostat.studies.reading import (
    alignment,
    cosines,
    exact,
    in_figures,
    in_percent,
    limits_words,
    nulls,
    residual_words,
)
from homeostat.studies.statistics import effect, over_seeds
from homeostat.studies.study import Content, Section, Values

IMPLICIT_CONVERGES = Claim(
    "implicit training converges further",
    "Nets trained with the phantom gradient stay further from convergence than with the implicit one",
    "residual 11.83 (phantom) against 1.4 (implicit), in distribution",
    "log10 of the residual in distribution, phantom minus implicit",
    Above(0.0),
    Given("nets of both kinds that have learnt the task, by exact accuracy", Above(0.5)),
)
BOTH_ALIGN = Claim(
    "both gradients give path independence",
    "Convergence and path independence are not the same: both kinds of net are path independent",
    "0.96 / 0.99 (phantom), 0.99 / 0.99 (implicit)",
    "alignment in distribution, phantom and implicit",
    Above(0.9),
    NOT_ALL_ALIKE,
)
BOTH_SOLVE = Claim(
    "both gradients give accurate nets",
    "Both kinds of net are accurate in distribution",
    "99.96 / 99.88 % (phantom), 99.99 / 100 % (implicit)",
    "exact accuracy in distribution, phantom and implicit",
    Above(0.95),
)


def section_4(preset: Preset) -> Section:
    """Implicit against phantom gradient."""
    recipes = ("implicit", "phantom")
    nets = prefix_nets(preset, recipes)
    few = ROUGH if preset.seeds <= 3 else ""

    def build(values: Values) -> Content:
        def of(recipe: str, get: Callable[[Measured], Sequence[float]]) -> list[Sequence[float]]:
            return [get(m) for m in nets if m.recipe == recipe]

        def log_residual(m: Measured) -> list[float]:
            # Within rounding of a fixed point, and not finite: neither has a logarithm, both have a bound.
            found = (1e8 if r is None else r for r in values(m.near)["residual"])
            return [float(np.log10(np.clip(r, 1e-8, 1e8))) for r in found]

        def right(m: Measured) -> list[float]:
            return values(m.near)["correct"]

        def aligned(m: Measured) -> list[float]:
            return cosines(values(m.near_aligned))

        def null(m: Measured) -> list[float]:
            return nulls(values(m.near_aligned))

        solved = [(r, over_seeds(of(r, right))) for r in recipes]
        alike = [(r, over_seeds(of(r, null))) for r in recipes]
        further = effect(of("phantom", log_residual), of("implicit", log_residual))
        relative = f"Our residual is relative to the state, theirs is not. {few}".strip()
        claims = (
            decide(IMPLICIT_CONVERGES, [("log10 ratio", further)], relative, given=solved),
            decide(BOTH_ALIGN, [(r, over_seeds(of(r, aligned))) for r in recipes], few, given=alike),
            decide(BOTH_SOLVE, solved, few),
        )  # fmt: skip
        near, deep = preset.prefix_near, preset.prefix_deep
        rows = [
            (
                m.recipe,
                str(m.seed),
                f"{plan.size} bits",
                residual_words(values(followed)["residual"]),
                in_figures(alignment(values(aligned))),
                in_percent(exact(values(followed))),
                limits_words(values(followed)["limits"]),
            )
            for m in nets
            for plan, followed, aligned in ((near, m.near, m.near_aligned), (deep, m.deep, m.deep_aligned))
        ]
        table = Table(
            f"In distribution and out of it, at {deep.steps} steps",
            ("Gradient", "Seed", "Strings", "Residual, median", "Alignment", "Exact", "Ends in"),
            tuple(rows),
        )
        series = tuple(
            Series(
                recipe,
                tuple(
                    Point(
                        float(np.median(log_residual(m))),
                        (a := alignment(values(m.near_aligned))).value,
                        a.low,
                        a.high,
                        text=f"{recipe}, seed {m.seed}",
                    )
                    for m in nets
                    if m.recipe == recipe
                ),
            )
            for recipe in recipes
        )
        figure = Figure(
            "implicit-phantom",
            f"Residual and alignment in distribution ({near.size} bits), after {near.steps} steps. A point a net.",
            Axis("log10 of the median residual"),
            ALIGNMENT,
            series,
        )
        return Content(claims, (figure,), (table, cost_table(nets, values)))

    return Section(
        4,
        "prefix",
        "Implicit and phantom gradient",
        "Nets trained to a fixed point with the implicit gradient, and with the cheap phantom gradient: is closeness "
        "to a fixed point the same as path independence?",
        (IMPLICIT_CONVERGES, BOTH_ALIGN, BOTH_SOLVE),
        tuple(job for m in nets for job in (m.near, m.near_aligned, m.deep, m.deep_aligned)),
        build,
    )
