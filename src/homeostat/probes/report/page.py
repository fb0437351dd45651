"""From audits to one HTML page: the template is filled, and every part that it needs is put inside."""

from collections.abc import Sequence

from markupsafe import Markup

from homeostat.errors import InputError
from homeostat.probes.report import facts, words
from homeostat.probes.report.payload import FACTS, difficulty_names, payload, to_json
from homeostat.probes.report.shell import fill, part
from homeostat.probes.results import LIMIT_CLASSES, Audit


def render_report(audits: Sequence[Audit], *, title: str) -> str:
    """One or more audits as a self-contained HTML page, to be written to a file as UTF-8.

    The page loads nothing: styles, scripts, the plotting library and the data stand in it, and it forbids itself any
    connection. Names and titles that come from the user are shown as text, whatever they contain.

    Arguments:
        audits: the models to compare, one audit each; difficulties of the same name share a colour.
        title: the heading of the page.

    Returns:
        The page.

    Raises:
        InputError: there is no audit to report.

    Example:
        >>> from homeostat.probes.results import Audit, Settings, Verdict
        >>> settings = Settings((), 1e-3, 0, 1.0, "float32", "cpu", {}, 0.0)
        >>> verdict = Verdict("not judged", "Nothing was measured.", ())
        >>> page = render_report([Audit("bare", "", None, 1.0, None, settings, (), verdict)], title="First look")
        >>> "<h1>First look</h1>" in page
        True
    """
    if not audits:
        raise InputError("a report needs at least one audit; the list is empty")
    data = payload(audits)
    names = difficulty_names(audits)
    return fill(
        part("page.html.j2"),
        title=title,
        helpers=_HELPERS,
        audits=audits,
        data=data,
        names=names,
        colours={entry["name"]: entry for entry in data["difficulties"]},
        heads=[
            (
                facts.common_steps([facts.horizon_budget(audit, difficulty) for difficulty in audit.difficulties]),
                facts.common_steps([facts.last_budget(difficulty) for difficulty in audit.difficulties]),
            )
            for audit in audits
        ],
        limit_classes=LIMIT_CLASSES,
        fact_names=[(key, name) for key, name, _ in FACTS],
        charts=Markup(part("charts.js")),
        gallery=Markup(part("gallery.js")),
        json=Markup(to_json(data)),
    )


_HELPERS = {
    "bounds": words.bounds,
    "steps_and_cost": words.steps_and_cost,
    "share": facts.share,
    "spread": {key: (lambda difficulty, of=of: facts.spread(difficulty, of)) for key, _, of in FACTS},
    "horizon_budget": facts.horizon_budget,
    "last_budget": facts.last_budget,
    "limit_shares": facts.limit_shares,
    "periods": facts.periods,
    "failed_examples": facts.failed_examples,
    "lost": facts.lost,
    "not_measured": facts.not_measured,
}
