"""The page, the JSON, the summary and the pictures of a study say the same, and nothing that they should not."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from study_fixture import Number, make_study

from homeostat.studies.report import publish, save_report
from homeostat.studies.study import StudyReport, run_study


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> StudyReport:
    study = make_study([Number(number=n) for n in (2, 3, 4)] + [Number(number=9, fails=True)])
    out = tmp_path_factory.mktemp("study")
    run_study(study, out, parts=["numbers"], workers=1, console=Console(quiet=True))
    study = make_study([Number(number=n) for n in (2, 3, 4)])
    return run_study(study, out, parts=["numbers"], workers=1, console=Console(quiet=True))


def test_the_page_loads_nothing_and_escapes_everything(report: StudyReport, tmp_path: Path) -> None:
    page = (save_report(report, tmp_path) / "report.html").read_text()
    assert "default-src 'none'" in page
    own = page[: page.index('<script type="application/json"')]
    assert not re.findall(r"(?:src|href)=\"https?:", own)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    points = json.loads(data[1])["figures"]["numbers"]["series"][0]["points"]
    assert [point["y"] for point in points] == [2, 3, 4]
    assert points[0]["text"] == "<b>"


def test_the_page_has_verdicts_and_says_what_was_not_run(report: StudyReport, tmp_path: Path) -> None:
    page = (save_report(report, tmp_path) / "report.html").read_text()
    assert "1 holds" in page
    assert "1 not run" in page
    assert "Not run: 1 of its jobs is missing. They belong to part other." in page


def test_the_json_is_strict_and_has_figures_with_intervals(report: StudyReport, tmp_path: Path) -> None:
    text = (save_report(report, tmp_path) / "results.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)
    claim = record["sections"][0]["claims"][0]
    assert claim["verdict"] == "holds"
    assert claim["ours"][0]["value"] == 3
    assert claim["ours"][0]["low"] > 1
    assert [job["warnings"] for job in record["jobs"]] == [[], ["UserWarning: three is odd"], []]
    assert [job["label"] for job in record["jobs"]] == ["number 2", "number 3", "number 4"]
    assert record["sections"][1] | {"run": False, "claims": None} == record["sections"][1] | {"claims": None}


def test_what_is_published_has_pictures_and_tables_that_hold(report: StudyReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = publish(report, tmp_path / "numbers")
    assert {path.name for path in folder.iterdir()} == {"README.md", "results.json", "numbers.png"}
    with Image.open(folder / "numbers.png") as picture:
        assert picture.size[0] > 500
    text = (folder / "README.md").read_text()
    assert "| 1 | Numbers are large | 7 | all: 3.000" in text
    assert "![All numbers](numbers.png)" in text
    assert "a \\| b" in text
    assert "Not run: 1 of its jobs are missing" in text
