"""Attacks on maps for which it is known, in closed form, what an adversary can and cannot do."""

import math
from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

import homeostat as hs
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError, InputError
from homeostat.probes import Attack, attack
from homeostat.probes.attacks.objective import Ball, Unrolled, answer_score, latent_score
from homeostat.probes.attacks.search import Method, climb, project, row_norms
from homeostat.probes.judge import Judge

ALL = "all examples"
QUICK: dict[str, Any] = {"restarts": 2, "iterations": 6, "grad_steps": 12}
METHODS: list[Method] = ["lbfgs", "projected-gradient"]


class SignJudge:
    def answers(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).long()

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.answers(outputs) == targets).all(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-outputs * (2 * targets - 1)).mean(1)


def model(step: Any, start: Any = torch.zeros_like, **more: Any) -> Any:
    functions = {"encode": lambda x: x, "decode": lambda z, x: z}
    return hs.from_functions(**(functions | {"initial_state": start, "step": step} | more))  # type: ignore[arg-type]


def inputs(rows: int = 12, width: int = 5) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).double()


def attacked(net: Any, x: Tensor, **options: Any) -> Attack:
    return attack(net, [(x, (x > 0).long())], judge=SignJudge(), **({"steps": 60} | QUICK | options))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("objective", ["latent", "answer"])
def test_nothing_can_be_done_to_a_contraction(method: Method, objective: str) -> None:
    x = inputs()
    found = attacked(
        model(lambda z, x: 0.5 * z + 0.5 * x, torch.ones_like), x, radius=20, method=method, objective=objective
    )
    row = found.of(ALL)
    assert row.exact_clean is not None
    assert row.exact_attacked is not None
    assert row.agreement is not None
    assert row.exact_clean.value == row.exact_attacked.value == row.agreement.value == 1
    assert row.cosine_attacked.value == pytest.approx(1, abs=1e-9)
    rms = x.square().mean(1).sqrt().median()
    assert 0.5 * rms < row.unit < 2 * rms
    assert (row.radius, row.length) == (pytest.approx(20 * row.unit), pytest.approx(20 * row.unit * 5**0.5))
    assert (row.failed, row.count, found.notes) == (0, 12, ())
    assert found.evaluations == row.evaluations


WIDTH = 100


def two_wells(z: Tensor, x: Tensor) -> Tensor:
    """Every entry becomes tanh(3m + 0.2 sign x), m the mean: two attractors, between them one unstable point."""
    return torch.tanh(3 * z.mean(1, keepdim=True) + 0.2 * x.sign()).expand_as(x)


THRESHOLD = brentq(lambda m: math.tanh(3 * m + 0.2) - m, -0.3, 0.0)
"""From a mean below it, and x > 0, the run ends in the other well; the run from zero never does."""

