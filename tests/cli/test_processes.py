"""What only a process of its own can show: pipes that break, signals, full disks, and the demonstration."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from homeostat.models import load
from processes import group_is_gone, running, wait_until

HOMEOSTAT = [sys.executable, "-m", "homeostat"]


def test_a_reader_that_leaves_early_is_no_error(bits_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bits.txt").write_text("1101\n")  # little enough to be written at the very end
    end, start = os.pipe()
    os.close(end)
    command = [*HOMEOSTAT, "predict", str(bits_checkpoint), str(tmp_path / "bits.txt")]
    done = subprocess.run(command, stdout=start, stderr=subprocess.PIPE, check=False)
    os.close(start)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_full_disk_leaves_no_half_written_file(bits_checkpoint: Path, tmp_path: Path) -> None:
    """A limit on the size of files makes writing fail as a full disk does, after part of the bytes."""
    (tmp_path / "many.txt").write_text("1101\n" * 4000)
    (tmp_path / "answers.txt").write_text("the former version")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.argv[0] = 'homeostat';"
        "from homeostat.cli import main; main()"
    )
    options = ["predict", str(bits_checkpoint), str(tmp_path / "many.txt"), "--output", str(tmp_path / "answers.txt")]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: cannot write {tmp_path / 'answers.txt'}: File too large\n"
    assert (tmp_path / "answers.txt").read_text() == "the former version"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.txt", "many.txt"]


DEMO = [*HOMEOSTAT, "demo", "--count", "2", "--longest", "32", "--train-steps"]


def training_has_begun(process: subprocess.Popen[bytes], out: Path) -> None:
    wait_until(lambda: len(list(out.glob("*/.lock"))) >= min(2, len(os.sched_getaffinity(0))), process)


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demonstration in the folder of one that was killed before its first checkpoint.

    Only the parent is killed: its workers must find that out by themselves, and let go of the folders.
    """
    out = tmp_path_factory.mktemp("demo")
    with running([*DEMO, "1000000", "--out", str(out)], stderr=subprocess.DEVNULL) as first:
        training_has_begun(first, out)
        first.kill()
        first.wait()
        wait_until(lambda: group_is_gone(first.pid))
    again = subprocess.run([*DEMO, "3", "--out", str(out)], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    return out, again.stdout


def test_the_demonstration_leaves_report_audits_and_models(demonstration: tuple[Path, str]) -> None:
    out, printed = demonstration
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "audit.json",
        "examples.parquet",
        "path-independent-0",
        "fixed-0",
    }
    record = json.loads((out / "audit.json").read_text())
    assert [audit["model"] for audit in record["audits"]] == ["path-independent", "fixed"]
    for audit in record["audits"]:
        assert [d["name"] for d in audit["difficulties"]] == ["32 bits"]
        assert len(audit["difficulties"][0]["examples"]) == 2
        assert audit["verdict"]["decision"].upper() in printed
    for name in ("path-independent", "fixed"):
        config = load(out / f"{name}-0").config
        assert config.training["recipe"]["name"] == name
        assert config.training["recipe"]["steps"] == 3
        assert name in printed
    assert f"Report: {out / 'report.html'}" in printed


def test_ctrl_c_is_one_line_and_ends_all_processes(tmp_path: Path) -> None:
    command = [*DEMO, "100000", "--out", str(tmp_path / "demo")]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        training_has_begun(process, tmp_path / "demo")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to parent and workers alike
        out, err = process.communicate()
        wait_until(lambda: group_is_gone(process.pid))
    assert process.returncode == 130
    assert out == b""
    assert err == b"error: interrupted\n"
