"""The command line: `homeostat demo | train | audit | predict | tasks`."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from lightning_fabric import Fabric
from lightning_fabric.utilities import rank_zero_only
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from homeostat.errors import HomeostatError, InputError
from homeostat.files import make_folder, write_text
from homeostat.inference import answer_puzzles
from homeostat.inference.writing import as_json, as_text, write_pictures
from homeostat.models import Checkpoint, load, shipped
from homeostat.probes import audit, save_audits
from homeostat.probes.table import audit_table
from homeostat.studies.bring_your_own import load_model
from homeostat.studies.demo import BUDGETS, COUNTS, run_demo
from homeostat.studies.progress import make_progress
from homeostat.studies.task_audit import audit_checkpoint
from homeostat.tasks import TASKS, Task, get_task
from homeostat.training import RECIPES, REFERENCE, Recipe, TrainingEvent, get_recipe, train

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, audit and use PyTorch models that think by iterating.",
)
_out, _err = Console(), Console(stderr=True)

_MOST_BYTES = 100_000_000
"""Longest input that is read: endless ones, such as devices, end here."""


class Format(StrEnum):
    """How predictions are written."""

    text = "text"
    json = "json"
    picture = "picture"


Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, mps; cuda:1 for the second GPU.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report and the models.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Models of each recipe.")] = 1,
    device: Device = "cpu",
    train_steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the recipes' own by default.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Test strings of each length; by default 32 to 128.")] = None,
    longest: Annotated[int, typer.Option(min=32, help="Longest strings to audit, in bits.")] = max(COUNTS),
) -> None:
    """Train two models that differ in their recipe alone, audit both, and compare: about four minutes on two cores."""
    counts = {size: count or default for size, default in COUNTS.items() if size <= longest}
    most = BUDGETS[-1] * longest // max(COUNTS)
    budgets = tuple(sorted({min(budget, most) for budget in BUDGETS}))
    audits = run_demo(
        out,
        seeds=seeds,
        accelerator=_device(device).type,
        steps=train_steps,
        counts=counts,
        budgets=budgets,
        console=_err,
    )
    for found in audits:
        _out.print(audit_table(found))
        _out.print()
    _out.print(f"Report: {out / 'report.html'}", soft_wrap=True)


@app.command("train")
def train_command(
    task: Annotated[str, typer.Argument(help=f"Task to train on: {', '.join(TASKS)}.")],
    recipe: Annotated[
        str | None,
        typer.Option(help=f"Recipe by name ({', '.join(RECIPES)}) or a JSON file; the task's reference by default."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/RECIPE-SEED by default.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the recipe's own by default.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Global batch; the recipe's own by default.")] = None,
    device: Device = "cpu",
    devices: Annotated[int, typer.Option(min=1, help="Processes or GPUs.")] = 1,
    strategy: Annotated[str, typer.Option(help="As Lightning Fabric names it: auto, ddp, …")] = "auto",
    precision: Annotated[str, typer.Option(help="As Lightning Fabric names it: 32-true, bf16-mixed, …")] = "32-true",
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Training steps between two checkpoints.")] = 100,
) -> None:
    """Train a model. The same command again goes on where a killed one stopped."""
    target = get_task(task)
    chosen = _recipe(recipe or REFERENCE[target.name], target)
    changes = {key: value for key, value in (("steps", steps), ("batch", batch)) if value is not None}
    chosen = chosen.model_copy(update=changes)
    folder = out or Path("runs") / f"{chosen.name}-{seed}"
    place = _device(device)
    if place.index is not None and devices > 1:
        raise InputError(f"--device {device} is one device, --devices asks for {devices}; leave out its number")
    try:
        fabric = Fabric(
            accelerator=place.type,
            devices=[place.index] if place.type == "cuda" and place.index is not None else devices,
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
        )
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"Fabric refuses these options: {error}") from error
    with make_progress(_err) as progress:
        bar = progress.add_task(f"train {chosen.name}", total=chosen.steps, note="", visible=fabric.is_global_zero)

        def tell(event: TrainingEvent) -> None:
            progress.update(bar, completed=event.step, note=f"loss {event.loss:.4f}")

        checkpoint = train(chosen, folder, seed=seed, fabric=fabric, checkpoint_every=checkpoint_every, on_step=tell)
        progress.update(bar, completed=chosen.steps)
    if fabric.is_global_zero:
        record = checkpoint.config.training
        _out.print(
            f"{checkpoint} in {folder}: loss {record['final_loss']:.4f} (mean of the last 50 steps), "
            f"seed {seed}, {record['seconds']:.0f} s of training",
            soft_wrap=True,
        )


@app.command("audit")
def audit_command(
    checkpoint: Annotated[str | None, typer.Argument(help="Folder of a checkpoint, or a shipped one by name.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Your own model instead: path/to/file.py:build. This runs the file.")
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="Sizes of the test instances, such as 32,64,128.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Test instances of each size.")] = 64,
    steps: Annotated[str | None, typer.Option(help="Budgets, such as 1,4,16,64.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html, audit.json and examples.parquet.")] = None,
    settle_rtol: Annotated[float, typer.Option(min=0, max=1, help="Relative residual that counts as settled.")] = 1e-3,
    alignment: Annotated[bool, typer.Option(help="Also run from other starts.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of test instances and noise starts.")] = 0,
    device: Device = "cpu",
) -> None:
    """Audit a checkpoint, or your own model: does thinking longer help?"""
    if (checkpoint is None) == (model is None):
        raise InputError("give either a checkpoint or --model path/to/file.py:build")
    budgets = None if steps is None else _numbers(steps, "--steps")
    target = _device(device)
    if out is not None:
        make_folder(out)
    with make_progress(_err) as progress:
        bar = progress.add_task("audit", total=1.0, note="")
        if model is not None:
            if sizes is not None:
                raise InputError("--sizes is for checkpoints; your own model brings its own examples")
            own = load_model(model)
            with own.blame():
                found = audit(
                    own.subject,
                    own.examples,
                    steps=budgets or own.default_budgets(),
                    judge=own.subject,
                    settle_rtol=settle_rtol,
                    alignment=alignment,
                    seed=seed,
                    device=None if device == "cpu" else target,
                    on_event=lambda event: progress.update(
                        bar, note=f"{event.difficulty}, {event.first} examples done"
                    ),
                )
        else:
            assert checkpoint is not None
            loaded = load(checkpoint, device=target)
            task = _task_of(loaded)
            wanted = _numbers(sizes, "--sizes") if sizes is not None else task.sizes
            found = audit_checkpoint(
                loaded,
                task,
                dict.fromkeys(wanted, count),
                steps=budgets,
                seed=seed,
                alignment=alignment,
                settle_rtol=settle_rtol,
                on_progress=lambda share: progress.update(bar, completed=share),
            )
        progress.update(bar, completed=1.0, note="")
    if out is not None:
        save_audits([found], out)
    _out.print(audit_table(found))
    if out is not None:
        _out.print(f"\nReport: {out / 'report.html'}", soft_wrap=True)


@app.command()
def predict(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint, or a shipped one by name.")],
    source: Annotated[
        str, typer.Argument(metavar="[INPUT]", help="A file; standard input when it is left out or '-'.")
    ] = "-",
    format: Annotated[
        Format | None, typer.Option(help="How to write the answers; a picture when --output ends in .png, else text.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write to; needed for pictures.")] = None,
    rtol: Annotated[float, typer.Option(min=0, max=1, help="Relative residual at which an example stops.")] = 1e-3,
    max_steps: Annotated[
        int | None, typer.Option(min=1, max=10_000_000, help="Most steps; by default what the size needs.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Answer your own input: bit strings as lines of text, mazes as text or as a picture."""
    if format is None:
        drawn = output is not None and output.suffix.lower() == ".png"
        format = Format.picture if drawn else Format.text
    if format is Format.picture and output is None:
        raise InputError("a picture needs a file to go to: --output solved.png")
    loaded = load(checkpoint, device=_device(device))
    task = _task_of(loaded)
    name = "standard input" if source == "-" else source
    puzzles = task.parse(_read(source), name=name)
    answers = answer_puzzles(loaded, task, puzzles, rtol=rtol, max_steps=max_steps)
    if format is Format.picture:
        assert output is not None
        for path, how in write_pictures(task, answers, output):
            _out.print(f"{path}: {how}", soft_wrap=True, highlight=False, markup=False)
        return
    write = as_json if format is Format.json else as_text
    text = "".join(write(task, answer) for answer in answers)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text)


