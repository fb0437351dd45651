"""Audits of what is odd, and audits on disk and on a terminal."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from report_fixture import two_models
from torch import Tensor, nn

import homeostat as hs
from homeostat.errors import ContractError, InputError, OutputError
from homeostat.probes import save_audits
from homeostat.probes.audits.table import audit_text

X = torch.linspace(1, 9, 12)[:, None]


class Right:
    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() < 1e-3).all(1)


def heron(**changes: Any) -> hs.IteratedModel:
    functions: dict[str, Any] = {
        "encode": lambda x: x,
        "initial_state": lambda x: torch.ones_like(x),
        "step": lambda z, x: 0.5 * (z + x / z),
        "decode": lambda z, x: z,
        "trained_steps": 2,
    }
    return hs.from_functions(**(functions | changes))


def test_targets_of_none_are_not_judged() -> None:
    found = hs.audit(heron(), [(X, None)], steps=[4, 8], judge=Right())
    assert found.verdict.decision == "not judged"
    assert found.difficulties[0].examples[0].correct is None
    assert found.clips == ()


def test_generators_are_streamed() -> None:
    alive = 0

    def batches() -> Any:
        nonlocal alive
        for _ in range(4):
            alive += 1
            yield X, X.sqrt()

    found = hs.audit(heron(), batches(), steps=[4, 8], judge=Right())
    assert found.difficulties[0].count == 4 * len(X)
    assert alive == 4


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no examples"),
        ({}, "no examples"),
        ({"easy": []}, "'easy' has no examples"),
        ([(X[:0], X[:0])], "has no examples"),
        (X, "must be batches"),
        (7, "must be batches"),
        ([X], r"batch 1 of 'all examples' must be \(inputs, targets\)"),
        ([(X, X.sqrt()), (X, X, X)], r"batch 2 .* not 3 values"),
        ([(1.5, None)], "inputs must be a tensor"),
    ],
)
def test_examples_that_are_none(examples: Any, message: str) -> None:
    with pytest.raises((InputError, ContractError), match=message) as caught:
        hs.audit(heron(), examples, steps=[2, 4])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", [[], [0], [-1, 4], [1.5], ["4"], [True], [10**30]])
def test_impossible_budgets(steps: Any) -> None:
    with pytest.raises(InputError, match="steps must be"):
        hs.audit(heron(), [(X, None)], steps=steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": lambda z, x: z[:, :0]}, "step changed state"),
        ({"step": lambda z, x: z.double()}, "float32 .* became float64"),
        ({"step": lambda z, x: (z, z)}, "step changed"),
        ({"step": lambda z, x: None}, "step changed"),
        ({"initial_state": lambda x: torch.ones(3, 1)}, "rows"),
        ({"initial_state": lambda x: torch.ones(len(x), dtype=torch.int64)}, "no floating leaf"),
    ],
)
def test_models_that_break_the_contract(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        hs.audit(heron(**changes), [(X, None)], steps=[2, 4])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.tensor(True), torch.ones(3), True, None])
def test_judges_that_do_not_say_one_thing_an_example(value: Any) -> None:
    class Judge:
        def correct(self, outputs: Tensor, targets: Tensor) -> Any:
            return value

    with pytest.raises(ContractError, match=r"correct\(outputs, targets\) must return a tensor of shape \(12,\)"):
        hs.audit(heron(), [(X, X)], steps=[2, 4], judge=Judge())


def test_whole_numbers_will_do_where_numbers_are_asked_for() -> None:
    class Judge(Right):
        def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().correct(outputs, targets).long()

        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return torch.full((len(outputs),), 3)

    found = hs.audit(heron(), [(X, X.sqrt())], steps=[2, 8], judge=Judge())
    assert found.difficulties[0].budgets[-1].loss == 3
    assert found.difficulties[0].budgets[-1].exact is not None
    assert found.difficulties[0].budgets[-1].exact.value == 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_answers_of_any_integer_kind(dtype: torch.dtype) -> None:
    found = hs.audit(heron(decode=lambda z, x: (z > 2).to(dtype)), [(X, X)], steps=[2, 20])
    # Newton's steps come from above: the answer changes once where the root is below 2, after the start above it.
    changes = [e.last_change for e in found.difficulties[0].examples]
    assert None not in changes
    assert changes[-1] == 0
    assert max(changes) > 1  # type: ignore[type-var]


class Mixed(nn.Module):
    """Training mode outside, evaluation mode in a part."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.drop = nn.BatchNorm1d(1), nn.Dropout(0.5)
        self.frozen.eval()
        self.modes: set[bool] = set()

    def encode(self, x: Tensor) -> Tensor:
        return x

    def initial_state(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def step(self, z: Tensor, x: Tensor) -> Tensor:
        self.modes |= {module.training for module in self.modules()}
        return 0.5 * (z + x / z)

    def decode(self, z: Tensor, x: Tensor) -> Tensor:
        return z


@pytest.mark.parametrize("fails", [False, True])
def test_modes_of_modules_are_put_back(fails: bool) -> None:
    model = Mixed()
    examples = [(X, None), (X,)] if fails else [(X, None)]
    if fails:
        with pytest.raises(ContractError):
            hs.audit(model, examples, steps=[2, 4])
    else:
        hs.audit(model, examples, steps=[2, 4])
    assert model.modes == {False}
    assert (model.training, model.drop.training, model.frozen.training) == (True, True, False)


def test_gradients_are_left_alone() -> None:
    weight = torch.ones(1, requires_grad=True)
    found = hs.audit(heron(step=lambda z, x: 0.5 * (weight * z + x / z)), [(X, X.sqrt())], steps=[2, 8], judge=Right())
    assert weight.grad is None
    assert found.difficulties[0].count == 12


@pytest.fixture(scope="module")
def broken() -> hs.Audit:
    """An audit with figures that are not finite."""
    model = heron(step=lambda z, x: torch.where(x > 5, z * 1e9, 0.5 * (z + x / z)))
    return hs.audit(model, {"easy": [(X[:6], X[:6].sqrt())], "hard": [(X, X.sqrt())]}, steps=[1, 8], judge=Right())


def test_json_is_strict_and_whole(broken: hs.Audit, tmp_path: Path) -> None:
    broken.save(tmp_path / "deep" / "audit")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    record = json.loads((tmp_path / "deep" / "audit" / "audit.json").read_text(), parse_constant=refuse)
    assert record["format"] == 1
    (told,) = record["audits"]
    assert set(told) == {field.name for field in dataclasses.fields(broken)} - {"courses"}
    assert told["difficulties"][1]["budgets"][-1]["failed"] == sum(x > 5 for x in X[:, 0].tolist())
    infinite = [e["residual"] is None for e in told["difficulties"][1]["examples"]]
    assert infinite == [x > 5 for x in X[:, 0].tolist()]


def test_examples_are_a_data_frame(broken: hs.Audit, tmp_path: Path) -> None:
    save_audits([broken, broken], tmp_path)
    table = pq.read_table(tmp_path / "examples.parquet").to_pydict()
    assert len(table["index"]) == 2 * 18
    assert table["difficulty"][:18] == ["easy"] * 6 + ["hard"] * 12
    examples = [e for _ in range(2) for d in broken.difficulties for e in d.examples]
    assert table["correct"] == [e.correct for e in examples]
    assert table["limit"] == [e.limit for e in examples]
    assert table["alignment_swapped"] == [e.alignment["swapped"] for e in examples]
    assert math.isinf(table["residual"][-1])


def test_the_report_is_there_and_names_the_model(broken: hs.Audit, tmp_path: Path) -> None:
    save_audits([broken], tmp_path, title="A <b>bold</b> title")
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;b&gt;bold&lt;/b&gt; title" in page
    assert broken.verdict.text.split(":")[0] in page


def test_a_folder_that_cannot_be_written(broken: hs.Audit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        broken.save(tmp_path / "file")


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_tables_break_no_interval(width: int) -> None:
    for audit in two_models():
        text = audit_text(audit, width)
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        rows = [line for line in lines if line.strip().startswith(tuple(d.name for d in audit.difficulties))]
        assert len(rows) == len(audit.difficulties)
        for row in rows:
            assert row.count("[") == row.count("]") >= 3
        header = next(line for line in lines if line.strip().startswith("examples"))
        assert f"{audit.trained_steps}*" in header.split()
        assert str(audit.settings.budgets[-1]) in header.split()


def test_more_width_shows_more_budgets() -> None:
    shown = [audit_text(two_models()[0], width).count("[0, 6]") for width in (80, 200)]
    assert shown[0] < shown[1]


def test_a_repr_is_a_table_and_a_verdict(broken: hs.Audit) -> None:
    text = repr(broken)
    assert "easy" in text
    assert "hard" in text
    assert broken.verdict.decision.upper() in text
    assert text == str(broken)


def test_names_with_brackets_are_shown_as_they_are() -> None:
    found = hs.audit(heron(), {"[bold]x[/bold] [/]": [(X, None)]}, steps=[2, 4], name="[red]m")
    assert "[bold]x[/bold] [/]" in repr(found)
    assert "[red]m" in repr(found)
