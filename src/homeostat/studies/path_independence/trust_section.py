"""Section 6: which signal tells, without a label, that an answer is right."""

from homeostat.probes import estimates
from homeostat.studies.claims import Above, Claim, decide
from homeostat.studies.figures import Axis, Table
from homeostat.studies.path_independence.prefix_nets import prefix_nets
from homeostat.studies.path_independence.presets import Preset
from homeostat.studies.reading import dots_by_category, estimate, in_figures
from homeostat.studies.study import Content, Section, Values

_FEWEST = 5
"""Right, and wrong, answers that a net needs on a set for its AUC to be counted."""

ALIGNMENT_TELLS = Claim(
    "alignment tells right from wrong",
    "Per example, path independence on harder inputs goes with accuracy",
    "no figure",
    "AUC of alignment for right answers on harder inputs, mean over nets that have both right and wrong ones",
    Above(0.5),
)


def section_6(preset: Preset) -> Section:
    """AUC of each signal on harder inputs only."""
    nets = prefix_nets(preset)
    plans = preset.prefix_trust

    def build(values: Values) -> Content:
        found: dict[str, list[tuple[str, float, str]]] = {}
        counted = 0
        for m in nets:
            for plan, job in zip(plans, m.trusted, strict=True):
                record = values(job)
                if min(record["right"], record["wrong"]) < _FEWEST:
                    continue
                counted += 1
                for row in record["rows"]:
                    auc = estimate(row["auc"])
                    if auc.count and auc.value == auc.value:
                        text = f"{m.recipe}, seed {m.seed}, {plan.size} bits: {in_figures(auc, 2)}"
                        found.setdefault(row["signal"], []).append((f"{plan.size} bits", auc.value, text))
        means = {signal: estimates.mean([value for _, value, _ in rows]) for signal, rows in found.items()}
        ours = [("mean over nets", means["alignment"])] if "alignment" in means else []
        total = len(nets) * len(plans)
        note = (
            f"{counted} of {total} pairs of net and length have at least {_FEWEST} right and {_FEWEST} wrong answers; "
            "the interval is over these pairs."
        )
        signals = tuple(sorted(means, key=lambda signal: -means[signal].value))
        lengths = [f"{plan.size} bits" for plan in plans]
        figure = dots_by_category(
            "trust",
            "Area under the curve for telling right answers from wrong ones; 0.5 is chance. A point for each net that "
            "has both, on strings longer than in training.",
            signals,
            {
                length: lambda signal, length=length: [
                    (text, estimates.Estimate(value, value, value, 1))
                    for where, value, text in found[signal]
                    if where == length
                ]
                for length in lengths
            },
            y=Axis("AUC", range=(0.0, 1.02)),
            x_title="signal",
            level=0.5,
        )
        table = Table(
            "Mean AUC over nets, with bootstrap intervals over pairs of net and length",
            ("Signal", "AUC", "Pairs"),
            tuple((signal, in_figures(means[signal], 2), str(means[signal].count)) for signal in signals),
        )
        if not signals:
            return Content((decide(ALIGNMENT_TELLS, ours, note),))
        return Content((decide(ALIGNMENT_TELLS, ours, note),), (figure,), (table,))

    return Section(
        6,
        "prefix",
        "Whom to trust",
        "Without labels: which signal tells, example by example, that an answer is right? Asked only of strings longer "
        f"than in training ({', '.join(str(plan.size) for plan in plans)} bits).",
        (ALIGNMENT_TELLS,),
        tuple(job for m in nets for job in m.trusted),
        build,
    )
