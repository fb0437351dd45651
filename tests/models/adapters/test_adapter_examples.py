"""The examples of the guide to adapters run as they stand."""

import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch

from homeostat.cli import main
from homeostat.models import Own
from homeostat.studies.bring_your_own import load_model

EXAMPLES = Path(__file__).parents[3] / "examples"


def code_lines(text: str) -> int:
    """Lines that are neither empty, nor a comment, nor the docstring of the file."""
    body = text.split('"""')[2]
    return sum(1 for line in body.splitlines() if line.strip() and not line.strip().startswith("#"))


def test_auditing_a_tiny_recursive_model_takes_at_most_15_lines(capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / "audit_tiny_recursive_model.py"
    assert code_lines(path.read_text(encoding="utf-8")) <= 15
    with warnings.catch_warnings():  # the package's own imports warn
        warnings.simplefilter("ignore")
        runpy.run_path(str(path))
    printed = capsys.readouterr().out
    assert "tiny-recursive-model: exact accuracy" in printed
    assert "trained horizon: 12 steps" in printed


def test_the_guide_shows_what_the_examples_hold_and_its_energy_runs(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (EXAMPLES.parent / "docs" / "adapters.md").read_text(encoding="utf-8")
    audit, loading, energy, loop = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert audit.strip() in (EXAMPLES / "audit_tiny_recursive_model.py").read_text(encoding="utf-8")
    assert "load_trm" in loading  # needs files that only their owners have
    exec(compile(energy, "adapters.md", "exec"), {})
    assert capsys.readouterr().out == "1.0 True\n"
    module = re.search(r"class Flood.*?> 0\.5\n", loop, re.DOTALL)
    assert module is not None
    assert module[0] in (EXAMPLES / "loop_taken_apart.py").read_text(encoding="utf-8")
    exec(compile(loop, "adapters.md", "exec"), {"__name__": "adapters"})


def test_the_loop_taken_apart_is_the_loop() -> None:
    path = EXAMPLES / "loop_taken_apart.py"
    flood = runpy.run_path(str(path))["Flood"]()
    own = load_model(f"{path}:build")
    for batches in own.examples.values():
        for x, _ in batches:
            with torch.no_grad():
                state = own.subject.initial_state(own.subject.encode(x), Own())
                for _ in range(flood.loops):
                    state = own.subject.step(state, x)
                assert torch.equal(own.subject.decode(state, x), flood(x))


def test_the_loop_taken_apart_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ["homeostat", "audit", "--model", f"{EXAMPLES / 'loop_taken_apart.py'}:build", "--no-alignment"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    assert "MAY THINK LONGER" in capsys.readouterr().out
