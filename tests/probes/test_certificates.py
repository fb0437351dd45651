"""Certificates against closed forms on affine maps, and on maps that are out to fool them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.errors import ContractError, InputError
from homeostat.probes import certify
from homeostat.probes.certificates.flip_distance import FlipDistance, logit_margins


class Largest:
    """Logits along dimension 1, the largest one is the answer."""

    def answers(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).reshape(len(targets), -1).all(1)


def affine(matrix: Tensor, decoder: Tensor, **options: Any) -> hs.IteratedModel:
    """z <- M z + x from zeros, read by W z."""
    return hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: z @ matrix.T + x,
        decode=lambda z, x: z @ decoder.T,
        **options,
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_closed_form_on_a_turning_contraction() -> None:
    """Every ratio and the radius are 0.9 exactly, so every figure of the certificate is known."""
    turn = torch.tensor([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]], dtype=torch.float64)
    matrix, decoder, x = 0.9 * turn, drawn(2, 2, seed=1), drawn(40, 2)
    found = certify(affine(matrix, decoder), [(x, None)], steps=300, judge=Largest(), gap=0.5, decoder_factor=1.0)
    q = 1 - 0.5 * 0.1
    for row, example in enumerate(found.rows[0].examples):
        z, answers, first = torch.zeros(2, dtype=torch.float64), [], None
        for step in range(1, 301):
            new = matrix @ z + x[row]
            length = float((new - z).norm())
            z = new
            logits = decoder @ z
            answers.append(int(logits.argmax()))
            margin = float((logits[0] - logits[1]).abs())
            flip = margin / float((decoder[0] - decoder[1]).norm())
            if first is None and step > 8 and length * q / (1 - q) < flip * (1 - 1e-9):
                first, remaining = step, length * q / (1 - q)
                assert example.remaining == pytest.approx(remaining, rel=1e-6)
                assert example.flip_distance == pytest.approx(flip, rel=1e-6)
        assert example.certified_at == first
        assert example.contraction == pytest.approx(q, rel=1e-6)
        last = max((n for n in range(2, 301) if answers[n - 1] != answers[n - 2]), default=0)
        assert example.last_change == last
        assert first is not None
        assert first > last
    assert found.changed_later == 0
    assert found.rows[0].certified.value == 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [2, 5])
def test_contractions_never_lose_a_certified_answer(seed: int, classes: int) -> None:
    matrix = drawn(6, 6, seed=seed)
    matrix = matrix / torch.linalg.matrix_norm(matrix, 2) * (0.5 + 0.08 * seed)
    weight, decoder, x = drawn(6, 6, seed=seed + 50), drawn(classes * 4, 6, seed=seed + 99), drawn(60, 6, seed=seed)
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: 5 * x.roll(1, 0),
        step=lambda z, x: torch.tanh(z @ matrix.T + x),
        decode=lambda z, x: (torch.tanh(z @ weight.T) @ decoder.T).reshape(len(z), classes, 4),
    )
    found = certify(model, [(x, None)], steps=250, judge=Largest())
    row = found.rows[0]
    assert found.changed_later == 0
    assert row.certified.value > 0.9
    assert all(e.certified_at > e.last_change for e in row.examples if e.certified_at)
    assert row.watched.value > 100


def drifting(rate: float, speed: float) -> hs.IteratedModel:
    """A fast transient in one number hides a drift of constant speed in the other, which flips the answer late."""
    scale = torch.tensor([rate, 1.0], dtype=torch.float64)

    def step(z: Tensor, x: Tensor) -> Tensor:
        return z * scale + torch.tensor([0.0, speed], dtype=torch.float64)

    return hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.cat([x, torch.zeros_like(x)], dim=1),
        step=step,
        decode=lambda z, x: torch.stack([1 - z[:, 1], 0 * z[:, 0]], dim=1),
    )


def test_a_slow_drift_behind_a_fast_transient_is_refused() -> None:
    """Step lengths alone shrink by 0.5 for many steps here, and their path would be short enough."""
    x = torch.logspace(-2, 4, 24, dtype=torch.float64)[:, None]
    found = certify(drifting(0.5, 1e-3), [(x, None)], steps=1200, judge=Largest(), iterations=32)
    row = found.rows[0]
    assert {e.last_change for e in row.examples} == {1000}, "the answer does flip, late"
    before = [e for e in row.examples if e.certified_at is not None and e.certified_at <= 1000]
    assert before == []
    assert found.changed_later == 0
    assert row.refusals.keys() <= {"slow direction", "no contraction"}


def test_what_the_radius_cannot_see_is_reported() -> None:
    """Near 0 this map contracts in every direction, also by its Jacobian; what carries the answer off is a forcing that
    the state's own clock lets in later. Here the assumption is false, and the report says so.
    """

    def step(s: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        z, clock = s
        return 0.5 * z + 2.0 * (clock > 60)[:, None], clock + 1

    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: (x, torch.zeros(len(x), dtype=torch.int64)),
        step=step,
        decode=lambda s, x: torch.stack([1 - s[0][:, 0], 0 * s[0][:, 0]], dim=1),
    )
    found = certify(model, [(0.5 * torch.ones(8, 1), None)], steps=100, judge=Largest())
    assert found.changed_later == 8
    assert all(e.changed_at is not None and e.changed_at > 60 for e in found.rows[0].examples)
    assert "8 CERTIFIED ANSWERS CHANGED LATER" in repr(found)


def test_a_slow_contraction_waits_until_its_path_is_short_enough() -> None:
    """0.99 a step towards -1 from +3: the answer flips after 139 steps. No certificate can stand before that."""
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.full_like(x, 3.0),
        step=lambda z, x: 0.99 * (z + 1) - 1,
        decode=lambda z, x: torch.cat([z, torch.zeros_like(z)], dim=1),
    )
    found = certify(model, [(torch.zeros(3, 1).double(), None)], steps=1000, judge=Largest())
    for example in found.rows[0].examples:
        assert example.last_change == 138 or example.last_change == 139
        assert example.certified_at is not None
        assert example.certified_at > example.last_change
    assert found.changed_later == 0


@pytest.mark.parametrize("gain", [1.0, 1.02])
def test_no_certificate_without_contraction(gain: float) -> None:
    model = affine(gain * torch.eye(2).double(), torch.eye(2).double())
    row = certify(model, [(drawn(10, 2), None)], steps=80, judge=Largest()).rows[0]
    assert row.certified.value == 0
    assert row.refusals == {"no contraction": 10}
    assert row.step.value == math.inf
    assert math.isnan(row.watched.value)


def test_why_there_is_none() -> None:
    matrix, eye = 0.5 * torch.eye(2).double(), torch.eye(2).double()
    ties = torch.ones(4, 2).double()
    assert certify(affine(matrix, eye), [(ties, None)], steps=50, judge=Largest()).rows[0].refusals == {
        "margin too small": 4
    }
    assert certify(affine(matrix, eye), [(drawn(4, 2), None)], steps=8, judge=Largest()).rows[0].refusals == {
        "too few steps": 4
    }
    burst = certify(affine(1e200 * eye, eye), [(drawn(4, 2), None)], steps=50, judge=Largest()).rows[0]
    assert burst.refusals == {"failed": 4}
    assert burst.failed == 4


def test_a_map_that_arrives_at_once_is_certified() -> None:
    """Its steps end in rounding long before the window is full."""
    for dtype in (torch.float32, torch.float64):
        matrix = 0.02 * torch.eye(2, dtype=dtype)
        x = drawn(20, 2).to(dtype)
        row = certify(affine(matrix, torch.eye(2, dtype=dtype)), [(x, None)], steps=200, judge=Largest()).rows[0]
        assert row.certified.value == 1
        assert row.changed_later == 0


def test_certified_is_not_right() -> None:
    x = drawn(12, 2)
    model = affine(0.5 * torch.eye(2).double(), torch.eye(2).double())
    targets = torch.where(torch.arange(12) < 3, x.argmax(1), 1 - x.argmax(1))
    found = certify(model, [(x, targets)], steps=80, judge=Largest())
    row = found.of("all examples")
    assert row.exact_certified is not None
    assert row.exact_certified.value == pytest.approx(3 / 12)
    assert row.exact_others is not None
    assert row.exact_others.count == 0
    assert "not that it is right" in repr(found)


def test_positions_that_are_not_asked_do_not_count() -> None:
    """The second position is a tie for ever; where it is not asked, that is no matter."""
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: 0.5 * z + x,
        decode=lambda z, x: torch.stack([z, torch.zeros_like(z)], dim=1),
    )
    x = torch.tensor([[1.0, 0.0], [-2.0, 0.0]]).double()
    both, one = torch.tensor([[0, 0], [1, 0]]), torch.tensor([[0, -100], [1, -100]])
    assert certify(model, [(x, both)], steps=60, judge=Largest()).rows[0].certified.value == 0
    assert certify(model, [(x, one)], steps=60, judge=Largest()).rows[0].certified.value == 1


def test_margins_of_ones_own() -> None:
    class Sign:
        def answers(self, outputs: Tensor) -> Tensor:
            return (outputs > 0).long()

    model = affine(0.5 * torch.eye(2).double(), torch.eye(2).double())
    x = drawn(10, 2)
    with pytest.raises(InputError, match="margins="):
        certify(model, [(x, None)], steps=50, judge=Sign())
    row = certify(model, [(x, None)], steps=80, judge=Sign(), margins=torch.abs).rows[0]
    assert row.certified.value == 1
    assert row.changed_later == 0


def test_an_example_does_not_depend_on_its_batch() -> None:
    matrix = drawn(4, 4, seed=5)
    matrix = matrix / torch.linalg.matrix_norm(matrix, 2) * 0.8
    model, x = affine(matrix, drawn(3, 4, seed=6)), drawn(12, 4)
    whole = certify(model, [(x, None)], steps=120, judge=Largest()).rows[0].examples
    parts = certify(model, [(x[:5], None), (x[5:], None)], steps=120, judge=Largest()).rows[0].examples
    for a, b in zip(whole, parts, strict=True):
        assert (a.index, a.certified_at, a.last_change) == (b.index, b.certified_at, b.last_change)
        assert a.flip_distance == pytest.approx(b.flip_distance, rel=1e-9)


# The flip distance by itself


def distances(decode: Any, z: Tensor) -> tuple[np.ndarray, np.ndarray]:
    outputs = decode([z])
    asked = torch.ones(len(z), *outputs.shape[2:], dtype=torch.bool)
    found = FlipDistance(decode, [z], [0], logit_margins(asked))
    return found.nearest().numpy(), found.bound().numpy()


def exact_distances(weight: Tensor, bias: Tensor, z: Tensor) -> np.ndarray:
    """For logits W z + b of shape (classes, positions): the smallest margin over the norm of the difference of rows."""
    found = []
    for row in z:
        logits = (weight @ row + bias).numpy()
        best = logits.argmax(0)
        each = [
            (logits[best[p], p] - logits[c, p]) / float((weight[best[p], p] - weight[c, p]).norm())
            for p in range(logits.shape[1])
            for c in range(logits.shape[0])
            if c != best[p]
        ]
        found.append(min(each))
    return np.array(found)


@pytest.mark.parametrize(("classes", "positions"), [(2, 1), (2, 7), (5, 1), (4, 6)])
def test_flip_distance_of_a_linear_decoder(classes: int, positions: int) -> None:
    weight, bias, z = drawn(classes, positions, 9, seed=2), drawn(classes, positions, seed=3), drawn(30, 9)
    nearest, bound = distances(lambda s: torch.einsum("cpk,rk->rcp", weight, s[0]) + bias, z)
    exact = exact_distances(weight, bias, z)
    assert (bound <= exact * (1 + 1e-9)).all(), "never further than an answer can be flipped"
    assert (nearest >= bound).all()
    assert (bound > exact / (classes * positions) ** 0.5 / 1.01).all()
    if (classes, positions) == (2, 1):
        assert np.allclose(bound, exact)


def test_flip_distance_is_exact_where_positions_have_parts_of_their_own() -> None:
    """Two classes, each position read from its own part of the state by the same weights, as a 1x1 convolution does."""
    weight, z = drawn(2, 4), drawn(20, 4, 30, seed=7)
    nearest, bound = distances(lambda s: torch.einsum("ck,rkp->rcp", weight, s[0]), z)
    logits = torch.einsum("ck,rkp->rcp", weight, z)
    exact = ((logits[:, 0] - logits[:, 1]).abs().amin(1) / (weight[0] - weight[1]).norm()).numpy()
    assert np.allclose(nearest, exact)
    # The norm comes from twelve iterations, so that it may be found a little too small, never too large.
    assert np.allclose(bound, exact, rtol=0.05)


def test_flip_distance_without_a_margin_or_a_state() -> None:
    z = drawn(2, 3)
    tie = lambda s: torch.stack([s[0][:, 0], s[0][:, 0]], dim=1)  # noqa: E731
    assert (distances(tie, z)[1] == 0).all()
    flat = lambda s: torch.stack([0 * s[0][:, 0], 0 * s[0][:, 0] + 1], dim=1)  # noqa: E731
    assert np.isinf(distances(flat, z)[1]).all()
    broken = lambda s: torch.stack([s[0][:, 0] * math.nan, s[0][:, 0]], dim=1)  # noqa: E731
    assert (distances(broken, z)[1] == 0).all()
    with pytest.raises(ContractError, match="gradient"):
        distances(lambda s: torch.stack([s[0][:, 0].detach(), s[0][:, 1].detach()], dim=1), z)


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"window": 0}, {"gap": 0}, {"gap": 1.5}, {"decoder_factor": -1}, {"iterations": 2}, {"seed": -1}],
)
def test_impossible_options(options: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"steps": 10, "judge": Largest()} | options
    with pytest.raises(InputError, match=next(iter(options))):
        certify(affine(torch.eye(2), torch.eye(2)), [(torch.ones(2, 2), None)], **arguments)


def test_what_cannot_be_certified_is_told() -> None:
    eye = torch.eye(2)
    with pytest.raises(ContractError, match="random"):
        certify(affine(eye, eye, stochastic=True), [(torch.ones(2, 2), None)], steps=5, judge=Largest())
    with pytest.raises(InputError, match="answers"):
        certify(affine(eye, eye), [(torch.ones(2, 2), None)], steps=5)
    with pytest.raises(InputError, match="no examples"):
        certify(affine(eye, eye), [], steps=5, judge=Largest())
