"""Signals of trust against pair counting and hand computation."""

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.errors import ContractError, InputError
from homeostat.probes import compare_trust
from homeostat.probes.ranking import auc, least_area, risk_coverage


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The figures by themselves


@pytest.mark.parametrize("seed", range(5))
def test_auc_counts_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    signal = rng.integers(0, 6, 40).astype(float)  # many ties
    signal[:3] = -np.inf
    right = rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in signal[right] for b in signal[~right]]
    found = auc(signal, right)
    assert found is not None
    assert found.value == pytest.approx(np.mean(pairs))
    assert found.low < found.value < found.high
    turned = auc(-signal, right)
    assert turned is not None
    assert (turned.value, turned.low) == pytest.approx((1 - found.value, 1 - found.high))


def test_auc_is_not_defined_where_there_is_nothing_to_tell_apart() -> None:
    assert auc([1.0, 2.0], [True, True]) is None
    assert auc([1.0, 2.0], [False, False]) is None


@pytest.mark.parametrize(("shift", "hits", "misses"), [(1.0, 20, 20), (2.0, 60, 12), (0.0, 15, 30)])
def test_the_interval_of_auc_holds_what_it_says(shift: float, hits: int, misses: int) -> None:
    from scipy import stats

    truth = float(stats.norm.cdf(shift / math.sqrt(2)))
    rng = np.random.default_rng(0)
    right = np.arange(hits + misses) < hits
    inside = []
    for _ in range(800):
        found = auc(rng.normal(size=hits + misses) + shift * right, right)
        assert found is not None
        inside.append(found.low <= truth <= found.high)
    assert 0.92 < np.mean(inside) < 0.99


def test_risk_coverage_by_hand() -> None:
    curve = risk_coverage([0.9, 0.7, 0.7, 0.1], [True, True, False, False])
    # Kept: 1 (0 wrong), then the tie of two (1 of 3 wrong), then all (2 of 4).
    assert curve.points == ((0.25, 0.0), (0.75, 1 / 3), (1.0, 0.5))
    # Within the tie half a wrong one is kept on average at two of four.
    assert curve.area.value == pytest.approx((0 + 0.5 / 2 + 1 / 3 + 2 / 4) / 4)
    assert curve.area.low <= curve.area.value <= curve.area.high


def test_the_area_is_the_mean_over_all_orders_of_ties() -> None:
    signal, right = np.array([2.0, 1.0, 1.0, 1.0, 0.0]), np.array([False, True, False, True, True])
    areas = []
    for order in permutations([1, 2, 3]):
        wrong = ~right[[0, *order, 4]]
        areas.append(np.mean(wrong.cumsum() / np.arange(1, 6)))
    assert risk_coverage(signal, right).area.value == pytest.approx(np.mean(areas))


def test_areas_at_best_and_by_chance() -> None:
    right = np.arange(30) % 3 > 0
    assert risk_coverage(right.astype(float), right).area.value < risk_coverage(np.zeros(30), right).area.value
    ordered = risk_coverage(np.where(right, 1.0, 0.0) + np.arange(30) / 1000, right).area.value
    assert least_area(10, 30) == pytest.approx(ordered)
    assert risk_coverage(np.zeros(30), right).area.value == pytest.approx(1 / 3)
    assert least_area(0, 5) == 0
    assert least_area(5, 5) == 1


# On models


class Sign:
    def answers(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).long()

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.answers(outputs) == targets).reshape(len(targets), -1).all(1)


def bistable(**options: Any) -> hs.IteratedModel:
    """Ends at +1 or -1 as it starts where the input is weak, where the input points where it is strong."""
    return hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.full_like(x, 0.1),
        step=lambda z, x: torch.tanh(2 * z + x),
        decode=lambda z, x: z,
        **options,
    )