UNIT = brentq(lambda m: math.tanh(3 * m + 0.2) - m, 0.5, 1.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("objective", ["latent", "answer"])
def test_two_wells_flip_exactly_where_the_ball_reaches_the_other_one(method: Method, objective: str) -> None:
    """The shortest way to a mean of m has root mean square |m|; a random direction has a mean ten times smaller."""
    x = torch.ones(2, WIDTH).double() * torch.tensor([1, -1])[:, None]

    def at(size: float) -> Any:
        # Without a partner, whose limit would be the very direction that is looked for.
        batches = [(row[None], (row[None] > 0).long()) for row in x]
        return attack(
            model(two_wells), batches, steps=80, judge=SignJudge(), radius=size * abs(THRESHOLD) / UNIT,
            method=method, objective=objective, **QUICK,
        ).of(ALL)  # fmt: skip

    inside, outside = at(0.95), at(1.1)
    assert inside.unit == pytest.approx(UNIT)
    assert inside.radius == pytest.approx(0.95 * abs(THRESHOLD))
    assert inside.exact_attacked.value == inside.agreement.value == inside.exact_clean.value == 1
    assert inside.cosine_attacked.value == pytest.approx(1)
    assert outside.exact_clean.value == outside.exact_random.value == outside.agreement_random.value == 1
    assert outside.exact_attacked.value == outside.agreement.value == 0
    assert outside.cosines == pytest.approx([-1, -1])
    assert outside.cosines_random == pytest.approx([1, 1])
    assert (outside.corrects, outside.agreements) == ((False, False), (False, False))


@pytest.mark.parametrize("method", METHODS)
def test_saturation_does_not_hide_the_other_well(method: Method) -> None:
    """With a gain of 40 the derivative is exactly zero after two steps, in float32: a masked gradient."""

    def step(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(40 * z.mean(1, keepdim=True) + 2).expand_as(x)

    x = torch.ones(1, WIDTH)
    row = attack(model(step), [(x, x.long())], steps=50, radius=0.1, judge=SignJudge(), method=method, **QUICK).of(ALL)
    assert row.exact_random is not None
    assert row.exact_attacked is not None
    assert (row.exact_random.value, row.exact_attacked.value) == (1, 0)


def test_it_is_never_weaker_than_what_needs_no_gradient() -> None:
    """Another example's limit lies in the ball and in the other well; no gradient leads there."""

    def step(z: Tensor, x: Tensor) -> Tensor:
        side = z.mean(1, keepdim=True).sign()
        return torch.where(side == 0, x.sign(), side).expand_as(x).detach()

    x = torch.ones(8, WIDTH) * torch.tensor([1, -1] * 4)[:, None]
    found = attacked(model(step), x, radius=1.5)
    row = found.of(ALL)
    assert "no gradient comes back from the state to the start" in found.notes[0]
    assert row.exact_attacked is not None
    assert row.exact_random is not None
    assert row.exact_attacked.value <= row.exact_random.value < 1
    for worst, random in zip(row.cosines, row.cosines_random, strict=True):
        assert worst <= random


def test_a_cycle_is_not_broken_by_its_phase() -> None:
    """z <- -tanh(3z) swings between two places from everywhere: which one comes first is no other limit."""
    x = inputs(8, 1)
    row = attacked(model(lambda z, x: -torch.tanh(3 * z + 0 * x), lambda x: 0.1 + 0 * x), x, radius=1).of(ALL)
    assert row.cosine_attacked.value == pytest.approx(1)
    assert row.agreement is not None
    assert row.agreement.value == 0, "but the answer that is read at the end is another one"


def test_starts_that_overflow_are_failures() -> None:
    def step(z: Tensor, x: Tensor) -> Tensor:
        return torch.where(z.norm(dim=1, keepdim=True) > 3, 1e10 * z, 0.5 * (z + x / x.norm(dim=1, keepdim=True)))

    x = inputs()
    for radius, failed in ((2.0, 0), (3.5, 12)):
        row = attacked(model(step), x, radius=radius).of(ALL)
        assert row.exact_clean is not None
        assert row.exact_attacked is not None
        assert (row.failed, row.exact_clean.value, row.exact_attacked.value) == (failed, 1, 0 if failed else 1)
        assert row.cosines == pytest.approx([0 if failed else 1] * 12)


def test_only_floating_leaves_are_moved() -> None:
    seen = []

    def step(state: Any, x: Tensor) -> Any:
        z, y, count, token = state
        seen.append((float(count.detach().max()), int(token.min()), int(token.max())))
        return 0.5 * (z + x), 0.5 * y + z.float()[:, :2], count + 1, token

    net = model(
        step,
        lambda x: (0 * x, torch.zeros(len(x), 2), hs.Carry(torch.zeros(len(x))), torch.full((len(x),), 7)),
        decode=lambda state, x: state[0],
    )
    row = attacked(net, inputs(), steps=20, radius=3).of(ALL)
    assert {(low, high) for _, low, high in seen} == {(7, 7)}
    assert max(count for count, _, _ in seen) == 19
    assert row.exact_attacked is not None
    assert row.exact_attacked.value == 1


def test_what_an_example_meets_does_not_depend_on_its_batch() -> None:
    x = torch.ones(4, WIDTH).double() * torch.tensor([1, -1, 1, 1])[:, None]
    options: Any = {"steps": 30, "radius": 0.12, "judge": SignJudge()} | QUICK
    both = attack(model(two_wells), [(x[:1], None), (x[1:2], None), (x[2:], None)], **options).of(ALL)
    one = attack(model(two_wells), [(x[:1], None), (x[1:2], None)], **options).of(ALL)
    assert one.cosines == pytest.approx(both.cosines[:2], abs=1e-12)
    assert one.exact_attacked is None


def test_judge_targets_and_classes() -> None:
    """Without a loss the margin over the runner-up is attacked; without classes there is nothing to attack."""

    class Classes:
        def answers(self, outputs: Tensor) -> Tensor:
            return outputs.argmax(1)

    x = torch.ones(3, WIDTH)
    net = model(two_wells, decode=lambda z, x: torch.stack([-z[:, :3], z[:, :3]], dim=1))
    options: Any = {"steps": 60, "radius": 1.2 * abs(THRESHOLD) / UNIT, "objective": "answer"} | QUICK
    row = attack(net, [(x, None)], judge=Classes(), **options).of(ALL)
    assert row.agreement is not None
    assert (row.agreement.value, row.exact_clean, row.exact_attacked) == (0, None, None)
    with pytest.raises(InputError, match="needs a judge with a loss"):
        attack(model(two_wells), [(x, None)], **options)


def test_the_margin_is_that_of_the_closest_position() -> None:
    outputs = torch.tensor([[[5.0, 1.0], [2.0, 3.0], [0.0, 2.5]]])  # one example, three classes, two positions
    problem = Problem.of(lambda z, x: z, outputs, None)
    net: Any = model(lambda z, x: z)
    score = answer_score(net, Judge(), problem, None, outputs, outputs.argmax(1))
    wanted = math.log(math.exp(2 - 5) + math.exp(2.5 - 3))
    assert score([outputs]).tolist() == pytest.approx([wanted])


def test_gradients_of_the_objective_are_those_of_differences() -> None:
    x = inputs(4, 3)
    problem = Problem.of(lambda z, x: torch.tanh(2 * z + x), torch.zeros_like(x), x)
    ball = Ball(problem)
    every = torch.ones(4, dtype=torch.bool)
    score = latent_score(ball, [(x.roll(1, 0), every), (x.roll(2, 0), ~every)])
    objective = Unrolled(problem, ball, score, [1, 2, 4, 9])
    points = 0.3 * x.roll(1, 1)
    values, gradients = objective(points)
    assert objective.evaluations >= 4 * 9
    for entry in range(3):
        step = torch.zeros(3).double()
        step[entry] = 1e-6
        difference = (objective(points + step)[0] - objective(points - step)[0]) / 2e-6
        assert gradients[:, entry].tolist() == pytest.approx(difference.tolist(), rel=1e-5, abs=1e-9)
    z, want = torch.zeros_like(x) + points, 0.0
    for count in range(1, 10):
        z = torch.tanh(2 * z + x)
        if count in (1, 2, 4, 9):
            cosine = torch.nn.functional.cosine_similarity(z, x.roll(1, 0))
            distance = (z - x.roll(1, 0)).square().sum(1) / x.roll(1, 0).square().sum(1)
            want = want + (1 - cosine + distance / (1 + distance)).log() / 4
    assert values.tolist() == pytest.approx(want.tolist())  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1.0, 1e-35])
