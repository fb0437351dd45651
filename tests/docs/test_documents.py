"""What the documents show runs as it stands there."""

import re
from pathlib import Path

import pytest

from homeostat.training import Recipe

ROOT = Path(__file__).parents[2]


def test_the_first_snippet_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert snippet is not None
    exec(compile(snippet[1], "README.md", "exec"), {})
    assert "MAY THINK LONGER" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "runs" / "heron").iterdir()} == {
        "report.html",
        "audit.json",
        "examples.parquet",
    }


def run_snippets(guide: str) -> dict[str, object]:
    names: dict[str, object] = {}
    for snippet in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / guide).read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(snippet, guide, "exec"), names)
    return names


def test_the_guide_to_equilibria_runs(capsys) -> None:
    names = run_snippets("training-an-equilibrium.md")
    assert "reference: converged" in capsys.readouterr().out
    assert names["loss"].item() < 0.5  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, of its first `jvp`
def test_the_guide_to_solving_runs(capsys) -> None:
    names = run_snippets("solving.md")
    assert "CONVERGED" in capsys.readouterr().out
    assert names["found"].status == 0  # type: ignore[attr-defined]


def test_the_guide_to_bilevel_problems_runs(capsys) -> None:
    names = run_snippets("bilevel.md")
    assert "1 of 1 problems converged" in capsys.readouterr().out
    assert names["error"] < 1e-5  # type: ignore[operator]


def test_the_guide_to_meta_learning_runs(capsys) -> None:
    names = run_snippets("meta-learning.md")
    assert "meta-learner" in capsys.readouterr().out
    assert names["loss"].item() < 0.08  # type: ignore[attr-defined]


def test_the_guide_to_studies_runs(capsys) -> None:
    run_snippets("studies.md")
    assert capsys.readouterr().out == "Dice (preset smoke)\n1. fair: not decided\n"


def test_the_guide_from_torchdeq_runs(capsys) -> None:
    run_snippets("torchdeq.md")
    assert "CONVERGED" in capsys.readouterr().out


def test_the_guide_to_monitors_runs(capsys) -> None:
    names = run_snippets("callbacks.md")
    assert [seen.at for seen in names["monitor"].history] == [5, 10]  # type: ignore[attr-defined]
    assert "alignment" in capsys.readouterr().out


def test_the_guide_to_comparing_runs(capsys) -> None:
    run_snippets("comparison.md")
    assert "quick - slow, each at its best: +0.0 [-3.7, +3.7] points" in capsys.readouterr().out


def test_the_guide_to_stopping_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run_snippets("stopping.md")
    told = capsys.readouterr().out
    assert "promise: accuracy lost at most 1 point," in told
    assert "depth against breadth" in told


def test_auditing_tiny_recursive_model_takes_at_most_fifteen_lines() -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (ours,) = [snippet for snippet in snippets if "tiny_recursive_model" in snippet]
    assert sum(bool(line.strip()) for line in ours.splitlines()) <= 15
    # The same but for the weights, which nobody has here, runs as an example with a test of its own.
    example = (ROOT / "examples" / "audit_tiny_recursive_model.py").read_text(encoding="utf-8")
    for line in ours.splitlines():
        line = line.split("#")[0].strip()
        if line and "load_state_dict" not in line and "hs.audit" not in line:
            assert line in example


def test_the_guide_to_tasks_runs() -> None:
    recipe = run_snippets("tasks.md")["recipe"]
    assert (recipe.task.name, recipe.model.inner.side) == ("omniglot", 28)  # type: ignore[attr-defined]


def test_the_example_recipe_has_every_field() -> None:
    recipe = Recipe.model_validate_json((ROOT / "examples" / "recipe.json").read_text(encoding="utf-8"))
    assert recipe.model_fields_set == set(Recipe.model_fields)


@pytest.mark.parametrize("document", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))])
def test_links_between_documents_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert ((ROOT / document).parent / target).exists(), f"{document} links to {target}"
