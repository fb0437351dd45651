"""The guides to language models and to the conformance check run as they stand there."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run_snippets(guide: str, containing: str = "") -> dict[str, Any]:
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / guide).read_text(encoding="utf-8"), re.DOTALL):
        if containing in snippet:
            exec(compile(snippet, guide, "exec"), names)
    return names


def test_the_guide_to_language_models_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_snippets("language-models.md")
    out = capsys.readouterr().out
    assert "tokens by place (trained steps: 1; seed 0)" in out
    assert "tokens by place (trained steps: 8; seed 0)" in out
    assert names["audit"].unit_cost == 3
    assert [row.tokens for row in names["tokens"].rows] == [96, 96, 96, 80]  # the last place asks for nothing


def test_the_guide_to_the_check_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_snippets("own-model.md", containing="check_model")
    assert [check.name for check in names["found"].failed] == ["same in any batch"]
    assert "step gives something else for example 0 alone" in capsys.readouterr().out
