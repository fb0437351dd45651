"""The section on the theory: that it is there at its smallest, and that what it says follows from what was counted."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from homeostat.studies.claims import Decided
from homeostat.studies.jobs import Place, plain
from homeostat.studies.test_like_you_train.presets import get_preset
from homeostat.studies.test_like_you_train.theory_draws import TheoryDraws
from homeostat.studies.test_like_you_train.theory_section import section_1

SECTION = section_1(dataclasses.replace(get_preset("smoke"), theory_draws=6))


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return plain(SECTION.jobs[0].run(Place(tmp_path_factory.mktemp("theory"))))


def decided(values: dict[str, Any]) -> dict[str, Decided]:
    return {found.claim.name: found for found in SECTION.build(lambda job: values).claims}


def test_every_claim_is_answered_and_no_statement_is_violated(values: dict[str, Any]) -> None:
    found = decided(values)
    assert tuple(answer.claim for answer in found.values()) == SECTION.claims
    # Six draws are too few for the two rules about shares, and decide the others.
    assert {name for name, answer in found.items() if answer.verdict != "holds"} <= {
        "T3: at that rate",
        "T5: signs agree in the limit",
        "underparametrised is not enough",
    }
    content = SECTION.build(lambda job: values)
    assert len({figure.name for figure in content.figures}) == 6
    for figure in content.figures:
        assert all(series.points for series in figure.series), figure.name
    assert all(len(row) == len(table.columns) for table in content.tables for row in table.rows)


@pytest.mark.parametrize(
    ("path", "claim"),
    [
        (("T1", "Huber"), "T1: more steps cannot help"),
        (("T2", "underparametrised"), "T2: the gain is bounded"),
        (("T2", "sharp"), "T2: the bound cannot be improved"),
        (("T3", "bound"), "T3: D vanishes with the solver's error"),
        (("T4",), "T4: without regret, nothing to gain"),
        (("T5", "certain_agree"), "T5: the first-order sign, with a remainder"),
        (("T6", "one_is_zero"), "T6: meta-learners gain from more steps"),
        (("T6", "outside_above_zero"), "T6 fails with longer steps"),
    ],
)
def test_one_violation_refutes_a_statement(values: dict[str, Any], path: tuple[str, ...], claim: str) -> None:
    changed = copy.deepcopy(values)
    at = changed
    for name in path:
        at = at[name]
    assert at["hits"] == at["of"]
    at["hits"] -= 1
    assert {name for name, answer in decided(changed).items() if answer.verdict == "does not hold"} == {claim}


def test_many_draws_decide_what_few_leave_open(values: dict[str, Any]) -> None:
    changed = copy.deepcopy(values)
    for rate in changed["T3"]["rates"].values():
        rate["within"] = {"hits": 999, "of": 1000}
    changed["T5"]["agrees"]["eta N kept"][-1] |= {"hits": 900, "of": 1000}
    for row in changed["helped"]:
        row |= {"hits": 60, "of": 100}
    found = decided(changed)
    assert found["T3: at that rate"].verdict == "holds"
    assert found["T5: signs agree in the limit"].verdict == "does not hold"
    assert found["underparametrised is not enough"].verdict == "does not hold"
    assert found["underparametrised is not enough"].ours[0][1].count == 400


def test_the_same_seed_counts_the_same(tmp_path: Path) -> None:
    job = TheoryDraws(draws=4)
    assert job._t6() == job._t6()
    assert job._helped() == job._helped() != TheoryDraws(draws=4, seed=1)._helped()
    assert {row["of"] for row in job._helped()} == {1}
