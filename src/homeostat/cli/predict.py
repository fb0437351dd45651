"""`homeostat predict`: answers for a user's own puzzles."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.options import APP, OUT, Device, device_of, read_source, task_of
from homeostat.errors import InputError
from homeostat.files import write_text
from homeostat.inference import Policy, answer_puzzles
from homeostat.inference.writing import as_json, as_text, write_pictures
from homeostat.models import load
from homeostat.tasks import PuzzleTask


class Format(StrEnum):
    """How predictions are written."""

    text = "text"
    json = "json"
    picture = "picture"


@APP.command()
def predict(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint, or a shipped one by name.")],
    source: Annotated[
        str, typer.Argument(metavar="[INPUT]", help="A file; standard input when it is left out or '-'.")
    ] = "-",
    format: Annotated[
        Format | None, typer.Option(help="How to write the answers; a picture when --output ends in .png, else text.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write to; needed for pictures.")] = None,
    rtol: Annotated[
        float | None, typer.Option(min=0, max=1, help="Relative residual at which an example stops; 0.001 by default.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, max=10_000_000, help="Most steps; by default what the size needs.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="File of a stopping policy, made by homeostat calibrate, in place of these two.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Answer your own input: bit strings as lines of text, mazes as text or as a picture."""
    if format is None:
        drawn = output is not None and output.suffix.lower() == ".png"
        format = Format.picture if drawn else Format.text
    if format is Format.picture and output is None:
        raise InputError("a picture needs a file to go to: --output solved.png")
    if policy is not None and (rtol is not None or max_steps is not None):
        raise InputError("--policy says when to stop; leave out --rtol and --max-steps")
    rule = None if policy is None else Policy.load(policy)
    loaded = load(checkpoint, device=device_of(device))
    if rule is not None:
        rule.check(loaded.model)
    task = task_of(loaded)
    if not isinstance(task, PuzzleTask):
        raise InputError(f"{loaded.config.name} was trained for {task.name}, which has no form that people type")
    name = "standard input" if source == "-" else source
    puzzles = task.parse(read_source(source), name=name)
    limits = {} if rtol is None else {"rtol": rtol}
    answers = answer_puzzles(loaded, task, puzzles, max_steps=max_steps, policy=rule, **limits)
    if format is Format.picture:
        assert output is not None
        for path, how in write_pictures(task, answers, output):
            OUT.print(f"{path}: {how}", soft_wrap=True, highlight=False, markup=False)
        return
    write = as_json if format is Format.json else as_text
    text = "".join(write(task, answer) for answer in answers)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text)
