"""Keys, results on disk, and which code computed them."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from study_fixture import Number

from homeostat.errors import HomeostatError
from homeostat.models.starts import Own, Zeros
from homeostat.probes.results import Estimate
from homeostat.studies import fingerprint as fingerprint_module
from homeostat.studies import results_folder
from homeostat.studies.fingerprint import fingerprint, sources
from homeostat.studies.jobs import plain, with_needs
from homeostat.studies.results_folder import ResultsFolder, run_job


def test_the_key_of_a_job_is_what_it_is_and_nothing_else() -> None:
    assert Number(number=1) == Number(number=1.0)
    assert Number(number=1).key != Number(number=2).key
    assert Number(number=1).key != Number(number=1, before=(Number(number=2),)).key
    assert len({Number(number=1), Number(number=1), Number(number=2)}) == 2


def test_a_field_that_comes_to_be_later_leaves_keys_alone() -> None:
    class Later(Number):
        twice: bool = False

        @property
        def kind(self) -> str:
            return "Number"

    assert Later(number=1).key == Number(number=1).key
    assert Later(number=1, twice=True).key != Number(number=1).key


def test_kinds_without_other_fields_are_told_apart() -> None:
    class Start(Number):
        start: Own | Zeros = Own()

    assert Start(number=1).key != Start(number=1, start=Zeros()).key
    assert Start(number=1, start=Zeros()).as_record()["start"] == {"kind": "zeros"}


def test_a_job_that_two_others_need_comes_once_and_first() -> None:
    first = Number(number=1)
    second, third = Number(number=2, before=(first,)), Number(number=3, before=(first,))
    assert with_needs([second, third, second]) == [first, second, third]


def test_results_are_strict_json() -> None:
    found = plain({"a": Estimate(float("nan"), 0.1, float("inf"), 3), "b": np.float64(2), 3: np.array([1, 2])})
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "a": {"value": None, "low": 0.1, "high": None, "count": 3},
        "b": 2.0,
        "3": [1, 2],
    }
    with pytest.raises(TypeError, match="plain values, not object"):
        plain({"a": object()})


def test_a_result_is_written_whole_and_once(tmp_path: Path) -> None:
    results, job = ResultsFolder(tmp_path), Number(number=4, log=str(tmp_path / "log"))
    assert results.state(job) == "missing"
    assert results.outcome(job) is None
    run_job(job, results.jobs, "cpu")
    run_job(job, results.jobs, "cpu")
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    outcome = results.outcome(job)
    assert outcome is not None
    assert outcome.values == {"number": 4.0, "text": "</script>"}
    assert outcome.code == fingerprint(job.code)
    assert results.state(job) == "done"
    record = json.loads((results.jobs / job.folder_name / "result.json").read_text())
    assert record["job"] == job.as_record()


def test_what_was_left_by_a_failure_is_not_begun_work(tmp_path: Path) -> None:
    results, job = ResultsFolder(tmp_path), Number(number=4, fails=True)
    with pytest.raises(ValueError, match="not a number"):
        run_job(job, results.jobs, "cpu")
    assert results.state(job) == "missing"
    (results.jobs / job.folder_name / "training.safetensors").write_bytes(b"half")
    assert results.state(job) == "begun"


def test_a_truncated_result_is_told(tmp_path: Path) -> None:
    results, job = ResultsFolder(tmp_path), Number(number=4)
    run_job(job, results.jobs, "cpu")
    path = results.jobs / job.folder_name / "result.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(HomeostatError, match=r"result.json is truncated or is not JSON .*; move it away to go on"):
        results.outcome(job)


def test_setting_aside_loses_nothing(tmp_path: Path) -> None:
    results, job = ResultsFolder(tmp_path), Number(number=4)
    for _ in range(2):
        run_job(job, results.jobs, "cpu")
        results.set_aside([job])
        assert results.state(job) == "missing"
    assert len(list((tmp_path / "set-aside").glob("*/result.json"))) == 2


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a few files that stands in the place of ours."""
    root = tmp_path / "homeostat"
    files = {
        "__init__.py": "from homeostat.shapes import Circle",
        "shapes/__init__.py": "from homeostat.shapes.circle import Circle\nfrom homeostat.shapes.square import Square",
        "shapes/circle.py": "from homeostat.numbers import PI\nclass Circle: area = PI",
        "shapes/square.py": "class Square: area = 1",
        "numbers.py": 'PI = 3.14\ndef half(x):\n    "Half."\n    return x / 2',
        "drawing.py": "from homeostat.shapes import Circle\nimport json",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(text))
    monkeypatch.setattr(fingerprint_module, "_root", lambda: root)
    return root


def taken(root: Path, module: str) -> str:
    forget()
    try:
        return fingerprint([module])
    finally:
        forget()


def forget() -> None:
    """Files do not change under a running study, so what was read of them is kept."""
    for name in ("_fingerprint", "_imported", "_tree", "_what_runs_in"):
        getattr(fingerprint_module, name).cache_clear()


def test_a_fingerprint_follows_imports_to_where_names_are_made(package: Path) -> None:
    found = [path.relative_to(package).as_posix() for path in sources(["homeostat.drawing"])]
    assert found == ["drawing.py", "numbers.py", "shapes/circle.py"]


@pytest.mark.parametrize(
    ("file", "text", "same"),
    [
        ("numbers.py", "PI = 3.14  # about\n\ndef half(x):\n    return x / 2\n", True),
        ("numbers.py", "PI = 3.15\ndef half(x):\n    return x / 2\n", False),
        ("shapes/square.py", "class Square: area = 2", True),
        ("shapes/__init__.py", "from homeostat.shapes.circle import Circle", True),
        ("shapes/circle.py", "class Circle: area = 3", False),
    ],
)
def test_a_fingerprint_changes_with_what_runs_alone(package: Path, file: str, text: str, same: bool) -> None:
    before = taken(package, "homeostat.drawing")
    (package / file).write_text(text)
    assert (taken(package, "homeostat.drawing") == before) is same


def test_a_module_without_source_is_told(package: Path) -> None:
    with pytest.raises(HomeostatError, match=r"there is no source of homeostat\.gone"):
        taken(package, "homeostat.gone")


def test_what_other_code_began_remains_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, job = ResultsFolder(tmp_path), Number(number=4, fails=True)
    with pytest.raises(ValueError, match="not a number"):
        run_job(job, results.jobs, "cpu")
    (results.jobs / job.folder_name / "training.safetensors").write_bytes(b"half")
    monkeypatch.setattr(results_folder, "fingerprint", lambda modules: "today's")
    monkeypatch.setattr(Number, "run", lambda self, place: {"number": 4})
    run_job(job, results.jobs, "cpu")  # as with --keep-results: it goes on with what is there
    assert results.state(job) == "done"
    assert results.foreign([job]) == [job]
