"""Section 5: training far from convergence, and limit cycles that answer right."""

from collections.abc import Sequence

from homeostat.probes.estimates import share
from homeostat.studies.claims import Above, Claim, decide
from homeostat.studies.figures import Axis, Figure, Point, Series, Table
from homeostat.studies.jobs import Job
from homeostat.studies.path_independence.prefix_nets import (
    EXACT,
    NOT_ALL_ALIKE,
    ROUGH,
    Measured,
    prefix_nets,
)
from homeostat.studies.path_independence.presets import Preset
from homeostat.studies.reading import (
    cosines,
    exact,
    in_percent,
    limits_words,
    nulls,
    residual_words,
)
from homeostat.studies.statistics import over_seeds
from homeostat.studies.study import Content, Section, Values

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
    NOT_ALL_ALIKE,
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


def section_5(preset: Preset) -> Section:
    """Shallow unrolled training, and limit cycles that answer right."""
    nets = prefix_nets(preset)
    shallow = [m for m in nets if m.recipe == "shallow"]
    few = ROUGH if preset.seeds <= 3 else ""

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
            EXACT,
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


def _periods(periods: Sequence[int | None]) -> str:
    found = sorted({period for period in periods if period})
    return ", ".join(map(str, found)) or "none"


def _right_in_cycles(values: dict) -> str:
    found = [right for right, limit in zip(values["correct"], values["limit"], strict=True) if limit == "cycle"]
    return f"{sum(found)} of {len(found)}" if found else "none"
