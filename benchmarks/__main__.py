"""`python -m benchmarks`: everything, or `--only` some groups; prints a table, and writes results and documentation."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import (
    acceleration,
    adjoint,
    batches,
    checks,
    compatibility,
    coupled,
    memory,
    meta_learning,
    overhead,
    peers_jax,
    training,
    unguarded,
)
from benchmarks.report import table, write_document
from benchmarks.results import Figure, describe_machine, save

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Group = Callable[[str, float], Iterator[Figure]]

GROUPS: dict[str, Group] = {
    "picard": partial(overhead.measure, "Picard"),
    "anderson": partial(overhead.measure, "Anderson"),
    "broyden": partial(overhead.measure, "Broyden"),
    "acceleration": acceleration.linear,
    "safeguard": acceleration.safeguard,
    "unguarded": unguarded.measure,
    "adjoint": adjoint.measure,
    "batches": batches.measure,
    "checks": checks.measure,
    "coupled": coupled.measure,
    "memory": memory.measure,
    "training": training.measure,
    "compat": compatibility.measure,
    "jax": peers_jax.measure,
    "meta": meta_learning.measure,
}


def _measure(names: list[str], device: str, share: float, console: Console) -> list[Figure]:
    """Run groups one after another; what goes wrong in one of them is told and does not end the run."""
    figures: list[Figure] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(device, total=len(names))
        for name in names:
            start = time.perf_counter()
            progress.update(task, description=f"{device}: {name}")
            try:
                for figure in GROUPS[name](device, share):
                    figures.append(figure)
                    progress.update(task, description=f"{device}: {name}, {len(figures)} figures")
            except Exception as error:  # the engine is what is being tested: a group that breaks is a result
                console.print_exception()
                figures.append(Figure.absent(name, f"{name}: the rest", f"{type(error).__name__}: {error}"))
            progress.advance(task)
            progress.console.print(f"{device}: {name} took {time.perf_counter() - start:.0f} s")
    return figures


def _chosen(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = sorted(set(names) - set(GROUPS))
    if unknown:
        raise typer.BadParameter(f"no such group: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    return names or list(GROUPS)


def main(
    only: Annotated[str, typer.Option(help=f"Groups, with commas between: {', '.join(GROUPS)}.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the time: fewer pairs, wider spreads.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or all; all is cuda too where there is one.")] = "all",
    output: Annotated[
        Path | None, typer.Option(help="A folder for the JSON files; a whole run has benchmarks/results.")
    ] = None,
) -> None:
    """Measure speed, memory and acceleration beside peers. A whole run also writes docs/benchmarks.md."""
    names = _chosen(only)
    whole = not only and not quick
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])] if device == "all" else [device]
    torch.set_num_threads(1)
    # Rows that do not settle are what overheads are measured on; the engine warns of each of them, rightly.
    warnings.simplefilter("ignore")
    progress = Console(stderr=True)
    console = Console(width=None if sys.stdout.isatty() else 150)
    folder = output or (RESULTS if whole else None)
    for place in devices:
        figures = _measure(names, place, 0.1 if quick else 1.0, progress)
        machine = describe_machine(place)
        console.print(table(machine, figures))
        if folder is not None:
            save(folder / f"{place}.json", machine, figures)
    if folder == RESULTS:
        write_document(RESULTS, ROOT / "docs" / "benchmarks.md")


if __name__ == "__main__":
    typer.run(main)