@app.command()
def tasks() -> None:
    """List tasks, their recipes and the checkpoints that come with the package."""
    models = {name: load(name).config.task.name for name in shipped()}
    for name, task in TASKS.items():
        recipes = [
            f"{r.name}{' (reference)' if REFERENCE.get(name) == r.name else ''}"
            for r in RECIPES.values()
            if r.task.name == name
        ]
        there = [model for model, of in models.items() if of == name]
        _out.print(Text.assemble((name, "bold"), f": {task.summary}"))
        table = Table.grid(padding=(0, 2))
        table.add_row("  sizes", f"{', '.join(map(str, task.sizes))} {task.size_name}")
        table.add_row("  recipes", ", ".join(recipes))
        table.add_row("  shipped checkpoints", ", ".join(there) or "none")
        _out.print(table)


def _read(source: str) -> bytes:
    try:
        if source != "-":
            with open(source, "rb") as stream:
                data = stream.read(_MOST_BYTES + 1)
        elif sys.stdin is None:
            raise InputError("standard input is closed; name a file")
        else:
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"{source} has more than {_MOST_BYTES:,} bytes; hand it in in parts")
    return data


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # a device without data, such as meta, fails here
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError:
        raise InputError(f"{option} takes whole numbers with commas between, such as 1,4,16, not {text!r}") from None
    if not numbers or min(numbers) < 1:
        raise InputError(f"{option} takes whole numbers of 1 or more, such as 1,4,16, not {text!r}")
    return tuple(sorted(set(numbers)))


