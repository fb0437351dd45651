"""`homeostat demo`: two recipes trained, audited and compared."""

from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.options import APP, ERR, OUT, Device, device_of
from homeostat.probes.audits.table import audit_table
from homeostat.studies.demo import BUDGETS, COUNTS, run_demo


@APP.command()
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
        accelerator=device_of(device).type,
        steps=train_steps,
        counts=counts,
        budgets=budgets,
        console=ERR,
    )
    for found in audits:
        OUT.print(audit_table(found))
        OUT.print()
    OUT.print(f"Report: {out / 'report.html'}", soft_wrap=True)
