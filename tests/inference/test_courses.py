"""Courses: what is recorded at every step is what a plain loop would have seen, and what an audit keeps is the same."""

import math

import numpy as np
import pytest
import torch
from policy_models import Countdown, One, numbers
from torch import nn

import homeostat as hs
from homeostat.errors import ContractError, InputError
from homeostat.models import load
from homeostat.probes import Condition, Courses, follow
from homeostat.tasks import get_task

X = torch.tensor([[1.0], [3.0], [7.0], [-4.0]])
Y = torch.ones(4, 1, dtype=torch.int64)


@pytest.fixture(scope="module")
def courses() -> Courses:
    return follow(Countdown(), {"a": [(X[:2], Y[:2])], "b": [(X[2:], Y[2:])]}, max_steps=10, judge=One())


def test_every_step_is_what_the_closed_form_says(courses: Courses) -> None:
    t = np.arange(1, 11)
    for row, x in enumerate((1, 3, 7)):
        assert (courses.right[row] == (t >= x)).all()
        np.testing.assert_allclose(courses.signals["residual"][row], 1 / t, rtol=1e-6)
        margin = 2 * (t - x + 0.5)
        probability = 1 / (1 + np.exp(-np.abs(margin)))
        np.testing.assert_allclose(courses.signals["confidence"][row], probability, rtol=1e-5)
        entropy = -(probability * np.log(probability) + (1 - probability) * np.log(1 - probability))
        np.testing.assert_allclose(courses.signals["entropy"][row], entropy, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(courses.signals["score"][row], t - x)
        since = np.where(t < x, t - 1, np.where(x > 1, t - x, t - 1))  # the answer changes once, at step x > 1
        np.testing.assert_array_equal(courses.signals["stable"][row], since)
    assert courses.right_from().tolist() == [1, 3, 7, 0]
    assert courses.group.tolist() == [0, 0, 1, 1]
    assert courses.steps == 10


def test_divergence_of_the_softmax_is_that_of_two_coins(courses: Courses) -> None:
    def coin(t: float) -> float:
        return 1 / (1 + math.exp(-2 * (t - 3 + 0.5)))

    for t in range(2, 11):
        p, q = coin(t), coin(t - 1)
        wanted = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert courses.signals["kl"][1, t - 1] == pytest.approx(wanted, rel=1e-3, abs=1e-7)


def test_an_example_that_fails_is_wrong_and_unknown_from_there_on(courses: Courses) -> None:
    assert courses.failed_at.tolist() == [0, 0, 0, 4]
    assert not courses.right[3, 3:].any()
    assert np.isnan(courses.signals["residual"][3, 3:]).all()
    stops = courses.stops(courses.met(Condition("residual", 0.2)))
    assert stops.tolist() == [5, 5, 5, 4]  # 1 / t is 0.2 at step 5; the last one fails before
    assert courses.right_at(stops).tolist() == [True, True, False, False]


def test_rows_at_rest_go_on_as_they_are() -> None:
    halving = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: x.clone(),
        decode=lambda z, x: z,
    )

    class Judge:
        def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (outputs == targets).all(1)

        def answers(self, outputs: torch.Tensor) -> torch.Tensor:
            return outputs.long()

    x = torch.tensor([[2.0], [5.0]])
    found = follow(halving, [(x, x)], max_steps=100, judge=Judge())
    assert found.right.all()
    assert found.signals["stable"][:, -1].tolist() == [99, 99]
    assert found.signals["residual"][0].tolist() == [1.0] + [0.0] * 99
    assert {"confidence", "score"}.isdisjoint(found.signals)
    assert any("score" in note for note in found.notes)


def test_an_audit_keeps_the_same_course() -> None:
    task, model = get_task("mazes"), load("mazes").model
    batch = task.sample(4, 6, split="test", seed=0)
    audit = hs.audit(model, [tuple(batch)], steps=[1, 40], judge=task, alignment=False)
    wanted = follow(model, [tuple(batch)], max_steps=40, judge=task)
    kept = audit.courses
    assert kept is not None
    for name in ("residual", "stable"):
        np.testing.assert_allclose(kept.signals[name], wanted.signals[name], rtol=1e-4)
    assert (kept.right == wanted.right).all()
    assert kept.model_hash == wanted.model_hash
    assert kept.masked  # walls are not asked: what flickers there is no change of the answer


def test_the_cost_of_costly_signals_is_counted() -> None:
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: 0.5 * z + x,
        decode=lambda z, x: torch.stack([-z[:, 0], z[:, 0]], 1),
    )

    class Judge:
        def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs.argmax(1) == targets

        def answers(self, outputs: torch.Tensor) -> torch.Tensor:
            return outputs.argmax(1)

    x, y = torch.tensor([[1.0], [-2.0]]), torch.tensor([1, 0])
    found = follow(model, [(x, y)], max_steps=40, judge=Judge(), signals=("alignment", "certificate"))
    stops = np.array([10, 20])
    assert found.evaluations([Condition("residual", 1)], stops).tolist() == [10, 20]
    assert found.evaluations([Condition("alignment", 1)], stops).tolist() == [20, 40]
    certified = found.stops(found.met(Condition("certificate", 1)))
    certificates = hs.probes.certify(model, [(x, y)], steps=40, judge=Judge())
    assert certified.tolist() == [example.certified_at for example in certificates.rows[0].examples]
    assert (found.evaluations([Condition("certificate", 1)], certified) == certified + 64).all()


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(InputError, match="unknown signal 'sureness'"):
        follow(Countdown(), [(X, Y)], max_steps=3, judge=One(), signals=("sureness",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing says what is right"):
        follow(Countdown(), [(X, Y)], max_steps=3)
    with pytest.raises(InputError, match="no examples"):
        follow(Countdown(), [(X[:0], Y[:0])], max_steps=3, judge=One())
    with pytest.raises(InputError, match="targets"):
        follow(Countdown(), [(X, None)], max_steps=3, judge=One())
    noisy = Countdown()
    noisy.stochastic = True
    with pytest.raises(ContractError, match="random numbers"):
        follow(noisy, [(X, Y)], max_steps=3, judge=One())


def test_modes_of_the_model_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Dropout(0.5), Countdown())

    class Wrapped(Countdown):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

    wrapped = Wrapped().train()
    follow(wrapped, [numbers(4, 3)], max_steps=3, judge=One())
    assert wrapped.training
    assert model.training