def test_climbing_finds_the_top_of_a_quadratic_hill(method: Method, size: float) -> None:
    """Inside the ball its top, and on the surface where the top lies outside; also where gradients are 1e-35."""
    top = torch.tensor([[0.3, -0.2, 0.1], [3.0, 0.0, 0.0], [0.0, 0.4, 0.0]])
    bend = torch.tensor([1.0, 5.0, 25.0])

    def objective(points: Tensor) -> tuple[Tensor, Tensor]:
        away = points - top
        return -size * 0.5 * (bend * away.square()).sum(1).double(), -size * bend * away

    start = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.5, 0.2], [5.0, 5.0, 5.0]])
    found = climb(objective, start, 1.0, method=method, iterations=60, directions=lambda k: start)
    assert float((found - torch.tensor([[0.3, -0.2, 0.1], [1.0, 0.0, 0.0], [0.0, 0.4, 0.0]])).abs().max()) < 0.05
    assert float(row_norms(found).max()) <= 1 + 1e-6


def test_projection_and_norms_at_any_scale() -> None:
    points = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [3e-30, 4e-30], [3e30, 4e30]])
    assert row_norms(points).tolist() == pytest.approx([5, 0.5, 0, 5e-30, 5e30])
    assert project(points, 1.0).norm(dim=1).tolist() == pytest.approx([1, 0.5, 0, 0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0}, "radius must be a finite number above 0"),
        ({"objective": "both"}, "objective must be 'latent' or 'answer', not 'both'"),
        ({"method": "adam"}, "method must be 'lbfgs' or 'projected-gradient'"),
        ({"restarts": 0}, "restarts must be"),
        ({"iterations": 1.5}, "iterations must be"),
        ({"grad_steps": 61}, "grad_steps must be a whole number from 1 to 60"),
    ],
)
def test_nonsense_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        attacked(model(two_wells), inputs(), **options)
    assert "\n" not in str(caught.value)


def test_models_without_a_unit_or_with_random_numbers_are_refused() -> None:
    with pytest.raises(ContractError, match="limits of 'all examples' are zero"):
        attacked(model(lambda z, x: 0 * z), inputs())
    with pytest.raises(ContractError, match="limits of 'all examples' are not finite"):
        attacked(model(lambda z, x: 1e20 * (z + 1)), inputs())
    with pytest.raises(ContractError, match="draws random numbers"):
        attacked(model(lambda z, x: torch.randn_like(z)), inputs())
    with pytest.raises(ContractError, match="not finite before the first step"):
        attacked(model(lambda z, x: z, lambda x: x / 0), inputs())


def test_the_table_says_what_was_done() -> None:
    found = attacked(model(lambda z, x: 0.5 * (z + x)), inputs(), radius=2, restarts=1, iterations=2, grad_steps=4)
    text = repr(found)
    assert "within 2 times the size of a state" in text
    assert "1 restarts of 2 iterations through 4 steps" in text
    assert "100 [75.8, 100]" in text
    assert repr(found.of(ALL)).splitlines()[1].startswith(ALL)
    with pytest.raises(KeyError, match="no difficulty 'hard'"):
        found.of("hard")
