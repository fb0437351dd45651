"""`homeostat probe` in this process: checkpoints, somebody's own model, and bad input."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from homeostat.cli import main

Run = Callable[..., tuple[int, str, str]]

CONTRACTION = """
import torch

class Contraction:
    trained_steps = 8
    examples = {"few": iter([(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(16))])}

    def encode(self, x):
        return x

    def initial_state(self, x):
        return torch.zeros_like(x)

    def step(self, z, x):
        return 0.5 * z + x

    def decode(self, z, x):
        return z

def build():
    return Contraction()
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", ["homeostat", "probe", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


def test_a_checkpoint(run: Run, bits_checkpoint: Path, tmp_path: Path) -> None:
    parts = "alignment,limits,dynamics,certificate,trust,extra-steps"
    code, out, _ = run(
        bits_checkpoint, "--sizes", "6,4", "--count", "3", "--steps", "12", "--only", parts, "--out", "found"
    )
    assert code == 0
    assert "4 bits" in out
    assert "All figures:" in out
    assert any(out.count(word) for word in ("Path-independent on", "Not path-independent:", "Not decided:"))
    text = (tmp_path / "found" / "probe.json").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["probe"]
    assert record["model"] == "tiny-bits"
    assert record["steps"] == 12
    assert [row["difficulty"] for row in record["dynamics"]["rows"]] == ["4 bits", "6 bits"]
    assert record["attack"] is None
    curves = {curve["name"]: curve for curve in record["extra_steps"]["curves"]}
    assert list(curves) == ["training: 8 bits", "held out: 4 bits", "held out: 6 bits"]
    assert [curve["count"] for curve in curves.values()] == [3, 3, 3]
    assert [row["steps"] for row in curves["training: 8 bits"]["rows"]] == [1, 2, 3, 4, 5, 6, 8]  # 4 were trained
    assert "3 examples are too few (at least 16 are needed)" in out


def test_ones_own_model_with_everything(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CONTRACTION)
    code, out, err = run("--model", "mine.py:build", "--steps", "40")
    assert code == 0, err
    assert "Path-independent on few: runs from every start end in the same place, attacked starts included." in out
    assert "trust not measured: trust is about what is right" in out
    assert "extra-steps not measured: nothing says how good an output is" in out


def test_training_examples_of_ones_own_model(run: Run, tmp_path: Path) -> None:
    more = """
    training_is_whole = True

    def training_examples(self):
        return [(torch.ones(1, 4), torch.full((1, 4), 2.0))]

    def loss(self, outputs, targets):
        return (outputs - targets.reshape(len(targets), -1)).square().mean(1)

    def encode(self, x):"""
    (tmp_path / "mine.py").write_text(CONTRACTION.replace("\n    def encode(self, x):", more))
    code, out, err = run("--model", "mine.py:build", "--only", "extra-steps", "--out", "found")
    assert code == 0, err
    assert "on the one training example, the loss is lower from 9 steps on" in out
    record = json.loads((tmp_path / "found" / "probe.json").read_text())["probe"]["extra_steps"]
    assert [curve["name"] for curve in record["curves"]] == ["training", "held out: few"]
    assert record["horizon"] == 8
    (tmp_path / "mine.py").write_text(CONTRACTION.replace("trained_steps = 8", "training_examples = 3"))
    code, _, err = run("--model", "mine.py:build")
    assert code == 2
    assert "training_examples of build() in mine.py must be batches" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either"),
        (["a", "--model", "mine.py:build"], "either"),
        (["no-such-model"], "no-such-model"),
        (["--model", "mine.py:build", "--sizes", "4"], "--sizes is for checkpoints"),
        (["--model", "mine.py:build", "--only", "luck"], "--only takes some of alignment, attack"),
        (["--model", "mine.py:build", "--only", ","], "--only takes some of"),
        (["--model", "mine.py:build", "--only", "trust"], "trust is about what is right"),
        (["--model", "mine.py:build", "--steps", "1"], "--steps"),
        (["--model", "mine.py:build", "--count", "1"], "--count"),
        (["--model", "mine.py:build", "--device", "abacus"], "abacus"),
        (["--model", "broken.py:build", "--only", "alignment"], "broken.py, line 15"),
    ],
)
def test_wrong_options(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "mine.py").write_text(CONTRACTION)
    (tmp_path / "broken.py").write_text(CONTRACTION.replace("0.5 * z + x", "z @ z"))
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
