"""`homeostat calibrate` and `predict --policy`: from a checkpoint or a Python file to a policy that runs."""

import json
import sys
from pathlib import Path

import pytest

import homeostat as hs
from homeostat.cli import main

OWN = """
import torch

class Countdown:
    trained_steps = 4

    def encode(self, x): return x
    def initial_state(self, x): return torch.zeros_like(x)
    def step(self, z, x): return z + 1
    def decode(self, z, x): return torch.stack([x - z - 0.5, z - x + 0.5], 1)
    def score(self, z, x): return (z - x).squeeze(1)
    def answers(self, outputs): return outputs.argmax(1)
    def correct(self, outputs, targets): return (outputs.argmax(1) == targets).all(1)

    @property
    def examples(self):
        x = torch.randint(1, 12, (300, 1), generator=torch.Generator().manual_seed(0)).float()
        return [(x, torch.ones_like(x).long())]

def build(): return Countdown()
"""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["homeostat", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


def test_a_model_from_a_file(call, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    out = tmp_path / "policy.json"
    code, told, _ = call(
        "calibrate", "--model", f"{tmp_path / 'own.py'}:build", "--max-accuracy-loss", 0.05, "--out", out
    )
    assert code == 0
    assert "promise: accuracy lost at most 5 points" in told
    policy = hs.Policy.load(out)
    assert policy.mean_steps is not None
    assert policy.mean_steps < 9  # 11 would do for all
    assert policy.model == "Countdown"


def test_a_checkpoint_and_its_puzzles(call, tmp_path: Path) -> None:
    out, maze = tmp_path / "policy.json", tmp_path / "maze.txt"
    maze.write_text("#######\n#S    #\n# ### #\n#G#   #\n#######\n")
    wanted = ("--sizes", "2,3", "--count", 80, "--max-steps", 40, "--max-accuracy-loss", 0.05, "--out", out)
    code, _, _ = call("calibrate", "mazes", *wanted)
    assert code == 0
    code, told, _ = call("predict", "mazes", maze, "--policy", out, "--format", "json")
    assert code == 0
    found = json.loads(told)
    assert found["right"]
    assert found["steps"] < 40
    assert found["confidence"] > 0.5
    assert not found["abstained"]
    assert call("predict", "sudoku-4", maze, "--policy", out)[2].startswith("error: this policy was made for mazes")
    assert "leave out --rtol" in call("predict", "mazes", maze, "--policy", out, "--rtol", 0.1)[2]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("mazes", "--sizes", "3", "--count", 4, "--max-steps", 9), "too few"),
        (("mazes", "--signals", "mood"), "unknown signal 'mood'"),
        (("mazes", "--max-accuracy-loss", 2), "share between 0 and 1"),
        (("mazes", "--max-accuracy-loss", 0.1, "--max-mean-steps", 3), "either max_accuracy_loss"),
        ((), "give either a checkpoint or --model"),
    ],
)
def test_what_cannot_be_done_is_one_line(call, tmp_path: Path, arguments: tuple, match: str) -> None:
    code, told, error = call("calibrate", *arguments, "--out", tmp_path / "p.json")
    assert code == 2
    assert told == ""
    assert match in " ".join(error.split())
    assert not (tmp_path / "p.json").exists()
