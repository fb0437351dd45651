"""Many jobs at the same time, through joblib: local processes (loky), or a Ray cluster that sees the same files.

Jobs run in rounds: those that need nothing first, then those whose needs are met. Within a round the longest begin
first. A job that fails is named, and the others go on; what depends on it is left out.
"""

import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from rich.console import Console

from homeostat.errors import HomeostatError
from homeostat.studies.jobs import Job, with_needs
from homeostat.studies.progress import make_progress
from homeostat.studies.results_folder import ResultsFolder, run_job

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Failure:
    """A job that failed, or could not begin because one that it needs failed."""

    job: Job
    error: str


def run_jobs(
    jobs: Sequence[Job],
    results: ResultsFolder,
    *,
    workers: int,
    console: Console,
    engine: Engine = "local",
    address: str | None = None,
    device: str = "cpu",
) -> list[Failure]:
    """Run those of `jobs`, and of what they need, that are not done.

    Args:
        workers: processes at the same time; one thread each.
        engine: `"ray"` starts a Ray on this machine, or joins the cluster at `address`.

    Raises:
        HomeostatError: a worker was killed, or the engine is not there. What is done stays done.
    """
    waiting = [job for job in with_needs(jobs) if results.state(job) != "done"]
    failures: dict[str, Failure] = {}
    if not waiting:
        return []
    with _shown(waiting, results, console) as finished, _backend(engine, workers, address) as options:
        while waiting:
            for job in list(waiting):
                broken = [need for need in job.needs if need.key in failures]
                if broken:
                    failures[job.key] = Failure(job, f"it needs {broken[0].label}, which failed")
                    waiting.remove(job)
            ready = [job for job in waiting if all(results.state(need) == "done" for need in job.needs)]
            if waiting and not ready:  # a machine of the cluster wrote its results where this one does not see them
                raise HomeostatError(
                    f"the results that {waiting[0].label} needs were computed, but are not in {results.path}"
                )
            waiting = [job for job in waiting if job not in ready]
            for key, error in _round(ready, results, min(workers, len(ready)), device, options):
                job = next(job for job in ready if job.key == key)
                finished(job)
                if error is not None:
                    failures[key] = Failure(job, error)
    return list(failures.values())


def _round(
    jobs: Sequence[Job], results: ResultsFolder, workers: int, device: str, options: dict[str, Any]
) -> Iterator[tuple[str, str | None]]:
    if not jobs:
        return
    ordered = sorted(jobs, key=lambda job: -job.seconds)
    study = os.getpid()
    if not options and workers == 1:  # in this process
        for job in ordered:
            yield _work(job, results.jobs, device, study)
        return
    parallel: Any = joblib.Parallel(
        n_jobs=workers,
        return_as="generator_unordered",
        batch_size=1,  # pyright: ignore[reportArgumentType]
        pre_dispatch="all",
        **options,
    )
    try:
        found = parallel(joblib.delayed(_work)(job, results.jobs, device, study) for job in ordered)
        try:
            yield from found
        finally:
            with warnings.catch_warnings():  # that the remaining jobs are given up is what is wanted here
                warnings.simplefilter("ignore")
                found.close()
    except TerminatedWorkerError as error:
        raise HomeostatError(
            "a process of the study was killed, perhaps for want of memory; what is done is kept: run it again, "
            "with fewer --workers if need be"
        ) from error


def _work(job: Job, root: Path, device: str, study: int) -> tuple[str, str | None]:
    """Run one job in a process of its own; an exception comes back as its text, so that others go on."""
    if os.getpid() != study:
        _leave_with(study)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_job(job, root, device)
    except HomeostatError as error:
        return job.key, str(error)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())
        return job.key, f"{type(error).__name__}: {said} ({Path(frame.filename).name}, line {frame.lineno})"
    finally:
        torch.set_num_threads(threads)
    return job.key, None


_watched = False


def _leave_with(study: int) -> None:
    """End this process when the study that started it is gone; Ctrl-C is for the study to hear."""
    global _watched
    if _watched or os.getppid() != study:  # workers of Ray have other parents, and Ray ends them
        return
    _watched = True
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == study:
            time.sleep(0.2)
        os._exit(1)  # nobody waits for this any more; what was done is on disk

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _backend(engine: Engine, workers: int, address: str | None) -> Iterator[dict[str, Any]]:
    """Options for joblib.Parallel."""
    if engine == "local":
        yield {}
        return
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise HomeostatError("--engine ray needs Ray: pip install 'homeostat[ray]'") from error
    register_ray()
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(
                address=address, num_cpus=None if address else workers, include_dashboard=False, log_to_driver=False
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise HomeostatError(f"Ray cannot be reached: {str(error).splitlines()[0]}") from error
    try:
        yield {"backend": "ray"}
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _shown(jobs: Sequence[Job], results: ResultsFolder, console: Console) -> Iterator[Any]:
    """A bar for all jobs, in expected seconds, and one for each job that runs."""
    done: set[str] = set()
    stop = threading.Event()
    with make_progress(console) as progress:
        total = progress.add_task("all jobs", total=sum(job.seconds for job in jobs), note=f"0 of {len(jobs)}")
        bars: dict[str, Any] = {}

        def follow() -> None:
            while not stop.wait(0.5):
                reached = 0.0
                for job in jobs:
                    if job.key in done:
                        reached += job.seconds
                        continue
                    told = results.progress(job)
                    if told is None:
                        continue
                    if job.key not in bars:
                        bars[job.key] = progress.add_task(job.label, total=1.0, note="")
                    progress.update(bars[job.key], completed=told[0], note=told[1])
                    reached += told[0] * job.seconds
                progress.update(total, completed=reached)

        def finished(job: Job) -> None:
            done.add(job.key)
            progress.update(total, note=f"{len(done)} of {len(jobs)}")
            if job.key in bars:
                progress.update(bars[job.key], visible=False)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield finished
            progress.update(total, completed=sum(job.seconds for job in jobs))
        finally:
            stop.set()
            follower.join()
