"""An audit on a terminal: the figures that matter, each with its interval, and the verdict."""

import io
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from homeostat.probes.results import Audit, Difficulty, Estimate

_COLUMNS = 6
_STYLES = {
    "may think longer": "bold green",
    "no need": "bold green",
    "may not think longer": "bold red",
    "not decided": "bold yellow",
    "not judged": "bold yellow",
}


def audit_table(audit: Audit) -> Group:
    """The audit as something that rich prints: a table of exact accuracy by budget, and the verdict."""
    shown = _shown([b.steps for b in audit.difficulties[0].budgets], audit.trained_steps)
    judged = audit.difficulties[0].budgets[0].exact is not None
    what = "exact accuracy [95 % interval]" if judged else "median residual"
    horizon = "unknown" if audit.trained_steps is None else f"{audit.trained_steps} steps"
    table = Table(
        title=f"{audit.model}: {what} after so many steps (trained horizon: {horizon})",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("examples")
    table.add_column("n", justify="right")
    for steps in shown:
        table.add_column(f"{steps}*" if steps == audit.trained_steps else str(steps), justify="right")
    table.add_column("settled", justify="right")
    table.add_column("aligned", justify="right")
    for difficulty in audit.difficulties:
        cells = []
        for steps in shown:
            budget = difficulty.at(steps)
            cells.append(_percent(budget.exact) if budget.exact is not None else f"{budget.residual_median:.0e}")
        last = difficulty.budgets[-1]
        table.add_row(difficulty.name, str(difficulty.count), *cells, _percent(last.settled), _aligned(difficulty))
    decision = Text.assemble(
        (audit.verdict.decision.upper(), _STYLES[audit.verdict.decision]), ": ", audit.verdict.text, "."
    )
    notes = _notes(audit)
    return Group(table, Padding(decision, (0, 0, 0, 1)), *(Padding(Text(n, style="dim"), (0, 0, 0, 1)) for n in notes))


def audit_text(audit: Audit, width: int = 120) -> str:
    """The same as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(audit_table(audit))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def _shown(budgets: Sequence[int], horizon: int | None) -> list[int]:
    """A few budgets, spread evenly over the list, always with the horizon and the largest."""
    if len(budgets) <= _COLUMNS:
        return list(budgets)
    places = {round(i * (len(budgets) - 1) / (_COLUMNS - 2)) for i in range(_COLUMNS - 1)}
    chosen = {budgets[place] for place in places}
    if horizon is not None and horizon in budgets:
        chosen.add(horizon)
    return sorted(chosen)


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.0f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _aligned(difficulty: Difficulty) -> str:
    for alignment in difficulty.alignments:
        if alignment.start == "swapped":
            return f"{alignment.cosine.value:.2f} ({alignment.null.value:.2f})"
    return "–"


def _notes(audit: Audit) -> list[str]:
    settings = audit.settings
    lines = [
        "Accuracies and shares in %. * is the trained horizon. settled: relative residual RMS(f(z) - z) / RMS(f(z)) "
        f"at most {settings.settle_rtol:g} at {settings.budgets[-1]} steps. aligned: cosine with the run that starts "
        "from another example's limit (of different examples, as a baseline)."
    ]
    lines += list(dict.fromkeys(note for d in audit.difficulties for note in d.notes))
    return [textwrap.shorten(line, 400) for line in lines]
