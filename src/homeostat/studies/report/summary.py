"""The summary of a study as Markdown."""

from homeostat.studies.figures import Table
from homeostat.studies.report.words import minutes, ours
from homeostat.studies.study import StudyReport


def summary(report: StudyReport, *, pictures: bool = False) -> str:
    """Claims on top, then every section with its tables; with `pictures`, links to those that stand beside it.

    Example:
        >>> from homeostat.studies.study import Study
        >>> study = Study("none", "Nothing", "", "smoke", ())
        >>> summary(StudyReport(study, (), (), (), (), "unknown", "1 core")).splitlines()[0]
        '# Nothing'
    """
    study = report.study
    seconds = sum(outcome.seconds for _, outcome in report.outcomes)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
    lines = [
        f"# {study.title}",
        "",
        study.lead,
        "",
        f"Preset `{study.preset}`, commit {report.commit}, {versions}, {report.machine}; {len(report.outcomes)} jobs, "
        f"{minutes(seconds)} by the clock, all jobs added up. Made by `homeostat study {study.name} "
        f"--preset {study.preset}`. Each rule stands in the code beside its claim.",
        "",
    ]
    claims = tuple(
        (str(a.section.number), d.claim.text, d.claim.paper, ours(d), str(d.claim.rule), f"**{d.verdict}**")
        for a in report.answered
        for d in a.claims
    )
    lines += _table(Table("", ("", "Claim", "Paper", "Ours", "Rule", "Verdict"), claims))
    for answered in report.answered:
        section, content = answered.section, answered.content
        lines += ["", f"## {section.number}. {section.title}", "", section.question, ""]
        if content is None:
            lines += [f"Not run: {answered.missing} of its jobs are missing (part `{section.part}`)."]
            continue
        for figure in content.figures if pictures else ():
            lines += [f"![{figure.caption}]({figure.name}.png)", "", figure.caption, ""]
        for table in content.tables:
            lines += [f"{table.caption}:", "", *_table(table), ""]
        lines += [*content.remarks, ""]
        lines += [
            f"* {d.claim.name} (measured: {d.claim.quantity}): **{d.verdict}**. {d.note}" for d in answered.claims
        ]
    if report.foreign:
        lines += ["", f"{len(report.foreign)} results were computed by other code than this summary was made with."]
    return "\n".join(lines).rstrip() + "\n"


def _table(table: Table) -> list[str]:
    def row(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [row(table.columns), "|" + "---|" * len(table.columns), *map(row, table.rows)]
