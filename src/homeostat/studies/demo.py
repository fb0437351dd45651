"""The demonstration: two models that differ in their recipe alone, trained, audited and compared."""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console

from homeostat.errors import HomeostatError
from homeostat.files import make_folder
from homeostat.probes import Audit, save_audits
from homeostat.studies.progress import make_progress
from homeostat.studies.task_audit import audit_checkpoint
from homeostat.tasks import get_task
from homeostat.training import get_recipe, train

RECIPES = ("path-independent", "fixed")
COUNTS = {32: 128, 64: 64, 128: 64, 256: 64, 512: 64, 1024: 32}
"""Test strings by length, as many as six minutes on two cores allow."""
LONGEST = 1500
"""Largest budget: what 1,024 bits need."""
BUDGETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 800, 1100, LONGEST)

Tell = Callable[[str, float, str], None]
"""Told stage, share done and a note."""


@dataclass(frozen=True)
class Job:
    """One model: trained, then audited."""

    recipe: str
    seed: int
    folder: Path
    accelerator: str
    threads: int
    steps: int | None
    counts: dict[int, int]
    budgets: tuple[int, ...]
    label: str

    def run(self, tell: Tell) -> Audit:
        """Train (or go on, or find it finished), then audit."""
        recipe = get_recipe(self.recipe)
        if self.steps is not None:
            recipe = recipe.changed(steps=self.steps)
        fabric = Fabric(accelerator=self.accelerator, devices=1)
        checkpoint = train(
            recipe,
            self.folder,
            seed=self.seed,
            fabric=fabric,
            on_step=lambda e: tell("train", e.step / e.steps, f"loss {e.loss:.3f}"),
        )
        tell("train", 1.0, "")
        task = get_task(recipe.task.name, **recipe.task.options)
        found = audit_checkpoint(
            checkpoint,
            task,
            self.counts,
            steps=self.budgets,
            name=self.label,
            on_progress=lambda share: tell("audit", share, ""),
        )
        tell("audit", 1.0, "")
        return found


_messages: Any = None


def _connect(messages: Any) -> None:
    """Runs once in every worker process: where it reports its progress to."""
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and ends its workers
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # nobody waits for this any more; what was done is in the checkpoints

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _work(job: Job) -> Audit:
    """Run one job in a process of its own."""
    torch.set_num_threads(job.threads)
    last = 0.0

    def tell(stage: str, share: float, note: str) -> None:
        nonlocal last
        if share >= 1 or time.monotonic() - last > 0.2:
            last = time.monotonic()
            _messages.put((job.label, stage, share, note))

    return job.run(tell)


def run_demo(
    out: str | os.PathLike[str],
    *,
    seeds: int = 1,
    accelerator: str = "cpu",
    steps: int | None = None,
    counts: dict[int, int] | None = None,
    budgets: tuple[int, ...] = BUDGETS,
    console: Console | None = None,
) -> list[Audit]:
    """Train and audit both recipes with `seeds` seeds each, and write the comparison into `out`.

    The jobs run in as many processes as there are cores (one on a GPU); a demonstration that was interrupted goes on
    from its last checkpoints.

    Args:
        out: gets `report.html`, `audit.json`, `examples.parquet` and a folder for each model.
        seeds: models of each recipe.
        accelerator: as Fabric names it: `"cpu"`, `"cuda"`, …
        steps: training steps; the recipe's own when None.
        counts: test strings by length.
        budgets: budgets of the audit.
        console: where progress is shown.

    Raises:
        HomeostatError: what went wrong in a job.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be 1 or more, not {seeds}")
    out = make_folder(out)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pairs = [(recipe, seed) for seed in range(seeds) for recipe in RECIPES]
    workers = min(len(pairs), cores) if accelerator == "cpu" else 1
    jobs = [
        Job(
            recipe=recipe,
            seed=seed,
            folder=out / f"{recipe}-{seed}",
            accelerator=accelerator,
            threads=max(1, cores // workers),
            steps=steps,
            counts=counts or COUNTS,
            budgets=budgets,
            label=recipe if seeds == 1 else f"{recipe}, seed {seed}",
        )
        for recipe, seed in pairs
    ]
    audits = _run_jobs(jobs, workers, console or Console(stderr=True))
    ordered = sorted(audits, key=lambda audit: [job.label for job in jobs].index(audit.model))
    save_audits(ordered, out, title="Does thinking longer help? Two recipes on prefix sums")
    return ordered


def _run_jobs(jobs: list[Job], workers: int, console: Console) -> list[Audit]:
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    with make_progress(console) as progress:
        bars = {
            (job.label, stage): progress.add_task(f"{stage} {job.label}", total=1.0, start=False, note="waiting")
            for job in jobs
            for stage in ("train", "audit")
        }
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_connect, initargs=(messages,))
        waiting = {pool.submit(_work, job) for job in jobs}
        found: list[Audit] = []
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                _drain(messages, progress, bars)
                found += [future.result() for future in done]
            pool.shutdown()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # what it has done so far is in its checkpoints
            if isinstance(error, BrokenProcessPool):
                raise HomeostatError("a process of the demonstration was killed, perhaps for want of memory") from error
            raise
        _drain(messages, progress, bars)
    return found


def _drain(messages: Any, progress: Any, bars: dict[tuple[str, str], Any]) -> None:
    while True:
        try:
            label, stage, share, note = messages.get_nowait()
        except queue.Empty:
            return
        bar = bars[label, stage]
        progress.start_task(bar)
        progress.update(bar, completed=share, note=note)
