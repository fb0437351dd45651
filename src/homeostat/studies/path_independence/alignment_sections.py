"""Sections 1 and 2: alignment and accuracy on longer strings, and what promoting and penalising do."""

from collections.abc import Callable, Sequence

from homeostat.probes.results import Estimate
from homeostat.studies.claims import Above, Below, Claim, decide
from homeostat.studies.figures import Axis, Figure, Point, Series, Table
from homeostat.studies.path_independence.prefix_nets import (
    ALIGNMENT,
    EXACT,
    ROUGH,
    Measured,
    cost_table,
    prefix_nets,
)
from homeostat.studies.path_independence.presets import Preset
from homeostat.studies.reading import (
    alignment,
    cosines,
    dots_by_category,
    estimate,
    exact,
    in_figures,
    in_percent,
    limits_words,
    residual_words,
    symbols,
)
from homeostat.studies.statistics import effect, rank_correlation
from homeostat.studies.study import Content, Section, Values

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
            ALIGNMENT,
            EXACT,
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
    few = ROUGH if preset.seeds <= 3 else ""

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
                y=EXACT,
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
        return Content(claims, figures, (compared, cost_table(nets, values)))

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
