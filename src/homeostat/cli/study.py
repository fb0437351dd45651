"""`homeostat study`: a paper's claims, tested by what they can be tested with here."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from homeostat.cli.options import APP, ERR, OUT, Device, device_of
from homeostat.errors import HomeostatError, InputError
from homeostat.studies.catalogue import STUDIES
from homeostat.studies.report import publish, save_report
from homeostat.studies.results_folder import ResultsFolder
from homeostat.studies.study import Study, StudyReport, cores, run_study

_STUDY = typer.Typer(no_args_is_help=True, help="Run a study: a paper's claims, trained, measured and decided.")
APP.add_typer(_STUDY, name="study")


class Preset(StrEnum):
    """How large a study is."""

    smoke = "smoke"
    cpu = "cpu"
    full = "full"


class EngineName(StrEnum):
    """What jobs fan out on."""

    local = "local"
    ray = "ray"


def _run(
    context: typer.Context,
    preset: Annotated[
        Preset, typer.Option(help="smoke: a minute, to see that it runs; cpu: hours on two cores; full: for a GPU.")
    ] = Preset.cpu,
    part: Annotated[list[str] | None, typer.Option(help="Run this part alone; may be given again.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study, runs/studies/NAME by default; it goes on there.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Nets of each kind; the preset's number by default.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at the same time; as many as cores by default.")
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="local processes, or a Ray cluster.")] = EngineName.local,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster that sees the same files.")] = None,
    device: Device = "cpu",
    keep_results: Annotated[bool, typer.Option("--keep-results", help="Use results of other code.")] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Set results of other code aside, and compute them again.")
    ] = False,
    list_parts: Annotated[
        bool, typer.Option("--list", help="Show the parts and how long they take; run nothing.")
    ] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing; make the report anew.")] = False,
    publish_to: Annotated[
        Path | None, typer.Option("--publish", help="Copy results, summary and pictures to this folder.")
    ] = None,
) -> None:
    name = str(context.info_name)
    study = STUDIES[name].make(preset.value, seeds=seeds)
    out = out or Path("runs/studies") / name
    study.jobs(part)  # an unknown part is told before anything begins
    if list_parts:
        OUT.print(_parts(study, out, workers or cores()))
        return
    if keep_results and recompute:
        raise InputError("give either --keep-results or --recompute")
    if address is not None and engine is not EngineName.ray:
        raise InputError("--address is for --engine ray")
    report = run_study(
        study,
        out,
        parts=() if report_only else part,
        workers=workers,
        engine=engine.value,
        address=address,
        device=str(device_of(device)),
        other_code="keep" if keep_results else "recompute" if recompute else "refuse",
        console=ERR,
    )
    save_report(report, out)
    if publish_to is not None:
        publish(report, publish_to)
    OUT.print(_claims(report))
    OUT.print(f"\nReport: {out / 'report.html'}", soft_wrap=True)
    if report.failures:
        first = report.failures[0]
        raise HomeostatError(
            f"{len(report.failures)} of {len(study.jobs(part))} jobs failed: {first.job.label}: {first.error}. "
            "The others are kept; run it again to try again"
        )


for _name, _entry in STUDIES.items():
    _STUDY.command(_name, help=_entry.summary)(_run)


def _parts(study: Study, out: Path, workers: int) -> Table:
    results = ResultsFolder(out)
    table = Table(title=f"{study.title}, preset {study.preset}", title_justify="left")
    table.add_column("part", no_wrap=True)
    for column in ("sections", "jobs, with what they need", "done"):
        table.add_column(column, overflow="fold")
    table.add_column(f"minutes, {workers} workers", justify="right")
    table.add_column("minutes left", justify="right")
    for part in study.parts:
        jobs = study.jobs([part])
        left = [job for job in jobs if results.state(job) != "done"]
        times = [sum(job.seconds for job in some) / workers / 60 for some in (jobs, left)]
        table.add_row(
            part,
            ", ".join(f"{s.number} {s.title.lower()}" for s in study.sections if s.part == part),
            str(len(jobs)),
            str(len(jobs) - len(left)),
            *(f"{time:.0f}" if time > 1 or time == 0 else "under 1" for time in times),
        )
    return table


def _claims(report: StudyReport) -> Table:
    table = Table(title=f"{report.study.title}, preset {report.study.preset}", title_justify="left")
    for column in ("section", "claim", "ours", "verdict"):
        table.add_column(column)
    colours = {"holds": "green", "does not hold": "red", "not decided": "yellow", "not run": "dim"}
    for answered in report.answered:
        for found in answered.claims:
            ours = "; ".join(f"{name} {estimate!r}" for name, estimate in found.ours)
            verdict = f"[{colours[found.verdict]}]{found.verdict}[/]"
            table.add_row(str(answered.section.number), found.claim.name, ours, verdict)
    return table