def test_alignment_tells_where_answers_hang_on_the_start() -> None:
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)[:, None][torch.randperm(301, generator=torch.manual_seed(0))]
    targets = (x > 0).long()
    found = compare_trust(bistable(), [(x, targets)], steps=200, judge=Sign(), start="noise", noise_scale=2.0)
    wrong = [value for value, right in zip(x[:, 0].tolist(), found.groups[0].correct, strict=True) if not right]
    assert wrong
    assert all(-1 < value <= 0.01 for value in wrong), "weak inputs of the other sign"
    row = found.of("all examples", "alignment")
    assert row.auc is not None
    agreement = found.of("all examples", "agreement").auc
    assert agreement is not None
    assert row.auc.value == pytest.approx(agreement.value, abs=0.25)
    assert row.auc.value > 0.6
    # Each AUC is that of the values that are handed out.
    for row in found.rows:
        again = auc(row.values, found.groups[0].correct)
        assert again is not None
        assert row.auc == again
        assert row.aurc.value >= found.groups[0].aurc_perfect - 1e-12
    assert "AUC" in repr(found)


def test_every_signal_has_the_sign_of_trust() -> None:
    """Right where x is large: it settles sooner, has the smaller residual, the larger logits and the larger score."""
    x = torch.linspace(0.05, 1, 40, dtype=torch.float64)[:, None]
    right = torch.arange(40) >= 20

    class Half:
        def answers(self, outputs: Tensor) -> Tensor:
            return outputs.argmax(1)

        def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return targets.bool()

    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.full_like(x, 5.0),
        step=lambda z, x: x + (1 - 0.2 * x) * (z - x),  # the larger x, the faster
        decode=lambda z, x: torch.cat([z * 0, 3 * x], dim=1),
        score=lambda z, x: x[:, 0],
    )
    found = compare_trust(model, [(x, right)], steps=60, judge=Half(), settle_rtol=1e-3)
    assert [row.signal for row in found.rows] == [
        "alignment",
        "agreement",
        "residual",
        "confidence (mean)",
        "confidence (least)",
        "steps to settle",
        "score",
    ]
    for name in ("residual", "confidence (mean)", "confidence (least)", "score"):
        area = found.of("all examples", name).auc
        assert area is not None
        assert area.value == 1, name
    settle = found.of("all examples", "steps to settle")
    assert settle.auc is not None
    assert settle.auc.value > 0.9
    assert settle.values[0] == -math.inf, "it has not settled"
    confidence = torch.cat([x * 0, 3 * x], dim=1).softmax(1)[:, 1]
    assert found.of("all examples", "confidence (least)").values == pytest.approx(confidence.tolist())


def test_confidence_over_positions_that_are_asked() -> None:
    logits = drawn(6, 3, 4)

    class Grid:
        def answers(self, outputs: Tensor) -> Tensor:
            return outputs.argmax(1)

        def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return torch.arange(len(targets)) % 2 == 0

    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: 0.5 * (z + x),
        decode=lambda z, x: x,
    )
    targets = torch.zeros(6, 4, dtype=torch.int64)
    targets[:, 2] = -100
    found = compare_trust(model, [(logits, targets)], steps=30, judge=Grid())
    top = logits.softmax(1).amax(1)[:, [0, 1, 3]]
    assert found.of("all examples", "confidence (mean)").values == pytest.approx(top.mean(1).tolist())
    assert found.of("all examples", "confidence (least)").values == pytest.approx(top.amin(1).tolist())
    assert found.groups[0].missing == {"score": "the model has none"}


def test_not_defined_is_said() -> None:
    x = drawn(8, 1).abs() + 1
    found = compare_trust(
        bistable(), {"easy": [(x, (x > 0).long())], "all wrong": [(x, (x < 0).long())]}, steps=50, judge=Sign()
    )
    assert all(row.auc is None for row in found.rows)
    assert {row.aurc.value for row in found.rows if row.difficulty == "easy"} == {0.0}
    assert {row.aurc.value for row in found.rows if row.difficulty == "all wrong"} == {1.0}
    text = repr(found)
    assert "not defined" in text
    assert "easy: exact 100 [67.6, 100] %: all are right, so that there is nothing to tell apart" in text
    assert "all are wrong" in text


