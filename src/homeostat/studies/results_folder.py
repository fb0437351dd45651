"""The folder of a study: a folder for each job, and what is known of each of them.

`job.json` stands there from the moment a job begins and says which code began it; `result.json` is written at the end,
whole or not at all. Nothing here is ever deleted: what was computed by other code can be set aside.
"""

import json
import os
import platform
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

import homeostat
from homeostat.errors import HomeostatError, OutputError
from homeostat.files import make_folder, write_text
from homeostat.studies.fingerprint import fingerprint
from homeostat.studies.jobs import FORMAT, Job, Place, plain

State = Literal["done", "begun", "missing"]


@dataclass(frozen=True)
class Outcome:
    """The result of a job as it stands on disk."""

    values: dict[str, Any]
    seconds: float
    """Spent by the session that finished it."""
    finished: str
    """Day and time, UTC."""
    code: str
    """Fingerprint of the code that computed it."""
    versions: dict[str, str]
    device: str
    warnings: list[str]
    """What was warned of, each once."""


class ResultsFolder:
    """Where a study keeps what it computed.

    Example:
        >>> import tempfile
        >>> ResultsFolder(tempfile.mkdtemp())
        ResultsFolder(0 results)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.jobs = self.path / "jobs"

    def __repr__(self) -> str:
        return f"ResultsFolder({len(list(self.jobs.glob('*/result.json')))} results)"

    def lock(self) -> FileLock:
        """Take the folder for this process, until the lock is released or the process ends.

        Raises:
            HomeostatError: another process has it.
            OutputError: it cannot be written.
        """
        make_folder(self.jobs)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise HomeostatError(
                f"another process runs a study in {self.path}; wait for it or choose another folder with --out"
            ) from None
        except OSError as error:
            raise OutputError(f"cannot write to {self.path}: {error.strerror or error}") from error
        return lock

    def state(self, job: Job) -> State:
        """Whether a job is done, was begun, or is missing."""
        folder = self.jobs / job.folder_name
        if (folder / "result.json").exists():
            return "done"
        return "begun" if _begun(folder) else "missing"

    def outcome(self, job: Job) -> Outcome | None:
        """What a job found; None when it is not done.

        Raises:
            HomeostatError: its file is not what this version writes.
        """
        path = self.jobs / job.folder_name / "result.json"
        if not path.exists():
            return None
        record = _read(path)
        if record.get("format") != FORMAT or record.get("key") != job.key:
            raise HomeostatError(f"{path} is not the result of {job.label}; move it away to compute that again")
        record.setdefault("warnings", [])  # results of the first versions have none
        return Outcome(**{field: record[field] for field in Outcome.__dataclass_fields__})

    def foreign(self, jobs: Iterable[Job]) -> list[Job]:
        """Those of the jobs that were done, or begun, by code other than today's."""
        found = []
        for job in jobs:
            path = self.jobs / job.folder_name / "job.json"
            if self.state(job) != "missing" and path.exists() and _read(path).get("code") != fingerprint(job.code):
                found.append(job)
        return found

    def set_aside(self, jobs: Iterable[Job]) -> Path:
        """Move the folders of these jobs to `set-aside/`, under a new name each, so that they are computed again."""
        target = make_folder(self.path / "set-aside")
        for job in jobs:
            number = 1
            while (place := target / f"{job.folder_name}-{number}").exists():
                number += 1
            try:
                (self.jobs / job.folder_name).rename(place)
            except OSError as error:
                raise OutputError(f"cannot move {self.jobs / job.folder_name}: {error.strerror or error}") from error
        return target

    def progress(self, job: Job) -> tuple[float, str] | None:
        """Share done and a note, as the process that runs the job last told; None when it told nothing."""
        try:
            share, note = (self.jobs / job.folder_name / ".progress").read_text(encoding="utf-8").split("\n", 1)
            return float(share), note
        except (OSError, ValueError):
            return None


def run_job(job: Job, root: Path, device: str, *, waits: float = 30.0) -> None:
    """Run one job and write its result; a job that is done already is left as it is.

    `waits` is how many seconds to wait for a process of a killed study that is about to end.
    """
    folder = make_folder(root / job.folder_name)
    try:
        with FileLock(folder / ".job.lock", timeout=waits):
            if (folder / "result.json").exists():
                return
            code = fingerprint(job.code)
            if _begun(folder) and (folder / "job.json").exists():
                code = _read(folder / "job.json").get("code")  # what other code began remains the work of other code
            began = {"format": FORMAT, "key": job.key, "label": job.label, "code": code, "job": job.as_record()}
            write_text(folder / "job.json", json.dumps(began, indent=1, allow_nan=False) + "\n")
            place = Place(root, device, lambda share, note: _note(folder, share, note))
            since = time.perf_counter()
            with warnings.catch_warnings(record=True) as caught:  # to be read in the report, not between progress bars
                warnings.simplefilter("default")
                values = plain(job.run(place))
            record = {
                **began,
                "values": values,
                "seconds": round(time.perf_counter() - since, 2),
                "finished": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
                "versions": versions(),
                "device": device,
                "warnings": list(dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught)),
            }
            write_text(folder / "result.json", json.dumps(record, allow_nan=False) + "\n")
            (folder / ".progress").unlink(missing_ok=True)
    except Timeout:
        raise HomeostatError(f"another process is at work in {folder}; wait for it or choose another folder") from None


def versions() -> dict[str, str]:
    """Of what a result depends on beside the code of the package."""
    return {
        "homeostat": homeostat.__version__,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
    }


def names(jobs: Sequence[Job], most: int = 4) -> str:
    """The labels of some jobs, in one line.

    Example:
        >>> names([])
        'none'
    """
    if not jobs:
        return "none"
    more = f" and {len(jobs) - most} more" if len(jobs) > most else ""
    return ", ".join(job.label for job in jobs[:most]) + more


def _begun(folder: Path) -> bool:
    # A job that failed, or was killed before its first sign of progress, left nothing worth keeping.
    return any(path.name != "job.json" and not path.name.startswith(".") for path in folder.glob("*"))


def _note(folder: Path, share: float, note: str) -> None:
    # Only a sign of progress: a reader that finds half of it waits for the next one.
    (folder / ".progress").write_text(f"{share:.4f}\n{note}", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise HomeostatError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise HomeostatError(f"{path} is truncated or is not JSON ({error}); move it away to go on") from error
    if not isinstance(record, dict):
        raise HomeostatError(f"{path} is not a record of a job; move it away to go on")
    return record
