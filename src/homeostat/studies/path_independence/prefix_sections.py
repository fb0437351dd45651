"""Sections 1, 2, 4 and 5: what the prefix-sum nets show."""

from collections.abc import Callable, Sequence

import numpy as np

from homeostat.probes.estimates import share
from homeostat.probes.results import Estimate
from homeostat.studies.claims import Above, Below, Claim, Given, decide
from homeostat.studies.figures import Axis, Figure, Point, Series, Table
from homeostat.studies.jobs import Job
from homeostat.studies.path_independence.prefix_nets import Measured, prefix_nets
from homeostat.studies.path_independence.presets import Preset
from homeostat.studies.path_independence.reading import (
    alignment,
    cosines,
    dots_by_category,
    estimate,
    exact,
    in_figures,
    in_percent,
    limits_words,
    nulls,
    residual_words,
    symbols,
)
from homeostat.studies.statistics import effect, over_seeds, rank_correlation
from homeostat.studies.study import Content, Section, Values

_ALIGNMENT = Axis("alignment (Algorithm 1)", range=(-0.05, 1.04))
_EXACT = Axis("exact accuracy", percent=True)
_ROUGH = "An interval over three nets is rough; every net is shown."

_NOT_ALL_ALIKE = Given("limits of different examples that differ, by their cosine", Below(0.95))

CORRELATES = Claim(
    "alignment goes with accuracy",
    "Path independence correlates strongly with accuracy on longer strings",
    '"strong" (no figure)',
    "Spearman's rank correlation over nets between alignment and exact accuracy at the deep budget",
    Above(0.5),
)
PROMOTE_ALIGNS = Claim(
    "promoting raises alignment",
    "Interventions that promote path independence raise it",
    "no figure",
    "alignment on longer strings, promoted minus fixed",
    Above(0.01),
)
PROMOTE_HELPS = Claim(
    "promoting raises accuracy",
    "Interventions that promote path independence improve accuracy on longer strings",
    "no figure",
    "exact accuracy at twice the length and at the deep budget, promoted minus fixed",
    Above(0.0),
)
PENALISE_ALIGNS = Claim(
    "penalising lowers alignment",
    "Interventions that penalise path independence lower it",
    "no figure",
    "alignment on longer strings, penalised minus fixed",
    Below(-0.01),
)
PENALISE_HURTS = Claim(
    "penalising lowers accuracy",
    "Interventions that penalise path independence hurt accuracy on longer strings",
    "no figure",
    "exact accuracy at twice the length, penalised minus fixed",
    Below(0.0),
)
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
    _NOT_ALL_ALIKE,
)
BOTH_SOLVE = Claim(
    "both gradients give accurate nets",
    "Both kinds of net are accurate in distribution",
    "99.96 / 99.88 % (phantom), 99.99 / 100 % (implicit)",
    "exact accuracy in distribution, phantom and implicit",
    Above(0.95),
)
SHALLOW_FAR = Claim(
    "shallow training stays far from convergence",
    "Unrolled training with 5 or 6 steps ends far from a fixed point",
    "no figure",
    "share of examples whose residual at the trained depth is above 0.01",
    Above(0.9),
)
SHALLOW_ALIGNS = Claim(
    "shallow training can be path independent",
    "A net trained far from convergence can still be path independent",
    "no figure",
    "alignment in distribution at the deep budget, shallow recipe",
    Above(0.9),
    _NOT_ALL_ALIKE,
)
SHALLOW_GENERALISES = Claim(
    "shallow training can generalise upwards",
    "A net trained far from convergence can solve longer strings when it thinks longer",
    "no figure",
    "exact accuracy at twice the length, shallow recipe",
    Above(0.5),
)
CYCLES_ANSWER = Claim(
    "limit cycles can answer right",
    "A net that ends in a limit cycle rather than at a fixed point can still answer right",
    "no figure for prefix sums; a deep-thinking net solved mazes to 99x99 from two-point cycles",
    "share of right answers among examples that end in a cycle, all nets and lengths",
    Above(0.5),
)