def _task_of(checkpoint: Checkpoint) -> Task:
    return get_task(checkpoint.config.task.name, **checkpoint.config.task.options)


def _recipe(source: str, task: Task) -> Recipe:
    if source in RECIPES or not Path(source).suffix:
        recipe = get_recipe(source)
    else:
        try:
            recipe = Recipe.model_validate_json(_read(source))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{source}: {where + ': ' if where else ''}{first['msg']}") from error
    if recipe.task.name != task.name:
        raise InputError(f"recipe {recipe.name} is for {recipe.task.name}, not for {task.name}")
    return recipe


def main() -> None:
    """Entry point: what goes wrong is one line on standard error, and exit code 2."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except HomeostatError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone, as in `homeostat predict … | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except (MemoryError, torch.OutOfMemoryError) as error:
        _fail(f"not enough memory: {error}")
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", code=130)
    except Exception as error:
        # Wrong options: typer's own class for these differs between its versions.
        describe = getattr(error, "format_message", None)
        if describe is None and _rank():
            _fail(f"process {_rank()}: {type(error).__name__}: {error}", quiet=False)
        if describe is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(describe())
            sys.exit(2)
        _fail(f"{describe().rstrip('.')}; see {_command(error)} --help")
    else:
        if code == 130:
            _fail("interrupted", code=130)
        sys.exit(code)


def _command(error: Any) -> str:
    """The command whose options were wrong, as in `homeostat train`."""
    context = getattr(error, "ctx", None)
    name = None if context is None or context.parent is None else context.info_name
    return f"homeostat {name}" if name else "homeostat"


def _rank() -> int:
    """Which of several training processes this is; 0 is the first one, or the only one."""
    return getattr(rank_zero_only, "rank", 0)


def _fail(message: str, code: int = 2, quiet: bool | None = None) -> Any:
    """Say what is wrong and leave. Of several processes that find the same, the first one speaks."""
    if _rank() > 0 if quiet is None else quiet:
        sys.exit(code)
    # A name of a file may hold bytes that no encoding knows.
    line = " ".join(message.encode(errors="backslashreplace").decode().split())
    _err.print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)
    sys.exit(code)
