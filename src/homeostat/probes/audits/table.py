"""An audit on a terminal: the figures that matter, each with its interval, and the verdict."""

import io
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from homeostat.probes.results import Audit, Difficulty, Estimate

_COLUMNS = 6
"""Most budgets that are shown; fewer where the terminal is narrow."""

_UNBOUNDED = 10_000
_STYLES = {
    "may think longer": "bold green",
    "no need": "bold green",
    "may not think longer": "bold red",
    "not decided": "bold yellow",
    "not judged": "bold yellow",
}


def audit_table(audit: Audit) -> RenderableType:
    """The audit as something that rich prints: a table of exact accuracy by budget, and the verdict.

    It shows as many budgets as the width has room for, so that no interval is broken over two lines.
    """
    return _Fitted(audit)


class _Fitted:
    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        audit = self._audit
        table = _table(audit, _COLUMNS)
        for columns in range(_COLUMNS - 1, 1, -1):
            if console.measure(table, options=options.update(width=_UNBOUNDED)).maximum <= options.max_width:
                break
            table = _table(audit, columns)
        shown = sum(column.header.rstrip("*").isdigit() for column in table.columns if isinstance(column.header, str))
        judged = audit.difficulties[0].budgets[0].exact is not None
        what = "exact accuracy [95 % interval]" if judged else "median residual"
        horizon = "unknown" if audit.trained_steps is None else f"{audit.trained_steps} steps"
        yield Text(f"{audit.model}: {what} after so many steps (trained horizon: {horizon})", style="bold")
        yield table
        decision = (audit.verdict.decision.upper(), _STYLES[audit.verdict.decision])
        yield Text.assemble(decision, ": ", audit.verdict.text, ".")
        for note in _notes(audit, shown):
            yield Text(note, style="dim")


def _table(audit: Audit, columns: int) -> Table:
    shown = _shown([b.steps for b in audit.difficulties[0].budgets], audit.trained_steps, columns)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("examples")
    table.add_column("n", justify="right", no_wrap=True)
    for steps in shown:
        title = f"{steps}*" if steps == audit.trained_steps else str(steps)
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("settled", justify="right", no_wrap=True)
    aligned = _has_alignment(audit)
    if aligned:
        table.add_column("aligned", justify="right", no_wrap=True)
    for difficulty in audit.difficulties:
        cells = []
        for steps in shown:
            budget = difficulty.at(steps)
            cells.append(_percent(budget.exact) if budget.exact is not None else f"{budget.residual_median:.0e}")
        last = difficulty.budgets[-1]
        name = Text(difficulty.name)  # brackets in a name are no markup
        table.add_row(
            name, str(difficulty.count), *cells, _percent(last.settled), *([_aligned(difficulty)] if aligned else [])
        )
    return table


def audit_text(audit: Audit, width: int = 120) -> str:
    """The same as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(audit_table(audit))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def _shown(budgets: Sequence[int], horizon: int | None, columns: int) -> list[int]:
    """At most `columns` budgets: the largest, the horizon, and others that are spread evenly over the list."""
    if len(budgets) <= columns:
        return list(budgets)
    chosen = {budgets[-1]} | {budget for budget in budgets if budget == horizon}
    others = columns - len(chosen)
    chosen |= {budgets[round(i * (len(budgets) - 1) / max(1, others))] for i in range(others)}
    return sorted(chosen)


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.0f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _has_alignment(audit: Audit) -> bool:
    return any(difficulty.alignments for difficulty in audit.difficulties)


def _aligned(difficulty: Difficulty) -> str:
    for alignment in difficulty.alignments:
        if alignment.start == "swapped":
            return f"{alignment.cosine.value:.2f} ({alignment.null.value:.2f})"
    return "–"


def _notes(audit: Audit, shown: int) -> list[str]:
    settings = audit.settings
    lines = [
        "Accuracies and shares in %. * is the trained horizon. settled: relative residual RMS(f(z) - z) / RMS(f(z)) "
        f"at most {settings.settle_rtol:g} at {settings.budgets[-1]} steps."
    ]
    if _has_alignment(audit):
        lines[0] += (
            " aligned: cosine with the run that starts from another example's limit (of different examples, as a "
            "baseline)."
        )
    total = len(audit.difficulties[0].budgets)
    if shown < total:
        lines.append(f"{shown} of {total} budgets fit here; all of them are in the report and in audit.json.")
    lines += list(dict.fromkeys(note for d in audit.difficulties for note in d.notes))
    return [textwrap.shorten(line, 400) for line in lines]