def section_1(preset: Preset) -> Section:
    """Alignment against accuracy over all nets."""
    nets = prefix_nets(preset)

    def build(values: Values) -> Content:
        x = [alignment(values(m.deep_aligned)) for m in nets]
        y = [exact(values(m.deep)) for m in nets]
        z = [symbols(values(m.deep)) for m in nets]
        found = rank_correlation([e.value for e in x], [e.value for e in y])
        by_symbol = rank_correlation([e.value for e in x], [e.value for e in z])
        from_noise = [alignment(values(m.deep_aligned), "noise 1").value for m in nets]
        of_noise = rank_correlation(from_noise, [e.value for e in y])
        recipes = list(dict.fromkeys(m.recipe for m in nets))
        series = [
            Series(recipe, tuple(_crossed(m, a, b) for m, a, b in zip(nets, x, y, strict=True) if m.recipe == recipe))
            for recipe in recipes
        ]
        plan = preset.prefix_deep
        figure = Figure(
            "alignment-accuracy",
            f"Every net at {plan.size} bits and {plan.steps} steps: where it ends from another example's limit, and "
            f"how many of {plan.count} strings it answers right in full. Bars are 95 % intervals over strings.",
            _ALIGNMENT,
            _EXACT,
            tuple(series),
        )
        rows = [_row(m, values, a, b, c) for m, a, b, c in zip(nets, x, y, z, strict=True)]
        table = Table(
            f"Every net, {plan.size} bits, {plan.steps} steps",
            (
                "Recipe", "Seed", "Exact", "Per symbol", "Alignment", "Null", "From noise", "All pairs, short strings",
                "Same answers", "Residual, median", "Ends in",
            ),
            tuple(rows),
        )  # fmt: skip
        correlations = Table(
            "Rank correlation of alignment with accuracy over nets",
            ("Alignment", "Accuracy", "Spearman", "Kendall", "Nets"),
            (
                *(
                    (start, accuracy, in_figures(r.spearman, 2), in_figures(r.kendall, 2), str(len(nets)))
                    for start, accuracy, r in (
                        ("Algorithm 1", "exact", found),
                        ("Algorithm 1", "per symbol", by_symbol),
                        ("from noise", "exact", of_noise),
                    )
                ),
            ),
        )
        note = (
            f"{len(nets)} nets in {len(recipes)} recipes, of which seeds of one recipe are alike: fewer than the count "
            "suggests are independent, and the bootstrap over nets does not know that."
        )
        return Content((decide(CORRELATES, [("all nets", found.spearman)], note),), (figure,), (correlations, table))

    return Section(
        1,
        "prefix",
        "Alignment and accuracy",
        "Do nets that forget where they started solve longer strings? Every net was trained on "
        f"{preset.prefix_near.size} bits and is run for {preset.prefix_deep.steps} steps on {preset.prefix_deep.size} "
        "bits, a budget fixed beforehand.",
        (CORRELATES,),
        tuple(job for m in nets for job in (m.deep, m.deep_aligned, m.pairs)),
        build,
    )


