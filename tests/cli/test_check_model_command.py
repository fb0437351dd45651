"""`homeostat check-model`: exit code 0 when all is well, 1 when something is wrong, 2 on bad input."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from good_model import GOOD

from homeostat.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(source: str, *options: str, spec: str = "mine.py:build") -> tuple[int, str, str]:
        (tmp_path / "mine.py").write_text(source)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", ["homeostat", "check-model", spec, *options])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


def test_a_model_that_keeps_the_contract(command: Command) -> None:
    code, out, err = command(GOOD, "--rows", "4", "--steps", "12")
    assert (code, err) == (0, "")
    assert out.startswith("heron: 16 passed, 0 failed, 1 not tested (4 examples, 12 steps)")


def test_examples_by_difficulty(command: Command) -> None:
    source = GOOD.replace("examples = [", "examples = {'easy': [").replace(".sqrt())]", ".sqrt())]}")
    assert command(source)[:1] == (0,)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return 0.5 * (z + x / z)", "return z.add_(1)", "step changes state in place"),
        ("return 0.5 * (z + x / z)", "return z + x.mean()", "step gives something else for example 0 alone"),
        ("return 0.5 * (z + x / z)", "return z.nothing", "AttributeError"),
        ("def decode", "def decoded", "has no function decode()"),
        ("trained_steps = 2", "trained_steps = 2.5", "trained_steps"),
        ("import torch", "import torch\nimport nowhere_to_be_found", "ModuleNotFoundError"),
    ],
)
def test_a_model_that_does_not(command: Command, old: str, new: str, message: str) -> None:
    code, out, err = command(GOOD.replace(old, new, 1))
    assert (code, err) == (1, "")
    assert message in out
    assert "failed" in out


@pytest.mark.parametrize(
    ("source", "spec", "options", "message"),
    [
        (GOOD, "other.py:build", (), "FILE.py:build: there is no file other.py"),
        (GOOD, "mine.py", (), "FILE.py:build takes path/to/file.py:function"),
        (GOOD, "mine.py:made", (), "mine.py has no function made()"),
        (GOOD.replace("examples = ", "others = "), "mine.py:build", (), "a model without examples"),
        (GOOD.replace("examples = [", "examples = []; others = ["), "mine.py:build", (), "examples has no batch"),
        (GOOD.replace("examples = [", "examples = [3]; others = ["), "mine.py:build", (), "not a int"),
        (GOOD, "mine.py:build", ("--rows", "0"), "--rows"),
        (GOOD, "mine.py:build", ("--device", "nowhere"), "device 'nowhere' cannot be used"),
    ],
)
def test_bad_input(command: Command, source: str, spec: str, options: tuple[str, ...], message: str) -> None:
    code, out, err = command(source, *options, spec=spec)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
