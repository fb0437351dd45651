"""`homeostat calibrate`: when to stop, with a promise, as a small file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from homeostat.cli.options import APP, ERR, OUT, Device, device_of, numbers_of, task_of
from homeostat.errors import InputError
from homeostat.files import make_folder
from homeostat.inference import fit_stopping
from homeostat.inference.puzzles import most_steps
from homeostat.models import load
from homeostat.probes.courses.signals import CHEAP, SIGNALS
from homeostat.studies.bring_your_own import load_model
from homeostat.studies.instances import instances_of
from homeostat.studies.progress import make_progress


@APP.command()
def calibrate(
    checkpoint: Annotated[str | None, typer.Argument(help="Folder of a checkpoint, or a shipped one by name.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Your own model instead: path/to/file.py:build. This runs the file.")
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="Sizes of the calibration instances, in equal shares.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Calibration instances of each size.")] = 1000,
    max_accuracy_loss: Annotated[
        float | None, typer.Option(help="Largest share of accuracy that may be lost; 0.01, 1 point, by default.")
    ] = None,
    max_mean_steps: Annotated[float | None, typer.Option(help="Or: largest mean number of steps an example.")] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Beside it: largest share of wrong ones among the answers that are given.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Probability of the promise.")] = 0.9,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Longest budget; by default what the size needs.")
    ] = None,
    signals: Annotated[
        str | None, typer.Option(help="What rules may look at, with commas between; alignment doubles the cost.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the calibration instances and of their split.")] = 1,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("policy.json"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    device: Device = "cpu",
) -> None:
    """Fit a stopping policy: the cheapest rule that can be promised to lose no more accuracy than asked."""
    if (checkpoint is None) == (model is None):
        raise InputError("give either a checkpoint or --model path/to/file.py:build")
    if max_accuracy_loss is None and max_mean_steps is None:
        max_accuracy_loss = 0.01
    chosen = CHEAP if signals is None else tuple(part.strip() for part in signals.split(",") if part.strip())
    for name in chosen:
        if name not in SIGNALS or name == "steps":
            raise InputError(f"--signals: unknown signal {name!r}; it is one of {', '.join((*CHEAP, 'alignment'))}")
    if out.exists() and not force:
        raise InputError(f"{out} is there already; --force writes over it, --out names another")
    target = device_of(device)
    make_folder(out.parent)

    wishes: dict[str, Any] = {
        "max_accuracy_loss": max_accuracy_loss,
        "max_mean_steps": max_mean_steps,
        "max_error": max_error,
        "confidence": confidence,
        "signals": chosen,
        "seed": seed,
        "device": None if device == "cpu" else target,
    }
    with make_progress(ERR) as progress:
        bar = progress.add_task("calibrate", total=None, note="")

        def tell(name: str, done: int) -> None:
            progress.update(bar, note=f"{name}, {done} examples done")

        if model is not None:
            if sizes is not None:
                raise InputError("--sizes is for checkpoints; your own model brings its own examples")
            own = load_model(model)
            with own.blame():
                longest = max_steps or own.default_budgets()[-1]
                source = own.subject, own.examples
                policy = fit_stopping(source, judge=own.subject, max_steps=longest, on_examples=tell, **wishes)
        else:
            assert checkpoint is not None
            loaded = load(checkpoint, device=target)
            task = task_of(loaded)
            wanted = numbers_of(sizes, "--sizes") if sizes is not None else task.sizes
            groups = {g.name: g for g in instances_of(task, dict.fromkeys(wanted, count), seed=seed)}
            longest = max_steps or most_steps(loaded.config, max(group.side for group in groups.values()))
            source = loaded.model, groups
            policy = fit_stopping(source, judge=task, max_steps=longest, on_examples=tell, **wishes)
        progress.update(bar, total=1.0, completed=1.0, note="")
    policy.save(out)
    OUT.print(repr(policy), soft_wrap=True, highlight=False, markup=False)
    OUT.print(f"\nPolicy: {out}", soft_wrap=True)
