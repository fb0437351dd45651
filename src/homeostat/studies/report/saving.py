"""A study's findings on disk: `report.html` for people, `results.json` for programs, and a summary to be published."""

import json
import os
from pathlib import Path
from typing import Any

from homeostat.files import write_text
from homeostat.studies.jobs import FORMAT, plain
from homeostat.studies.report.page import render_study
from homeostat.studies.report.summary import summary
from homeostat.studies.study import StudyReport


def save_report(report: StudyReport, folder: str | os.PathLike[str]) -> Path:
    """Write `report.html`, `results.json` and `summary.md` into `folder`, each whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    write_text(folder / "results.json", to_json(report))
    write_text(folder / "summary.md", summary(report))
    write_text(folder / "report.html", render_study(report))
    return folder


def publish(report: StudyReport, folder: str | os.PathLike[str]) -> Path:
    """Write what is worth keeping under version control: `results.json`, `README.md` and a picture of each figure.

    Raises:
        HomeostatError: matplotlib is not there.
        OutputError: the folder cannot be written.
    """
    from homeostat.studies.report.pictures import save_picture

    folder = Path(folder)
    for answered in report.answered:
        for figure in answered.content.figures if answered.content else ():
            save_picture(figure, folder / f"{figure.name}.png")
    write_text(folder / "results.json", to_json(report))
    write_text(folder / "README.md", summary(report, pictures=True))
    return folder


def to_json(report: StudyReport) -> str:
    """Strict JSON of everything that the page shows; what is not finite is null."""
    record = {
        "format": FORMAT,
        "study": report.study.name,
        "preset": report.study.preset,
        "commit": report.commit,
        "machine": report.machine,
        "versions": report.versions,
        "sections": [_section(answered) for answered in report.answered],
        "jobs": [
            {
                "label": job.label,
                "key": job.key,
                "seconds": outcome.seconds,
                "finished": outcome.finished,
                "device": outcome.device,
                "versions": outcome.versions,
                "code": outcome.code,
                "warnings": outcome.warnings,
                "of today's code": job not in report.foreign,
            }
            for job, outcome in report.outcomes
        ],
        "failures": [{"label": failure.job.label, "error": failure.error} for failure in report.failures],
    }
    return json.dumps(record, allow_nan=False, indent=1) + "\n"


def _section(answered: Any) -> dict[str, Any]:
    section, content = answered.section, answered.content
    return {
        "number": section.number,
        "part": section.part,
        "title": section.title,
        "question": section.question,
        "run": content is not None,
        "claims": [
            {
                "name": found.claim.name,
                "text": found.claim.text,
                "paper": found.claim.paper,
                "quantity": found.claim.quantity,
                "rule": str(found.claim.rule),
                "given": found.claim.given and f"{found.claim.given.text} ({found.claim.given.rule})",
                "ours": [{"of": name, **plain(estimate)} for name, estimate in found.ours],
                "verdict": found.verdict,
                "note": found.note,
            }
            for found in answered.claims
        ],
        "figures": [plain(figure) for figure in content.figures] if content else [],
        "tables": [plain(table) for table in content.tables] if content else [],
        "remarks": list(content.remarks) if content else [],
    }
