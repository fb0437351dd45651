"""The whole study at its smallest, as a user runs it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

HOMEOSTAT = [sys.executable, "-m", "homeostat", "study", "path-independence", "--preset", "smoke"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HOMEOSTAT, *options], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("smoke")
    began = time.perf_counter()
    done = run("--out", str(out), "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return out, time.perf_counter() - began


def test_every_section_is_there_and_every_rule_evaluated(smoke: tuple[Path, float]) -> None:
    out, _ = smoke
    record = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    assert [section["number"] for section in record["sections"]] == list(range(1, 9))
    verdicts = {claim["name"]: claim["verdict"] for section in record["sections"] for claim in section["claims"]}
    assert len(verdicts) == 22
    # Nets that have learnt nothing cannot show that an attack takes nothing away.
    assert verdicts["path-independent nets withstand the attack"] == "not decided"
    assert set(verdicts.values()) <= {"holds", "does not hold", "not decided"}
    assert all(section["run"] and section["figures"] for section in record["sections"] if section["number"] != 6)
    assert record["failures"] == []
    assert (out / "report.html").stat().st_size > 10_000


def test_nothing_is_done_twice_and_a_part_of_it_is_told(smoke: tuple[Path, float]) -> None:
    out, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/result.json")}
    done = run("--out", str(out), "--part", "mazes")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/result.json")} == before
    listed = run("--out", str(out), "--list")
    assert "mazes" in listed.stdout
    wrong = run("--out", str(out), "--part", "maze")
    assert wrong.returncode == 2
    assert "has no part 'maze'" in wrong.stderr
