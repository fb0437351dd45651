"""What a run of the benchmark says, as values: figures with their target, and the machine that they come from."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.timing import Paired, Spread

Verdict = Literal["reached", "not reached", "reported", "not available"]


@dataclass(frozen=True)
class Target:
    """What a figure must be."""

    limit: float
    kind: Literal["at most", "at least"] = "at most"

    def met(self, value: float) -> bool:
        return value <= self.limit if self.kind == "at most" else value >= self.limit


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        group: what it belongs to, as in `--only`.
        name: what was measured.
        value: the figure itself, the median where there are several samples; None where it could not be taken.
        unit: of the figure, "x" for a ratio.
        low, high: 10th and 90th percentile of the samples.
        samples: number of them.
        target: what it must be; None where it is only reported.
        peer: the same from torchdeq (or the peer that the name says), in the same run.
        missing: why there is no figure.
        note: what a reader must know to judge it.
        details: everything else that was seen on the way: times, statuses, seeds.
    """

    group: str
    name: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    samples: int = 1
    target: Target | None = None
    peer: str = ""
    missing: str = ""
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Judged by the value (a median), never by the better end of its spread."""
        if self.value is None:
            return "not available"
        if self.target is None:
            return "reported"
        return "reached" if self.target.met(self.value) else "not reached"

    def with_details(self, **more: Any) -> "Figure":
        return replace(self, details={**self.details, **more})

    @classmethod
    def ratio(cls, group: str, name: str, pairs: Paired, *, scale: float = 1.0, **rest: Any) -> "Figure":
        """A ratio of times with its spread. `scale` turns times of runs into times per evaluation."""
        spread = Spread.of(tuple(scale * ratio for ratio in pairs.ratios))
        details = {
            "seconds": Spread.of(pairs.seconds).median,
            "reference_seconds": Spread.of(pairs.reference_seconds).median,
            "ratios": [scale * ratio for ratio in pairs.ratios],
            **rest.pop("details", {}),
        }
        return cls(group, name, spread.median, "x", spread.low, spread.high, len(pairs.ratios), details=details, **rest)

    @classmethod
    def absent(cls, group: str, name: str, why: str, **rest: Any) -> "Figure":
        """A line that the table must have and this run could not fill."""
        return cls(group, name, None, rest.pop("unit", "x"), samples=0, missing=why, **rest)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit that was measured, with a plus where files differ from it."""
    root = Path(__file__).parents[1]
    try:
        found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True)
        # Results and the table are what a run writes: they do not make it another version.
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "src", "benchmarks/*.py", "benchmarks/jax_peers"],
            cwd=root,
            capture_output=True,
            text=True,
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "") if found.returncode == 0 else "unknown"


def describe_machine(device: str) -> dict[str, Any]:
    """Everything that a figure depends on beside the code."""
    found: dict[str, Any] = {
        "device": device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchdeq": _installed("torchdeq"),
        "numpy": _installed("numpy"),
        "commit": _commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def save(path: Path, machine: Mapping[str, Any], figures: list[Figure]) -> None:
    """Write a run as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(figure), "verdict": figure.verdict} for figure in figures]
    path.write_text(json.dumps({"machine": machine, "figures": rows}, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[dict[str, Any], list[Figure]]:
    """Read a run."""
    found = json.loads(path.read_text(encoding="utf-8"))
    figures = []
    for row in found["figures"]:
        row.pop("verdict")
        if row["target"] is not None:
            row["target"] = Target(**row["target"])
        figures.append(Figure(**row))
    return found["machine"], figures
