"""The studies of "Test like you train" and of where the two papers meet, at their smallest, as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "homeostat", "study", name, "--preset", "smoke", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["test-like-you-train", "reconcile"])
def test_every_section_is_there_and_every_rule_evaluated(name: str, tmp_path: Path) -> None:
    done = run(name, "--out", str(tmp_path), "--workers", "2")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert record["study"] == name
    assert record["failures"] == []
    assert all(section["run"] and section["figures"] for section in record["sections"])
    verdicts = {claim["verdict"] for section in record["sections"] for claim in section["claims"]}
    assert verdicts <= {"holds", "does not hold", "not decided"}
    names = [plot["name"] for s in record["sections"] for f in s["figures"] for plot in f.get("panels", [f])]
    assert len(set(names)) == len(names), "two plots would be drawn in one place"
    page = (tmp_path / "report.html").read_text()
    assert all(f'data-figure="{plot}"' in page for plot in names)