def section_2(preset: Preset) -> Section:
    """Promote and penalise against the fixed recipe."""
    recipes = ("fixed", "promote", "penalise", "path-independent")
    nets = prefix_nets(preset, recipes)
    few = _ROUGH if preset.seeds <= 3 else ""

    def build(values: Values) -> Content:
        def effect_of(of: Callable[[Measured], Sequence[float]], ours: str) -> Estimate:
            return effect([of(m) for m in nets if m.recipe == ours], [of(m) for m in nets if m.recipe == "fixed"])

        def deep(m: Measured) -> list[float]:
            return values(m.deep)["correct"]

        def twice(m: Measured) -> list[float]:
            return values(m.twice)["correct"]

        def aligned(m: Measured) -> list[float]:
            return cosines(values(m.deep_aligned))

        def noise_aligned(m: Measured) -> list[float]:
            return cosines(values(m.deep_aligned), "noise 1")

        long, double = f"{preset.prefix_deep.size} bits", f"{preset.prefix_twice.size} bits"
        effects = {
            (ours, what): effect_of(of, ours)
            for ours in recipes[1:]
            for what, of in (
                (f"alignment, {long}", aligned),
                (f"alignment from noise, {long}", noise_aligned),
                (f"exact, {double}", twice),
                (f"exact, {long}", deep),
            )
        }
        claims = (
            decide(PROMOTE_ALIGNS, [(long, effects["promote", f"alignment, {long}"])], few),
            decide(PROMOTE_HELPS, [(d, effects["promote", f"exact, {d}"]) for d in (double, long)], few),
            decide(PENALISE_ALIGNS, [(long, effects["penalise", f"alignment, {long}"])], few),
            decide(PENALISE_HURTS, [(double, effects["penalise", f"exact, {double}"])], few),
        )

        def of_recipe(get: Callable[[Measured], Estimate]) -> Callable[[str], list[tuple[str, Estimate]]]:
            return lambda recipe: [(f"{recipe}, seed {m.seed}", get(m)) for m in nets if m.recipe == recipe]

        figures = (
            dots_by_category(
                "promote-penalise-alignment",
                f"Alignment on {long} strings, from another example's limit (Algorithm 1, which the claims are about) "
                "and from noise. A point for each net.",
                recipes,
                {
                    "Algorithm 1": of_recipe(lambda m: alignment(values(m.deep_aligned))),
                    "from noise": of_recipe(lambda m: alignment(values(m.deep_aligned), "noise 1")),
                },
                y=Axis("alignment", range=(-1.05, 1.05)),
            ),
            dots_by_category(
                "promote-penalise-accuracy",
                f"Exact accuracy at {preset.prefix_deep.steps} steps. A point for each net.",
                recipes,
                {
                    double: of_recipe(lambda m: exact(values(m.twice))),
                    long: of_recipe(lambda m: exact(values(m.deep))),
                },
                y=_EXACT,
            ),
        )
        compared = Table(
            "Difference to the fixed recipe, with intervals over seeds and strings",
            ("Recipe", *(what for ours, what in effects if ours == "promote")),
            tuple(
                (ours, *(in_figures(effects[ours, what]) for first, what in effects if first == ours))
                for ours in recipes[1:]
            ),
        )
        return Content(claims, figures, (compared, _cost_table(nets, values)))

    return Section(
        2,
        "prefix",
        "Promoting and penalising",
        "What do interventions on path independence do, at about equal training compute, against the fixed recipe? "
        "A term in the loss moves limits from two starts together (promote) or apart (penalise); the path-independent "
        "recipe randomises start and depth instead. Algorithm 1 starts from another example's limit: where all "
        "examples share a place to end in, it sees nothing of another that noise leads to, so both stand side by side.",
        (PROMOTE_ALIGNS, PROMOTE_HELPS, PENALISE_ALIGNS, PENALISE_HURTS),
        tuple(job for m in nets for job in (m.twice, m.deep, m.deep_aligned)),
        build,
    )


def section_4(preset: Preset) -> Section:
    """Implicit against phantom gradient."""
    recipes = ("implicit", "phantom")
    nets = prefix_nets(preset, recipes)
    few = _ROUGH if preset.seeds <= 3 else ""

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
            _ALIGNMENT,
            series,
        )
        return Content(claims, (figure,), (table, _cost_table(nets, values)))

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


