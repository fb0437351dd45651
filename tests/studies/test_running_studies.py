"""Running a study: what is kept, what is told, and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from rich.console import Console
from study_fixture import Number, make_study

from homeostat.errors import HomeostatError, InputError
from homeostat.studies import results_folder
from homeostat.studies.study import run_study
from processes import is_alive, running, wait_until

QUIET = Console(quiet=True)


def numbers(tmp_path: Path, *values: float, **more: object) -> list[Number]:
    return [Number(number=value, log=str(tmp_path / "log"), **more) for value in values]  # type: ignore[arg-type]


def begun(tmp_path: Path) -> list[str]:
    log = tmp_path / "log"
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def test_a_study_does_what_is_missing_and_reports_on_all(tmp_path: Path) -> None:
    study = make_study(numbers(tmp_path, 2, 3))
    report = run_study(study, tmp_path / "out", parts=["numbers"], workers=1, console=QUIET)
    assert [claim.verdict for answered in report.answered for claim in answered.claims] == ["holds", "not run"]
    assert sorted(begun(tmp_path)) == ["2", "3"]
    wider = make_study(numbers(tmp_path, 2, 3, -9))
    report = run_study(wider, tmp_path / "out", parts=["numbers"], workers=1, console=QUIET)
    assert begun(tmp_path)[2:] == ["-9"]
    assert report.answered[0].claims[0].verdict == "not decided"


def test_no_parts_make_the_report_alone(tmp_path: Path) -> None:
    report = run_study(make_study(numbers(tmp_path, 2)), tmp_path / "out", parts=[], workers=1, console=QUIET)
    assert begun(tmp_path) == []
    assert report.answered[0].missing == 1


def test_an_unknown_part_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="numbers has no part 'maze'; it has numbers, other"):
        run_study(make_study(numbers(tmp_path, 2)), tmp_path / "out", parts=["maze"], console=QUIET)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_job_is_named_and_the_others_are_kept(tmp_path: Path, workers: int) -> None:
    bad = Number(number=5, fails=True)
    after = Number(number=6, before=(bad,))
    study = make_study([bad, after, *numbers(tmp_path, 2, 3)])
    report = run_study(study, tmp_path / "out", parts=["numbers"], workers=workers, console=QUIET)
    assert {failure.job.label: failure.error.split(" (")[0] for failure in report.failures} == {
        "number 5": "ValueError: it is not a number that anybody knows",
        "number 6": "it needs number 5, which failed",
    }
    assert sorted(begun(tmp_path)) == ["2", "3"]
    assert report.answered[0].missing == 2


def test_results_of_other_code_are_kept_told_and_the_users_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = make_study(numbers(tmp_path, 2, 3)), tmp_path / "out"

    def run(**more: object) -> object:
        return run_study(study, out, parts=["numbers"], workers=1, console=QUIET, **more)  # type: ignore[arg-type]

    run()
    monkeypatch.setattr(results_folder, "fingerprint", lambda modules: "other")
    with pytest.raises(HomeostatError, match=r"2 results \(number 2, number 3\). Nothing was changed. Use it with"):
        run()
    assert begun(tmp_path) == ["2", "3"]
    kept = run(other_code="keep")
    assert begun(tmp_path) == ["2", "3"]
    assert [job.label for job in kept.foreign] == ["number 2", "number 3"]  # type: ignore[attr-defined]
    again = run(other_code="recompute")
    assert begun(tmp_path) == ["2", "3", "2", "3"]
    assert again.foreign == ()  # type: ignore[attr-defined]
    assert len(list((out / "set-aside").glob("*/result.json"))) == 2


SCRIPT = """
import sys
from study_fixture import Number, make_study
from homeostat.studies.study import run_study
from homeostat.errors import HomeostatError
folder, workers = sys.argv[1], int(sys.argv[2])
log = folder + "/log"
quick = [Number(number=n, log=log) for n in (2, 3)]
slow = [Number(number=n, log=log, until=folder + "/go", before=tuple(quick)) for n in (7, 8)]
try:
    run_study(make_study(quick + slow), folder + "/out", parts=["numbers"], workers=workers)
except HomeostatError as error:
    sys.exit("error: " + str(error))
except KeyboardInterrupt:
    sys.exit("error: interrupted")
"""


def study_process(tmp_path: Path, workers: int) -> AbstractContextManager[subprocess.Popen[str]]:
    paths = [str(Path(__file__).parent), *sys.path]
    return running(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(workers)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("how", "workers"), [(signal.SIGKILL, 2), (signal.SIGINT, 2)])
def test_a_killed_study_leaves_no_process_and_goes_on(tmp_path: Path, how: signal.Signals, workers: int) -> None:
    with study_process(tmp_path, workers) as process:
        wait_until(lambda: {"7", "8"} <= set(begun(tmp_path)), process)
        second = run_in_the_same_folder(tmp_path)
        assert f"another process runs a study in {tmp_path / 'out'}" in second
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does: to parent and workers alike
        else:
            process.kill()  # the parent alone: its workers must find out by themselves
        _, said = process.communicate()
        workers_were = [int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines()]
        wait_until(lambda: not any(is_alive(pid) for pid in workers_were))
    if how == signal.SIGINT:
        assert said.splitlines()[-1] == "error: interrupted"
        assert "Traceback" not in said
    (tmp_path / "go").touch()
    report = run_study(again(tmp_path), tmp_path / "out", parts=["numbers"], workers=1, console=QUIET)
    assert report.answered[0].missing == 0
    assert sorted(begun(tmp_path)) == ["2", "3", "7", "7", "8", "8"]
    for path in (tmp_path / "out" / "jobs").glob("*/result.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)


def again(tmp_path: Path) -> object:
    log = str(tmp_path / "log")
    quick = [Number(number=n, log=log) for n in (2, 3)]
    slow = [Number(number=n, log=log, until=f"{tmp_path}/go", before=tuple(quick)) for n in (7, 8)]
    return make_study(quick + slow)


def run_in_the_same_folder(tmp_path: Path) -> str:
    with pytest.raises(HomeostatError) as told:
        run_study(again(tmp_path), tmp_path / "out", workers=1, console=QUIET)  # type: ignore[arg-type]
    return str(told.value)
