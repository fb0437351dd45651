"""The rules of the verdict on path independence, one by one."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import homeostat as hs
from homeostat.errors import InputError
from homeostat.probes import Attack, AttackRow, Estimate, StartAlignment, StartAlignments
from homeostat.studies.path_independence_probe import probe
from homeostat.studies.probe_verdict import decide


def estimate(low: float, value: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(low if value is None else value, low, low if high is None else high, 20)


ONE = estimate(1.0)


def start(name: str = "swapped", difficulty: str = "easy", **fields: Any) -> StartAlignment:
    row = StartAlignment(
        difficulty=difficulty,
        start=name,
        reference="own",
        cosine=ONE,
        plain=ONE,
        phase_aligned=0,
        null=estimate(0.1),
        restart=ONE,
        distance=0.0,
        agreement=None,
        exact=None,
        failed=0,
        cosines=(1.0,) * 20,
        plain_cosines=(1.0,) * 20,
        nulls=(0.1,) * 20,
        restarts=(1.0,) * 20,
        distances=(0.0,) * 20,
        agreements=None,
        corrects=None,
    )
    return replace(row, **fields)


def alignments(*rows: StartAlignment) -> StartAlignments:
    return StartAlignments("toy", 10, 1e-3, 0, "float32", "cpu", rows, 0, 0.0)


def attacked(difficulty: str = "easy", cosine: Estimate = ONE) -> AttackRow:
    return AttackRow(
        difficulty=difficulty,
        count=20,
        exact_clean=None,
        exact_attacked=None,
        exact_random=None,
        agreement=None,
        agreement_random=None,
        cosine_attacked=cosine,
        cosine_random=ONE,
        null=estimate(0.1),
        radius=1.0,
        length=1.0,
        unit=1.0,
        failed=0,
        evaluations=0,
        cosines=(1.0,) * 20,
        cosines_random=(1.0,) * 20,
        agreements=None,
        corrects=None,
    )


def attacks(*rows: AttackRow) -> Attack:
    return Attack("toy", "latent", "lbfgs", 1.0, 10, 1, 1, 1, 1e-3, 0, "float32", "cpu", rows, 0.0)


def test_everything_ends_in_the_same_place() -> None:
    found = decide(alignments(start(), start("noise 1")), attacks(attacked()))
    assert found.decision == "path-independent"
    assert found.text == (
        "path-independent on easy: runs from every start end in the same place, attacked starts included"
    )
    found = decide(alignments(start(), start("noise 1")), None)
    assert found.decision == "path-independent"
    assert "adversary were not tried" in found.text


NAN = Estimate(math.nan, math.nan, math.nan, 0)


@pytest.mark.parametrize(
    ("rows", "attack", "decision", "words"),
    [
        ([start(), start("noise 2", cosine=estimate(0.5, 0.6, 0.7))], ONE, "not path-independent", "from noise 2 end"),
        ([start(cosine=estimate(0, 0, 0), failed=3)], ONE, "not path-independent", "3 of 20 runs failed"),
        # Within what the runs still move by themselves, nothing is due to the start.
        ([start(cosine=estimate(0.8, 0.85, 0.9), restart=estimate(0.8, 0.85, 0.9))], ONE, "not decided", "settled"),
        ([start(cosine=estimate(0.1, 0.2, 0.3), restart=estimate(0.8))], ONE, "not path-independent", "elsewhere"),
        ([start()], estimate(0.1, 0.2, 0.3), "not path-independent", "attacked starts end elsewhere (cosine 0.200)"),
        ([start(null=estimate(0.995))], ONE, "not decided", "the cosine says nothing"),
        ([start(cosine=estimate(0.97, 0.985, 0.995))], ONE, "not decided", "leaves it open"),
        ([start()], estimate(0.97, 0.985, 0.995), "not decided", "leaves it open"),
        ([start(cosine=NAN), start("own", cosine=NAN)], ONE, "not decided", "told from another"),
        ([start("own", cosine=NAN), start()], ONE, "path-independent", "same place"),
        ([start(cosine=Estimate(1.0, math.nan, math.nan, 1))], ONE, "not decided", "leaves it open"),
        ([start(cosines=(1.0,) * 15)], ONE, "not decided", "15 examples are too few (at least 16 are needed)"),
        ([start(cosines=(1.0,))], ONE, "not decided", "1 example is too few"),
        ([start(cosines=(1.0,) * 16)], ONE, "path-independent", "same place"),
    ],
)
def test_rules_in_their_order(rows: list[StartAlignment], attack: Estimate, decision: str, words: str) -> None:
    found = decide(alignments(*rows), attacks(attacked(cosine=attack)))
    assert found.decision == decision
    assert words in found.text
    assert found.text.startswith(decision)


def test_one_difficulty_against_decides() -> None:
    bad = start(difficulty="hard", cosine=estimate(0.1))
    unsure = start(difficulty="odd", null=ONE)
    found = decide(alignments(start(), bad, unsure), None)
    assert found.decision == "not path-independent"
    assert "on hard" in found.text
    assert "(path-independent on easy)" in found.text
    assert [d.decision for d in found.difficulties] == ["path-independent", "not path-independent", "not decided"]
    assert decide(alignments(start(), unsure), None).decision == "not decided"
    assert decide(None, None).text == "not decided: alignment was not measured"


# The probes together


def model(step: Any) -> hs.IteratedModel:
    return hs.from_functions(
        encode=lambda x: x,
        initial_state=torch.zeros_like,
        step=step,
        decode=lambda z, x: torch.stack([z, -z], dim=1),
        name="toy",
        trained_steps=5,
    )


class Judge:
    def answers(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(1)

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(1) == targets).all(1)


def drawn() -> torch.Tensor:
    return torch.randn(24, 4, generator=torch.Generator().manual_seed(0))


def test_all_parts_on_a_contraction() -> None:
    x = drawn()
    told: list[str] = []
    examples = iter([(x, (x < 0).long())])  # can be gone through only once
    found = probe(model(lambda z, x: 0.5 * z + x), examples, steps=40, judge=Judge(), on_part=told.append)
    assert told == ["alignment", "attack", "limits", "dynamics", "certificate", "trust", "extra-steps"]
    assert found.verdict.decision == "path-independent"
    assert found.missing == {}
    assert found.certificate is not None
    assert found.certificate.changed_later == 0
    text = repr(found)
    assert found.extra_steps is not None
    assert found.extra_steps.of("held out: all examples").count == 24
    assert max(row.steps for row in found.extra_steps.curves[0].rows) == 40
    assert "training examples were not given" in text
    assert text.endswith("runs from every start end in the same place, attacked starts included.")
    record = json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record["format"] == 1
    assert record["probe"]["verdict"]["decision"] == "path-independent"
    assert record["probe"]["dynamics"]["rows"][0]["radius"]["value"] == pytest.approx(0.5, rel=1e-3)


def test_two_attractors_are_not_path_independent() -> None:
    found = probe(model(lambda z, x: torch.tanh(3 * z + 0.1 * x)), [(drawn(), None)], steps=60, only=["alignment"])
    assert found.verdict.decision == "not path-independent"
    assert found.attack is found.trust is None


def test_what_cannot_be_measured_is_left_out_with_its_reason_or_refused() -> None:
    plain = hs.from_functions(
        encode=lambda x: x,
        initial_state=torch.zeros_like,
        step=lambda z, x: 0.5 * z + x,
        decode=lambda z, x: z,
        name="plain",
    )
    found = probe(plain, [(drawn(), None)], steps=30, name="mine")
    assert set(found.missing) == {"certificate", "trust", "extra-steps"}
    assert "how many steps plain was trained with" in found.missing["extra-steps"]
    assert "certificate not measured: nothing says what plain answers" in repr(found)
    assert found.model == "mine"
    assert "mine: dynamics after 30 steps" in repr(found)
    with pytest.raises(InputError, match="trust is about"):
        probe(plain, [(drawn(), None)], steps=30, only=["trust"])
    with pytest.raises(InputError, match="no probe 'luck'"):
        probe(plain, [(drawn(), None)], steps=30, only=["luck"])


def test_training_examples_are_a_curve_of_their_own() -> None:
    class Squares(Judge):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (outputs[:, 0] - 2 * targets).square().mean(1)

    x, other = drawn()[:16], drawn() + 1
    found = probe(
        model(lambda z, x: 0.5 * z + x),
        {"wide": [(other, other)]},
        steps=7,
        judge=Squares(),
        training=[(x[:3], x[:3])],
        training_is_whole=True,
        only=["extra-steps"],
        name="mine",
    ).extra_steps
    assert found is not None
    assert [(curve.name, curve.count, curve.whole) for curve in found.curves] == [
        ("training", 3, True),
        ("held out: wide", 24, False),
    ]
    assert [row.steps for row in found.curves[0].rows] == [1, 2, 3, 4, 5, 6, 7, 10]  # 5 steps were trained
    assert found.verdict.decision == "help"
    assert found.model == "mine"
