"""`homeostat compare`: checkpoints of one task, own models on the same examples, and everything that is unfair."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from homeostat.cli import main
from homeostat.models.checkpoint import load, save

OWN = """
import torch

class Root:
    trained_steps = 4

    def __init__(self, rate, count=20):
        self.rate = rate
        x = torch.linspace(1, 4, count)[:, None]
        self.examples = {"roots": [(x, x.sqrt())]}

    def encode(self, x):
        return x

    def initial_state(self, x):
        return torch.ones_like(x)

    def step(self, z, x):
        return z + self.rate * (x - z * z)

    def decode(self, z, x):
        return z

    def correct(self, outputs, targets):
        return ((outputs - targets).abs() < 1e-2).all(1)

def quick():
    return Root(0.2)

def slow():
    return Root(0.05)

def fewer():
    return Root(0.2, count=10)

def other():
    model = Root(0.2)
    model.examples = {"roots": [(x + 1, y) for x, y in model.examples["roots"]]}
    return model

def bare():
    model = Root(0.2)
    model.examples = None
    return model

def batches():
    x = torch.linspace(1, 9, 30)[:, None]
    return [(x, x.sqrt())]

def nothing():
    return []

def number():
    return 3
"""

Compare = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Compare:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["homeostat", "compare", *options])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


def test_own_models_on_the_examples_that_both_bring(compare: Compare, tmp_path: Path) -> None:
    code, out, err = compare("own.py:quick", "own.py:slow", "--out", "found")
    assert code == 0, err
    assert "own.py:quick - own.py:slow, each at its best" in out
    assert "on 10 test examples" in out
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"comparison.html", "comparison.json"}


def test_examples_of_a_function(compare: Compare) -> None:
    code, out, err = compare("own.py:quick", "own.py:bare", "--examples", "own.py:batches", "--costs", "seconds")
    assert code == 0, err
    assert "equal seconds" in out
    assert "on 15 test examples" in out


def test_checkpoints_on_instances_of_their_task(compare: Compare, bits_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = load(bits_checkpoint)
    save(checkpoint.model, checkpoint.config, tmp_path / "again")
    code, out, err = compare(str(bits_checkpoint), "again", "--sizes", "3,5", "--count", "8")
    assert code == 0, err
    assert "3 bits:" in out
    assert "all examples:" in out
    assert "+0.0 [" in out  # the same model twice


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["own.py:quick"], "two or more models"),
        (["own.py:quick", "own.py:quick"], "given twice"),
        (["own.py:quick", "own.py:fewer"], "brings 20 examples of 'roots', own.py:fewer 10"),
        (["own.py:quick", "own.py:other"], "bring different examples of 'roots'"),
        (["own.py:quick", "own.py:bare"], "own.py:bare brings no examples"),
        (["own.py:quick", "own.py:none"], "has no function none()"),
        (["own.py:quick", "own.py:slow", "--examples", "own.py:nothing"], "has no examples"),
        (["own.py:quick", "own.py:slow", "--examples", "own.py:number"], "must return batches"),
        (["own.py:quick", "own.py:slow", "--examples", "own.py:batches", "--count", "5"], "--examples brings its own"),
        (["own.py:quick", "own.py:slow", "--sizes", "3"], "are for checkpoints"),
        (["own.py:quick", "own.py:slow", "--calibration", "1"], "calibration must be a share"),
        (["own.py:quick", "own.py:slow", "--most", "nan"], "most must be a finite number"),
        (["mazes", "sudoku-4"], "models of different tasks cannot be compared"),
        (["sudoku-6", "sudoku-4"], "models of different tasks cannot be compared"),
        (["mazes", "no-such-model"], "no checkpoint at no-such-model"),
    ],
)
def test_unfair_comparisons_are_refused_in_one_line(compare: Compare, options: list[str], words: str) -> None:
    code, out, err = compare(*options)
    assert (code, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
