"""Figures as a table: for the terminal, and as Markdown for the documentation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from benchmarks.results import Figure, load

_COLOURS = {"reached": "green", "not reached": "bold red", "reported": "dim", "not available": "yellow"}


_PREFACE = """# Benchmarks

Made by `make bench` (`make bench-jax` first, for the peers that are written in JAX); do not edit. All single figures,
with times, seeds and counts, are in [`benchmarks/results`](../benchmarks/results).

* Ratios are taken in pairs, on one thread: every candidate runs between two runs of what it is compared with, and is
  divided by their mean. A figure is the median of these ratios, with their 10th and 90th percentile in brackets; a
  verdict goes by the median, never by the better end. `x` is a ratio of times where a line does not say otherwise.
* Cells: MLP `tanh(z W + x)`, batch 64, 128 wide; two-layer MLP `tanh(relu(z V + x) W)`, the same; conv
  `tanh(conv3x3(z) + x)`, batch 16, 64 channels, 32x32; transformer, a pre-norm block with 4 heads, batch 8, 128 tokens,
  256 wide. A ratio depends on what the cell costs: the same few microseconds weigh twice as much on a machine whose
  matrix product is twice as fast.
* Overheads are per evaluation, with the stopping test on, on maps that do not settle: chaotic ones, and for what
  accelerates also *slow* ones (rate 0.9999), on which the extrapolation is at work. Every row was checked to have taken
  every step. torchdeq's solvers are called without the module around them, with the same number of evaluations and the
  same memory, their test on; their evaluations are counted.
* Memory is the largest sum of what torch's allocator had given out, inside operators too, beyond that of a bare loop.
* The 200 random maps and the shifts are described in [`benchmarks/maps.py`](../benchmarks/maps.py), as they were before
  any of them was solved.
* The 200 linear systems of the adjoint are described in [`benchmarks/systems.py`](../benchmarks/systems.py), as they
  were before any of them was solved; residuals are taken again in float64.
* jaxopt and optimistix run in another process, on the same weights in float32, in turns with ours. They are pinned to
  one core and compiled without XLA's own threads. All stop at the same residual, ours for each row, theirs for the
  batch as one, which is easier."""


def number(value: float, unit: str) -> str:
    """As many digits as mean something.

    Example:
        >>> number(1.234567, "x"), number(34240, "row-evaluations"), number(97.25, "%"), number(float("inf"), "x")
        ('1.23', '34,240', '97.2', 'inf')
    """
    if value == float("inf"):
        return "inf"
    if unit == "x" or unit == "states":
        return f"{value:.2f}"
    if abs(value) < 0.01 and value:
        return f"{value:.1e}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.1f}"


def measured(figure: Figure) -> str:
    """The value with its spread."""
    if figure.value is None:
        return figure.missing
    text = number(figure.value, figure.unit)
    if figure.low is not None and figure.high is not None and figure.samples > 1:
        text += f" [{number(figure.low, figure.unit)}–{number(figure.high, figure.unit)}]"
    return text if figure.unit == "x" else f"{text} {figure.unit}"


def wanted(figure: Figure) -> str:
    if figure.target is None:
        return "–"
    sign = "≤" if figure.target.kind == "at most" else "≥"
    return f"{sign} {number(figure.target.limit, figure.unit)}"


def table(machine: Mapping[str, Any], figures: list[Figure]) -> Table:
    """For the terminal."""
    where = f"{machine['processor']}, {machine['threads']} thread(s), torch {machine['torch']}, {machine['commit']}"
    made = Table(title=f"{machine['device']}: {where}", title_justify="left", show_lines=False)
    made.add_column("what", overflow="fold", ratio=5)
    made.add_column("measured [10th–90th percentile]", justify="right", overflow="fold", ratio=3)
    made.add_column("target", justify="right", no_wrap=True)
    made.add_column("verdict", no_wrap=True)
    made.add_column("torchdeq, same run", justify="right", overflow="fold", ratio=2)
    group = None
    for figure in figures:
        if group not in (None, figure.group):
            made.add_section()
        group = figure.group
        colour = _COLOURS[figure.verdict]
        made.add_row(
            escape(figure.name + (f" ({figure.note})" if figure.note else "")),
            escape(measured(figure)),
            wanted(figure),
            f"[{colour}]{figure.verdict}[/]",
            escape(figure.peer),
        )
    return made


def markdown(machine: Mapping[str, Any], figures: list[Figure]) -> str:
    """One section of the documentation: where, then the table."""
    lines = [
        f"## {machine['device'].upper() if machine['device'] == 'cpu' else machine.get('gpu', machine['device'])}",
        "",
        f"{machine['processor']}, {machine['cores']} cores of which {machine['threads']} used; torch "
        f"{machine['torch']}, torchdeq {machine['torchdeq'] or 'not installed'}, Python {machine['python']}; commit "
        f"`{machine['commit']}`, {machine['time'][:10]}.",
        "",
        "| what | measured | target | verdict | torchdeq, same run |",
        "|---|---|---|---|---|",
    ]
    for figure in figures:
        verdict = f"**{figure.verdict}**" if figure.verdict == "not reached" else figure.verdict
        name = figure.name + (f" ({figure.note})" if figure.note else "")
        cells = (name, measured(figure), wanted(figure), verdict, figure.peer or "–")
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    counts = {kind: sum(f.verdict == kind for f in figures) for kind in _COLOURS}
    lines += ["", ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) + "."]
    return "\n".join(lines)


def write_document(results: Path, document: Path) -> None:
    """The page of the documentation, from the runs that are there; nothing in it is written by hand."""
    sections = [markdown(*load(path)) for path in sorted(results.glob("*.json"))]
    document.write_text("\n\n".join([_PREFACE, *sections]) + "\n", encoding="utf-8")
