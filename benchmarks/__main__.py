"""`python -m benchmarks`: everything, or `--only` some groups; prints a table, and writes results and documentation."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks import overhead
from benchmarks.report import table
from benchmarks.results import Figure, describe_machine, save

ROOT = Path(__file__).parents[1]

Group = Callable[[str, float], Iterator[Figure]]


def _overhead(family: str) -> Group:
    return lambda device, share: overhead.measure({family}, device, share)


GROUPS: dict[str, Group] = {
    "picard": _overhead("Picard"),
    "anderson": _overhead("Anderson"),
    "broyden": _overhead("Broyden"),
}


def main(
    only: Annotated[str, typer.Option(help=f"Groups, with commas between them: {', '.join(GROUPS)}.")] = "",
    quick: Annotated[bool, typer.Option(help="A tenth of the time: fewer pairs, wider spreads.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where to write the figures as JSON.")] = None,
) -> None:
    """Measure, print and write down."""
    names = [name.strip() for name in only.split(",") if name.strip()] or list(GROUPS)
    unknown = sorted(set(names) - set(GROUPS))
    if unknown:
        raise typer.BadParameter(f"no such group: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    torch.set_num_threads(1)
    console = Console()
    warnings.simplefilter("ignore")
    figures = []
    for name in names:
        with console.status(name):
            for figure in GROUPS[name]("cpu", 0.1 if quick else 1.0):
                figures.append(figure)
    machine = describe_machine("cpu")
    console.print(table(machine, figures))
    if output:
        save(output, machine, figures)


if __name__ == "__main__":
    typer.run(main)
