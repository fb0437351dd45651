"""`audit --model file.py:build`: good models, and every way in which somebody's file can be wrong."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from good_model import GOOD

from homeostat.cli import main

Audit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Audit:
    def call(source: str, *options: str, name: str = "mine.py", function: str = "build") -> tuple[int, str, str]:
        (tmp_path / name).write_text(source)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", ["homeostat", "audit", "--model", f"{name}:{function}", *options])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


def line_of(source: str, text: str) -> int:
    return next(number for number, line in enumerate(source.splitlines(), start=1) if text in line)


def test_a_good_model(audit: Audit, tmp_path: Path) -> None:
    code, out, _ = audit(GOOD, "--steps", "1,2,4,8", "--out", "report")
    assert code == 0
    assert "heron" in out
    assert "MAY THINK LONGER" in out
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.html",
        "audit.json",
        "examples.parquet",
    }


def test_budgets_come_from_the_horizon(audit: Audit) -> None:
    code, out, _ = audit(GOOD)
    assert code == 0
    assert " 16 " in out


@pytest.mark.parametrize("name", ["homeostat.py", "json.py", "torch.py", "audit.py"])
def test_a_file_may_have_the_name_of_a_module(audit: Audit, name: str) -> None:
    code, out, err = audit(GOOD, name=name)
    assert (code, "heron" in out) == (0, True), err
    assert sys.modules["json"].dumps(1) == "1"


def test_a_file_may_import_its_neighbours(audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text(GOOD)
    assert audit("from neighbour_of_mine import build")[0] == 0


def test_examples_may_be_a_function_or_a_dict(audit: Audit) -> None:
    source = GOOD + "\ndef other():\n    model = Heron()\n    e = model.examples\n"
    source += "    model.examples = lambda: {'easy': e, 'hard': e}\n    return model\n"
    code, out, _ = audit(source, function="other")
    assert code == 0
    assert "easy" in out
    assert "hard" in out


def test_without_a_judge_only_the_dynamics_are_told(audit: Audit) -> None:
    code, out, _ = audit(GOOD.replace("def correct", "def unused"))
    assert code == 0
    assert "NOT JUDGED" in out


STEP = "return 0.5 * (z + x / z)"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (STEP, "return z[:, :0]", "step changed state"),
        (STEP, "return z[:3]", "step changed state"),
        (STEP, "return z.double()", "float32 (16, 1) on cpu became float64"),
        (STEP, "return z.to('meta')", "on meta"),
        (STEP, "return (z, z)", "step changed"),
        (STEP, "return None", "step changed"),
        (STEP, "return z @ z", "mine.py, line"),
        (STEP, "raise ValueError('my own')", "ValueError: my own"),
        (STEP, "raise ValueError()", "ValueError"),
        (STEP, "return 1 / 0", "ZeroDivisionError"),
        ("def step", "def stop", "no function step()"),
        ("def decode", "def decoded", "no function decode()"),
        ("def encode(self, x)", "def encode(self)", "TypeError"),
        ("def correct(self, outputs, targets)", "def correct(self)", "TypeError"),
        (".all(1)", ".all()", "must return a tensor of shape (16,)"),
        ("examples =", "no_examples =", "without examples"),
        ("examples = [", "examples = 7 #[", "examples of build()"),
        ("examples = [", "examples = []#", "no examples"),
        ("examples = [", "examples = [torch.ones(3)]#", "must be (inputs, targets)"),
        ("trained_steps = 2", "trained_steps = -2", "trained_steps"),
        ("trained_steps = 2", "trained_steps = 'two'", "trained_steps"),
        ("return Heron()", "return Heron", "TypeError"),
        ("return Heron()", "return None", "no function encode()"),
        ("return Heron()", "raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("return Heron()", "raise SystemExit", "SystemExit"),
        ("def build", "def built", "has no function build()"),
        ("import torch", "import torch, no_such_module", "no_such_module"),
        ("class Heron:", "class Heron", "SyntaxError"),
        ("return torch.ones_like(x)", "return x.long()", "no floating leaf"),
        ("return torch.ones_like(x)", "return torch.ones(2, 1)", "rows"),
    ],
)
def test_a_file_that_is_wrong_is_told_in_one_line(audit: Audit, tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    code, out, err = audit(GOOD.replace(old, new), "--steps", "1,4", "--out", "report")
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert {path.name for path in (tmp_path / "report").iterdir()} == set()


def test_errors_name_the_line(audit: Audit) -> None:
    source = GOOD.replace(STEP, "return z @ z")
    assert f"mine.py, line {line_of(source, 'z @ z')}: RuntimeError" in audit(source)[2]
    source = GOOD.replace("class Heron:", "class Heron")
    assert f"mine.py, line {line_of(source, 'class Heron')}: SyntaxError" in audit(source)[2]


@pytest.mark.parametrize("spec", ["mine.py", "mine.py:", ":build", "mine.py:3x", "none.py:build", ".:build"])
def test_a_function_that_is_not_there(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["homeostat", "audit", "--model", spec])
    with pytest.raises(SystemExit):
        main()
    err = capsys.readouterr().err
    assert err.startswith("error: --model")
    assert err.count("\n") == 1


def test_sizes_are_for_checkpoints(audit: Audit) -> None:
    code, _, err = audit(GOOD, "--sizes", "8")
    assert code == 2
    assert err.startswith("error: --sizes is for checkpoints")
