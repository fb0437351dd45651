"""The same study on a local Ray with two workers."""

from pathlib import Path

import pytest
from rich.console import Console
from study_fixture import Number, make_study

from homeostat.errors import HomeostatError
from homeostat.studies.study import run_study


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_jobs_fan_out_on_ray(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    log = str(tmp_path / "log")
    bad = Number(number=5, fails=True)
    study = make_study([Number(number=n, log=log) for n in (2, 3, 4)] + [bad])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    try:
        report = run_study(
            study, tmp_path / "out", parts=["numbers"], workers=2, engine="ray", console=Console(quiet=True)
        )
    finally:
        ray.shutdown()
    assert [failure.job.label for failure in report.failures] == ["number 5"]
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(number for number, _ in lines) == ["2", "3", "4"]
    assert report.answered[0].missing == 1


def test_a_missing_ray_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(HomeostatError, match=r"--engine ray needs Ray: pip install 'homeostat\[ray\]'"):
        run_study(make_study([Number(number=2)]), tmp_path, parts=["numbers"], workers=2, engine="ray")
