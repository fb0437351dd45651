"""`homeostat audit`: does thinking longer help?"""

from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.options import APP, ERR, OUT, Device, device_of, numbers_of, task_of
from homeostat.errors import InputError
from homeostat.files import make_folder
from homeostat.models import load
from homeostat.probes import audit, save_audits
from homeostat.probes.audits.table import audit_table
from homeostat.studies.bring_your_own import load_model
from homeostat.studies.progress import make_progress
from homeostat.studies.task_audit import audit_checkpoint


@APP.command("audit")
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
    budgets = None if steps is None else numbers_of(steps, "--steps")
    target = device_of(device)
    if out is not None:
        make_folder(out)
    with make_progress(ERR) as progress:
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
            task = task_of(loaded)
            wanted = numbers_of(sizes, "--sizes") if sizes is not None else task.sizes
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
    OUT.print(audit_table(found))
    if out is not None:
        OUT.print(f"\nReport: {out / 'report.html'}", soft_wrap=True)
