"""`python -m benchmarks.stopping evaluations|guarantee|speed CHECKPOINT`: figures of stopping policies, as JSON."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.results import describe_machine
from benchmarks.stopping import evaluations as evaluating
from benchmarks.stopping import guarantee as promising
from benchmarks.stopping import speed as timing
from benchmarks.stopping.kept import courses_of, set_threads
from homeostat.files import write_text
from homeostat.inference import Policy
from homeostat.models import load
from homeostat.tasks import get_task

APP = typer.Typer(no_args_is_help=True, add_completion=False)
OUT = Console()

Sizes = Annotated[str, typer.Argument(help="Sizes of the instances, with commas between.")]
Kept = Annotated[Path, typer.Option(help="Folder of what was computed so far; a killed run goes on from there.")]
Save = Annotated[Path | None, typer.Option(help="File for the figures.")]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _told(figures: dict[str, Any], command: str, began: float, out: Path | None) -> None:
    record = {"command": command, "seconds": time.perf_counter() - began, "machine": describe_machine("cpu"), **figures}
    OUT.print_json(json.dumps({k: v for k, v in figures.items() if k != "policy"}))
    if out is not None:
        write_text(out, json.dumps(record, indent=1) + "\n")


@APP.command()
def evaluations(
    checkpoint: str,
    sizes: Sizes,
    max_steps: Annotated[int, typer.Argument(help="The longest budget.")],
    count: int = 800,
    loss: float = 0.001,
    confidence: float = 0.9,
    test_seed: Annotated[int, typer.Option(min=2, help="Of the test instances; 1 is that of calibration.")] = 2,
    folder: Kept = Path("runs/stopping"),
    out: Save = None,
) -> None:
    """Row-evaluations of the fitted policy against one budget for all, in equal shares of the sizes."""
    set_threads()
    began, loaded = time.perf_counter(), load(checkpoint)
    task, wanted = get_task(loaded.config.task.name, **loaded.config.task.options), _numbers(sizes)
    parts = [
        courses_of(loaded, task, wanted, count, seed=seed, max_steps=max_steps, folder=folder, tell=OUT.print)
        for seed in (1, test_seed)
    ]
    figures = {"checkpoint": loaded.config.name, **evaluating.measure(parts[0], parts[1], loss, confidence)}
    if out is not None:
        write_text(out.with_suffix(".policy.json"), Policy.model_validate(figures["policy"]).to_json())
    command = (
        f"python -m benchmarks.stopping evaluations {checkpoint} {sizes} {max_steps} --count {count} --loss {loss} "
        f"--test-seed {test_seed}"
    )
    _told(figures, command, began, out)


@APP.command()
def guarantee(
    checkpoint: str,
    size: int,
    max_steps: Annotated[int, typer.Argument(help="The longest budget.")],
    sets: int = 200,
    count: int = 1000,
    fresh: int = 100_000,
    loss: float = 0.02,
    confidence: float = 0.9,
    folder: Kept = Path("runs/stopping"),
    out: Save = None,
) -> None:
    """Policies from fresh calibration sets, each judged on fresh examples: how often is the promise broken?"""
    set_threads()
    began, loaded = time.perf_counter(), load(checkpoint)
    task = get_task(loaded.config.task.name, **loaded.config.task.options)
    pool, new = (
        courses_of(
            loaded, task, [size], many, seed=seed, max_steps=max_steps, folder=folder, tell=OUT.print, part=10_000
        )
        for seed, many in ((3, sets * count), (4, fresh))
    )
    figures = {"checkpoint": loaded.config.name, **promising.measure(pool, new, sets, count, loss, confidence)}
    command = (
        f"python -m benchmarks.stopping guarantee {checkpoint} {size} {max_steps} --sets {sets} --count {count} "
        f"--fresh {fresh} --loss {loss}"
    )
    _told(figures, command, began, out)


@APP.command()
def speed(
    checkpoint: str,
    sizes: Sizes,
    policy: Path,
    budget: int,
    count: int = 256,
    pairs: int = 5,
    seed: int = 5,
    out: Save = None,
) -> None:
    """Wall time of `predict` by a policy against batches of one fixed budget, in pairs."""
    set_threads()
    began, loaded = time.perf_counter(), load(checkpoint)
    task = get_task(loaded.config.task.name, **loaded.config.task.options)
    figures = timing.measure(loaded, task, _numbers(sizes), count, Policy.load(policy), budget, pairs, seed)
    command = f"python -m benchmarks.stopping speed {checkpoint} {sizes} {policy} {budget} --count {count}"
    _told({"checkpoint": loaded.config.name, **figures}, command, began, out)


if __name__ == "__main__":
    APP()