def test_outputs_that_are_no_logits_have_no_confidence() -> None:
    x = drawn(8, 1)
    found = compare_trust(bistable(), [(x, (x > 0).long())], steps=50, judge=Sign())
    assert "confidence (mean)" in found.groups[0].missing
    assert "no confidence (mean): the answers are not the largest of floating logits" in repr(found)
    with pytest.raises(KeyError, match="no row"):
        found.of("all examples", "confidence (mean)")


def test_failed_runs_are_wrong_and_trusted_least() -> None:
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.ones_like(x),
        step=lambda z, x: torch.where(x > 0, z * 1e30, 0.5 * z + x),
        decode=lambda z, x: torch.cat([z, -z], dim=1),
        score=lambda z, x: z[:, 0],
    )

    class Always:
        def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return torch.ones(len(targets), dtype=torch.bool)

        def answers(self, outputs: Tensor) -> Tensor:
            return outputs.argmax(1)

    x = drawn(10, 1)
    found = compare_trust(model, [(x, x)], steps=50, judge=Always())
    gone = (x[:, 0] > 0).tolist()
    assert found.groups[0].failed == sum(gone)
    assert [not c for c in found.groups[0].correct] == gone
    for row in found.rows:
        assert [value == -math.inf for value in row.values] == gone or row.signal == "steps to settle"
        assert row.auc is not None
        assert row.auc.value > 0.9 or row.signal in ("alignment", "agreement")


def test_a_lone_example_has_no_swapped_start() -> None:
    found = compare_trust(bistable(), [(drawn(1, 1), torch.ones(1, 1).long())], steps=20, judge=Sign())
    assert "no other example" in found.groups[0].missing["alignment"]
    deaf = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x, start: torch.ones_like(x),
        step=lambda z, x: torch.tanh(z + x),
        decode=lambda z, x: z,
    )
    found = compare_trust(deaf, [(drawn(4, 1), torch.ones(4, 1).long())], steps=20, judge=Sign(), start="noise")
    assert "the same state for every start" in found.groups[0].missing["alignment"]


def test_what_cannot_be_compared_is_told() -> None:
    x = drawn(4, 1)
    with pytest.raises(InputError, match="correct"):
        compare_trust(bistable(), [(x, x)], steps=5)
    with pytest.raises(InputError, match="no targets"):
        compare_trust(bistable(), [(x, None)], steps=5, judge=Sign())
    with pytest.raises(InputError, match="start must be"):
        compare_trust(bistable(), [(x, x.long())], steps=5, judge=Sign(), start="zeros")  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="random"):
        compare_trust(bistable(stochastic=True), [(x, x.long())], steps=5, judge=Sign())
    scored = bistable(score=lambda z, x: z)
    with pytest.raises(ContractError, match=r"score\(state, context\)"):
        compare_trust(scored, [(x, x.long())], steps=5, judge=Sign())
    numb = bistable(score=lambda z, x: z[:, 0] * math.nan)
    found = compare_trust(numb, [(x, x.long())], steps=5, judge=Sign())
    assert "not a number for 4 examples" in found.groups[0].missing["score"]


def test_what_a_state_carries_along_is_never_swapped() -> None:
    """A state of a value and its example's token; the step draws the value to the token."""

    class Right:
        def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs - targets).abs().amax(1) < 1e-3

    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: (torch.zeros_like(x), hs.Carry(x)),
        step=lambda z, x: (0.5 * (z[0] + z[1]), hs.Carry(z[1])),
        decode=lambda z, x: z[0],
    )
    x = drawn(12, 3)
    values = compare_trust(model, [(x, x + (torch.arange(12) % 2)[:, None])], steps=60, judge=Right())
    assert values.of("all examples", "alignment").values == pytest.approx([1.0] * 12)