def section_5(preset: Preset) -> Section:
    """Shallow unrolled training, and limit cycles that answer right."""
    nets = prefix_nets(preset)
    shallow = [m for m in nets if m.recipe == "shallow"]
    few = _ROUGH if preset.seeds <= 3 else ""

    def build(values: Values) -> Content:
        def far(m: Measured) -> list[bool]:
            return [r is None or r > 0.01 for r in values(m.horizon)["residual"]]

        cycling = [
            right
            for m in nets
            for followed in (m.near, m.twice, m.deep)
            for right, limit in zip(values(followed)["correct"], values(followed)["limit"], strict=True)
            if limit == "cycle"
        ]
        align = over_seeds([cosines(values(m.near_aligned)) for m in shallow])
        alike = over_seeds([nulls(values(m.near_aligned)) for m in shallow])
        longer = over_seeds([values(m.twice)["correct"] for m in shallow])
        claims = (
            decide(SHALLOW_FAR, [("all seeds", over_seeds([far(m) for m in shallow]))], few),
            decide(SHALLOW_ALIGNS, [("all seeds", align)], few, given=[("all seeds", alike)]),
            decide(SHALLOW_GENERALISES, [("all seeds", longer)], few),
            decide(
                CYCLES_ANSWER,
                [("all nets", share(cycling))],
                f"{len(cycling)} runs ended in a cycle." if cycling else "No run ended in a cycle.",
            ),
        )
        rows = [
            (
                m.recipe,
                str(m.seed),
                f"{plan.size} bits",
                residual_words(values(m.horizon)["residual"]) if m in shallow and plan is preset.prefix_near else "",
                residual_words(values(followed)["residual"]),
                limits_words(values(followed)["limits"]),
                _periods(values(followed)["period"]),
                _right_in_cycles(values(followed)),
                in_percent(exact(values(followed))),
            )
            for m in nets
            for plan, followed in (
                (preset.prefix_near, m.near),
                (preset.prefix_twice, m.twice),
                (preset.prefix_deep, m.deep),
            )
            if m.recipe == "shallow" or values(followed)["limits"].get("cycle")
        ]
        table = Table(
            "The shallow nets, and every net with limit cycles",
            (
                "Recipe", "Seed", "Strings", "Residual at the trained depth", "Residual at the end", "Ends in",
                "Periods", "Right in cycles", "Exact",
            ),
            tuple(rows),
        )  # fmt: skip
        sizes = [plan.size for plan in (preset.prefix_near, preset.prefix_twice, preset.prefix_deep)]
        figure = Figure(
            "shallow-lengths",
            f"Exact accuracy of the shallow nets by length, at {preset.prefix_deep.steps} steps.",
            Axis("bits", scale="log"),
            _EXACT,
            tuple(
                Series(
                    f"seed {m.seed}",
                    tuple(
                        Point(size, (e := exact(values(job))).value, e.low, e.high, text=f"seed {m.seed}, {size} bits")
                        for size, job in zip(sizes, (m.near, m.twice, m.deep), strict=True)
                    ),
                    lines=True,
                )
                for m in shallow
            ),
        )
        return Content(claims, (figure,), (table,))

    jobs: list[Job] = [job for m in nets for job in (m.near, m.twice, m.deep)]
    jobs += [job for m in shallow for job in (m.near_aligned, m.horizon)]
    return Section(
        5,
        "prefix",
        "Far from convergence, and limit cycles",
        "Training that unrolls five or six steps never comes close to a limit. Is such a net path independent, and "
        "does thinking longer help it? And are examples that end in a cycle, rather than at a fixed point, right?",
        (SHALLOW_FAR, SHALLOW_ALIGNS, SHALLOW_GENERALISES, CYCLES_ANSWER),
        tuple(jobs),
        build,
    )


def _crossed(m: Measured, a: Estimate, b: Estimate) -> Point:
    return Point(a.value, b.value, b.low, b.high, a.low, a.high, f"{m.recipe}, seed {m.seed}")


def _row(m: Measured, values: Values, a: Estimate, b: Estimate, c: Estimate) -> tuple[str, ...]:
    starts = values(m.deep_aligned)["starts"]
    swapped = starts["swapped"]
    agreement = swapped["agreement"]
    return (
        m.recipe,
        str(m.seed),
        in_percent(b),
        in_percent(c),
        in_figures(a),
        in_figures(estimate(swapped["null"])),
        in_figures(alignment(values(m.deep_aligned), "noise 1")),
        in_figures(alignment(values(m.pairs), "all pairs")),
        "not decoded" if agreement is None else in_percent(estimate(agreement)),
        residual_words(values(m.deep)["residual"]),
        limits_words(values(m.deep)["limits"]),
    )


def _periods(periods: Sequence[int | None]) -> str:
    found = sorted({period for period in periods if period})
    return ", ".join(map(str, found)) or "none"


def _right_in_cycles(values: dict) -> str:
    found = [right for right, limit in zip(values["correct"], values["limit"], strict=True) if limit == "cycle"]
    return f"{sum(found)} of {len(found)}" if found else "none"


def _cost_table(nets: Sequence[Measured], values: Values) -> Table:
    """What training cost, by recipe: evaluations of the cell, times examples, over all seeds alike."""
    rows = []
    for m in nets:
        if m.seed:
            continue
        cost = values(m.net)["evaluations"]
        free = cost["forward"] - cost["graphed"]
        parts = (free, cost["graphed"], cost["adjoint"], free + 3 * cost["graphed"] + 2 * cost["adjoint"])
        rows.append(
            (
                m.recipe,
                f"{m.net.recipe.steps:,}",
                *(f"{part / 1e6:.2f}" for part in parts),
                f"{values(m.net)['training_seconds']:.0f}",
            )
        )
    return Table(
        "What the training cost (seed 0), in millions of evaluations of the cell, times examples. Together: an "
        "evaluation with a graph counts three times, since its way back costs about two; one of the adjoint two",
        ("Recipe", "Training steps", "Without graph", "With graph", "Adjoint", "Together", "Seconds by the clock"),
        tuple(rows),
    )
