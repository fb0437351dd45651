"""A study: sections that answer questions from the results of jobs, gathered in parts that can be run by themselves."""

import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from homeostat.errors import HomeostatError, InputError
from homeostat.studies.claims import Claim, Decided, not_run
from homeostat.studies.fan_out import Engine, Failure, run_jobs
from homeostat.studies.figures import Figure, Panels, Table
from homeostat.studies.jobs import Job, with_needs
from homeostat.studies.results_folder import Outcome, ResultsFolder, names, versions

OtherCode = Literal["refuse", "keep", "recompute"]
"""What becomes of results that code other than today's computed."""


@dataclass(frozen=True)
class Content:
    """What a section found."""

    claims: tuple[Decided, ...]
    figures: tuple[Figure | Panels, ...] = ()
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = ()


Values = Callable[[Job], dict[str, Any]]
"""Gives the values that a job found."""


@dataclass(frozen=True)
class Section:
    """A question, the jobs that it needs, the claims that it decides, and how it is answered from the results."""

    number: int
    part: str
    title: str
    question: str
    """What is asked, and how it is measured."""
    claims: tuple[Claim, ...]
    jobs: tuple[Job, ...]
    build: Callable[[Values], Content]


@dataclass(frozen=True)
class Study:
    """Sections in their order. Sections of one part are run together."""

    name: str
    title: str
    lead: str
    preset: str
    sections: tuple[Section, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, in the order of their first section."""
        return tuple(dict.fromkeys(section.part for section in self.sections))

    def jobs(self, parts: Iterable[str] | None = None) -> list[Job]:
        """The jobs of some parts, all by default, and what they need, each once.

        Raises:
            InputError: there is no part of that name.
        """
        wanted = self.parts if parts is None else tuple(parts)
        for part in wanted:
            if part not in self.parts:
                raise InputError(f"{self.name} has no part {part!r}; it has {', '.join(self.parts)}")
        return with_needs(job for section in self.sections if section.part in wanted for job in section.jobs)


@dataclass(frozen=True)
class Answered:
    """A section as it stands in the report."""

    section: Section
    content: Content | None
    """None when it was not run."""
    missing: int
    """Jobs that are not done."""

    @property
    def claims(self) -> tuple[Decided, ...]:
        """Every claim of the section, with those that could not be decided."""
        if self.content is None:
            return tuple(not_run(claim) for claim in self.section.claims)
        return self.content.claims


@dataclass(frozen=True)
class StudyReport:
    """Everything that a study found so far."""

    study: Study
    answered: tuple[Answered, ...]
    outcomes: tuple[tuple[Job, Outcome], ...]
    """Results that are there, in the order of the jobs."""
    foreign: tuple[Job, ...]
    """Those of them that were computed by code other than today's."""
    failures: tuple[Failure, ...]
    commit: str
    machine: str
    versions: dict[str, str] = field(default_factory=versions)

    def __repr__(self) -> str:
        """A line for each claim."""
        lines = [f"{self.study.title} (preset {self.study.preset})"]
        for answered in self.answered:
            lines += [f"{answered.section.number}. {d.claim.name}: {d.verdict}" for d in answered.claims]
        return "\n".join(lines)


def run_study(
    study: Study,
    out: str | os.PathLike[str],
    *,
    parts: Sequence[str] | None = None,
    workers: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
    device: str = "cpu",
    other_code: OtherCode = "refuse",
    console: Console | None = None,
) -> StudyReport:
    """Run what is missing of some parts, and report on everything that is there.

    Args:
        out: folder of the study. What is done there is not done again.
        parts: all when None; none at all when empty, so that only the report is made.
        workers: processes at the same time; as many as there are cores by default, one on another device.
        other_code: `"refuse"` stops when results, or what was begun, come from other code; `"keep"` uses them;
            `"recompute"` moves them to `set-aside/` and computes them again.

    Raises:
        InputError: a part that does not exist.
        HomeostatError: another process has the folder; results come from other code; a worker was killed.
    """
    jobs = study.jobs(parts)
    console = console or Console(stderr=True)
    results = ResultsFolder(out)
    lock = results.lock()
    try:
        _settle_other_code(results, results.foreign(jobs), other_code, console)
        failures = run_jobs(
            jobs,
            results,
            workers=workers or (cores() if device == "cpu" else 1),
            console=console,
            engine=engine,
            address=address,
            device=device,
        )
        return _report(study, results, failures)
    finally:
        lock.release()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _settle_other_code(results: ResultsFolder, foreign: list[Job], other_code: OtherCode, console: Console) -> None:
    if not foreign:
        return
    done = [job for job in foreign if results.state(job) == "done"]
    begun = [job for job in foreign if results.state(job) == "begun"]
    what = " and ".join(
        f"{len(group)} {kind} ({names(group)})" for group, kind in ((done, "results"), (begun, "begun jobs")) if group
    )
    if other_code == "keep":
        console.print(f"kept, though computed by other code: {what}", soft_wrap=True, highlight=False)
    elif other_code == "recompute":
        place = results.set_aside(foreign)
        console.print(f"moved to {place} and computed again: {what}", soft_wrap=True, highlight=False)
    else:
        raise HomeostatError(
            f"{results.path} holds what other code computed: {what}. Nothing was changed. Use it with --keep-results, "
            f"compute it again with --recompute (it is moved aside, not deleted), or choose another folder with --out"
        )


def _report(study: Study, results: ResultsFolder, failures: Sequence[Failure]) -> StudyReport:
    jobs = study.jobs()
    outcomes = {job.key: (job, outcome) for job in jobs if (outcome := results.outcome(job)) is not None}

    def values(job: Job) -> dict[str, Any]:
        return outcomes[job.key][1].values

    answered = []
    for section in study.sections:
        missing = sum(job.key not in outcomes for job in with_needs(section.jobs))
        if missing:
            answered.append(Answered(section, None, missing))
            continue
        answered.append(Answered(section, section.build(values), 0))
    return StudyReport(
        study=study,
        answered=tuple(answered),
        outcomes=tuple(outcomes.values()),
        foreign=tuple(results.foreign([job for job, _ in outcomes.values()])),
        failures=tuple(failures),
        commit=commit(),
        machine=f"{cores()} cores, {platform.machine()}, {platform.system()}",
    )


def commit() -> str:
    """The commit of the package's source, with a mark when files were changed since; "unknown" outside a checkout."""
    folder = Path(str(files("homeostat")))
    try:
        head = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} and uncommitted changes" if changed else head
