"""Policies: what they promise holds, what they do is what was simulated, and what cannot be promised is refused."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_models import Countdown, One, numbers
from pydantic import ValidationError
from scipy import stats

import homeostat as hs
from homeostat.engine import Status
from homeostat.errors import ContractError, InputError, PolicyError
from homeostat.inference import PENDING, predict_stream
from homeostat.models.model_hash import hash_of
from homeostat.probes import Courses, follow


def drawn(count: int, seed: int, *, wobble: float = 1.5) -> Courses:
    """Courses whose confidence tells only roughly from which step on an answer is right, so that loss is smooth."""
    rng = np.random.default_rng(seed)
    t, steps = np.arange(1, 41), 40
    solved = rng.uniform(2, 30, (count, 1))
    seen = solved + rng.normal(0, wobble, (count, 1))
    return Courses(
        model="drawn",
        model_hash=None,
        difficulties=("all",),
        group=np.zeros(count, dtype=np.int64),
        signals={"confidence": (1 / (1 + np.exp(-(t - seen)))).astype(np.float32)},
        right=np.broadcast_to(t, (count, steps)) >= solved,
        failed_at=np.zeros(count, dtype=np.int64),
        reads="argmax",
        masked=False,
        seed=0,
    )


def loss_of(policy: hs.Policy, courses: Courses) -> float:
    assert policy.guarantee is not None
    stops = courses.stops(courses.met_all(policy.conditions), policy.max_steps)
    return float((courses.right[:, policy.guarantee.reference_steps - 1] & ~courses.right_at(stops)).mean())


def test_the_promise_is_kept_as_often_as_promised() -> None:
    fresh, level, sets = drawn(40_000, seed=10**6), 0.05, 120
    risks = [
        loss_of(hs.fit_stopping(drawn(400, seed), max_accuracy_loss=level, confidence=0.8), fresh)
        for seed in range(sets)
    ]
    broken = sum(risk > level for risk in risks)
    assert stats.binomtest(broken, sets, 0.2, alternative="greater").pvalue > 1e-4
    assert max(risks) > level / 2  # not because the rules never come near it


def many_noisy_signals(count: int, seed: int) -> Courses:
    """Five signals that each know little: many rules, few examples, so that the best one on them was mostly lucky."""
    rng, t = np.random.default_rng(seed), np.arange(1, 41)
    solved = rng.uniform(2, 30, (count, 1))
    signals: dict = {}
    for name in ("confidence", "score", "residual", "entropy", "kl"):
        sure = 1 / (1 + np.exp((solved + rng.normal(0, 6, (count, 1)) - t) / 2))
        signals[name] = (sure if name in ("confidence", "score") else 1 - sure).astype(np.float32)
    none = np.zeros(count, dtype=np.int64)
    right = np.broadcast_to(t, (count, 40)) >= solved
    return Courses("drawn", None, ("all",), none, signals, right, none, "argmax", False, 0)


def test_luck_among_many_rules_does_not_break_the_promise() -> None:
    """Judged on the examples that chose, more than half of these policies would break it."""
    fresh, level, sets = many_noisy_signals(10_000, seed=10**6), 0.15, 40
    policies = [
        hs.fit_stopping(many_noisy_signals(120, s), max_accuracy_loss=level, confidence=0.8) for s in range(sets)
    ]
    broken = sum(loss_of(policy, fresh) > level for policy in policies)
    assert broken > 0
    assert stats.binomtest(broken, sets, 0.2, alternative="greater").pvalue > 1e-3


def test_prediction_stops_where_the_courses_say() -> None:
    model, (x, y) = Countdown(), numbers(200, 12)
    courses = follow(model, [(x, y)], max_steps=40, judge=One())
    policy = hs.fit_stopping(courses, max_accuracy_loss=0.05, confidence=0.9)
    wanted = courses.stops(courses.met_all(policy.conditions), policy.max_steps)
    assert wanted.mean() < 10  # one budget for all would be 12
    for batch_size in (512, 16):
        found = hs.predict(model, x, policy=policy, judge=One(), batch_size=batch_size)
        assert found.steps.tolist() == wanted.tolist()
        assert found.row_evaluations == wanted.sum()
        assert One().correct(found.outputs, y).tolist() == courses.right_at(wanted).tolist()
        assert not found.abstained.any()
    assert (found.confidence > 0.5).all()


def test_a_stream_yields_each_as_it_stops_and_may_wait() -> None:
    model = Countdown()
    policy = hs.Policy(conditions=(hs.Condition("score", 0),), max_steps=50)

    def inputs():
        for x in (30.0, 2.0, 3.0):
            yield torch.tensor([[x]])
            yield PENDING

    stream = predict_stream(model, inputs(), policy=policy, batch_size=2, refill=0, judge=One())
    found = list(stream)
    assert [one.index for one in found] == [1, 2, 0]
    assert [one.steps for one in found] == [2, 3, 30]
    assert stream.row_evaluations == 35
    assert (stream.read, stream.finished) == (3, 3)


def test_what_is_not_met_abstains_and_what_fails_says_so() -> None:
    model = Countdown()
    policy = hs.Policy(conditions=(hs.Condition("residual", 0.45), hs.Condition("score", 0)), max_steps=5)
    found = hs.predict(model, torch.tensor([[2.0], [9.0], [-3.0]]), policy=policy, judge=One())
    assert found.status.tolist() == [Status.STOPPED, Status.MAX_STEPS, Status.DIVERGED]
    assert found.steps.tolist() == [3, 5, 3]
    assert found.abstained.tolist() == [False, True, True]
    assert torch.isfinite(found.outputs).all()
    assert found.confidence.isnan().tolist() == [False, False, True]


def test_one_row_and_no_row() -> None:
    policy = hs.Policy(conditions=(hs.Condition("steps", 3),), max_steps=5, reads="none")
    assert hs.predict(Countdown(), torch.ones(1, 1), policy=policy).steps.tolist() == [3]
    none = hs.predict(Countdown(), torch.ones(0, 1), policy=policy)
    assert none.steps.shape == (0,)
    assert none.outputs.shape == (0, 2, 1)


def test_two_signals_together_are_a_rule() -> None:
    policy = hs.Policy(conditions=(hs.Condition("residual", 0.25), hs.Condition("score", 2)), max_steps=50)
    found = hs.predict(Countdown(), torch.tensor([[1.0], [8.0]]), policy=policy, judge=One())
    assert found.steps.tolist() == [4, 10]


def test_compute_budget_is_kept_and_the_most_accurate_rule_taken() -> None:
    policy = hs.fit_stopping(drawn(8000, 0), max_mean_steps=18)
    assert policy.guarantee is not None
    assert policy.guarantee.what == "mean steps"
    fresh = drawn(20_000, 7)
    stops = fresh.stops(fresh.met_all(policy.conditions), policy.max_steps)
    assert stops.mean() <= 18
    assert fresh.right_at(stops).mean() > fresh.right[:, 17].mean() + 0.2  # far better than 18 steps for all


def half_hopeless(count: int, seed: int) -> Courses:
    """A third is never right, and mostly looks less sure; a sixth never meets a rule, though it is right at the end."""
    rng = np.random.default_rng(seed)
    courses = drawn(count, seed, wobble=0.2)
    hopeless, slow = rng.random(count) < 0.33, rng.random(count) < 0.17
    sure = courses.signals["confidence"] * np.where(hopeless, rng.uniform(0.4, 1, count), 1.0)[:, None]
    sure[slow] = 0.1
    right = courses.right & ~(hopeless & ~slow)[:, None]
    signals: dict = {"residual": sure * 0 + 1, "confidence": sure.astype(np.float32)}
    return Courses("drawn", None, ("all",), courses.group, signals, right, courses.failed_at, "argmax", False, 0)


def test_answers_that_are_given_are_wrong_no_more_often_than_promised() -> None:
    fresh, level, broken, made = half_hopeless(20_000, seed=10**6), 0.1, 0, 0
    coverage = []
    for seed in range(40):
        try:
            policy = hs.fit_stopping(half_hopeless(1500, seed), max_accuracy_loss=0.1, max_error=level, confidence=0.8)
        except PolicyError:
            continue
        assert policy.select is not None
        made += 1
        met = fresh.met_all(policy.conditions)
        stops = fresh.stops(met, policy.max_steps)
        given = fresh.answered(met, stops)  # as a prediction has it: the rule was met, and so is the condition
        given &= fresh.met(policy.select.condition)[np.arange(len(fresh)), stops - 1]
        coverage.append((given.mean(), policy.select.coverage))
        broken += bool((given & ~fresh.right_at(stops)).sum() > level * given.sum())
    assert made > 20
    assert stats.binomtest(broken, made, 0.2, alternative="greater").pvalue > 1e-3
    for real, told in coverage:
        assert told == pytest.approx(real, abs=0.12)


def test_examples_that_never_met_their_rule_do_not_dilute_the_share_of_wrong_answers() -> None:
    """Half settles and is wrong in a tenth; half never meets the rule and is right: 5 % in all, 10 % of the answers."""
    count, t = 3000, np.arange(1, 41)
    rng = np.random.default_rng(0)
    slow, wrong = rng.random(count) < 0.5, rng.random(count) < 0.1
    solved = np.where(rng.random(count) < 0.9, rng.uniform(2, 6, count), rng.uniform(30, 39, count))[:, None]
    sure = np.where(slow[:, None], 0.1, 1 / (1 + np.exp(solved - t))).astype(np.float32)
    signals: dict = {"confidence": sure, "residual": sure * 0 + 1}
    right = slow[:, None] | ((t >= solved) & ~wrong[:, None])
    failed = np.zeros(count, dtype=np.int64)
    courses = Courses("drawn", None, ("all",), failed, signals, right, failed, "argmax", False, 0)
    policy = hs.fit_stopping(courses, max_accuracy_loss=0.02)
    assert "confidence" in policy.signals
    with pytest.raises(PolicyError, match="no threshold can be promised"):
        hs.fit_stopping(courses, max_accuracy_loss=0.02, max_error=0.07)


def test_a_selection_costs_no_evaluations_that_the_promise_does_not_count() -> None:
    courses = half_hopeless(3000, 3)
    signals: dict = {"alignment": courses.signals["confidence"], "confidence": courses.signals["confidence"]}
    courses = Courses(
        "drawn", None, ("all",), courses.group, signals, courses.right, courses.failed_at, "argmax", False, 0
    )
    policy = hs.fit_stopping(courses, max_mean_steps=40, max_error=0.1)
    assert policy.select is not None
    assert "alignment" not in {condition.signal for condition in policy.conditions}
    assert "alignment" not in policy.signals


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    policy = hs.fit_stopping((Countdown(), [numbers(400, 12)]), max_accuracy_loss=0.05, judge=One())
    path = policy.save(tmp_path / "deep" / "policy.json")
    again = hs.Policy.load(path)
    assert again == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert repr(again) == repr(policy)
    assert "promise: accuracy lost at most 5 points, with probability 0.9" in repr(policy)
    assert len(path.read_bytes()) < 8000


def test_a_policy_for_another_model_is_refused() -> None:
    first, second = Countdown(1.0), Countdown(2.0)
    policy = hs.fit_stopping((first, [numbers(400, 12)]), max_accuracy_loss=0.05, judge=One())
    hs.predict(first, torch.ones(1, 1), policy=policy, judge=One())
    with pytest.raises(PolicyError, match="made for countdown with weights of hash"):
        hs.predict(second, torch.ones(1, 1), policy=policy, judge=One())


def test_weights_are_found_behind_functions() -> None:
    layer = torch.nn.Linear(2, 2)
    functions = {"encode": lambda x: x, "initial_state": torch.zeros_like, "decode": lambda z, x: z}
    closed = hs.from_functions(step=lambda z, x: layer(z) + x, **functions)
    before = hash_of(closed)
    assert before is not None
    assert before == hash_of(hs.from_functions(step=lambda z, x: layer(z) + x, **functions))
    with torch.no_grad():
        layer.weight += 1
    assert hash_of(closed) != before
    assert hash_of(hs.from_functions(step=lambda z, x: 0.5 * z + x, **functions)) is None
    weight = torch.ones(2)
    tensors = hs.from_functions(step=lambda z, x: weight * z + x, **functions)
    before = hash_of(tensors)
    weight += 1
    assert None is not hash_of(tensors) != before


def test_settings_are_part_of_what_a_policy_was_made_for() -> None:
    class Damped(Countdown):
        def __init__(self, damping: float) -> None:
            super().__init__()
            self.damping = damping

    assert hash_of(Damped(0.5)) == hash_of(Damped(0.5)) != hash_of(Damped(1.0)) != hash_of(Countdown())
    model = Damped(0.5)
    before = hash_of(model)
    with torch.no_grad():
        model.sharpness += 1  # found although the hash is remembered
    assert hash_of(model) != before


def test_a_signal_that_the_model_lacks_is_refused() -> None:
    model = hs.from_functions(
        encode=lambda x: x, initial_state=torch.zeros_like, step=lambda z, x: 0.5 * z + x, decode=lambda z, x: z
    )
    policy = hs.Policy(conditions=(hs.Condition("score", 1),), max_steps=3, reads="none")
    with pytest.raises(ContractError, match="has no score"):
        hs.predict(model, torch.ones(2, 1), policy=policy)


def test_what_has_no_effect_is_refused() -> None:
    with pytest.raises(InputError, match="max_steps has no effect"):
        hs.fit_stopping(drawn(300, 0), max_accuracy_loss=0.05, max_steps=5)
    with pytest.raises(InputError, match="signals has no effect"):
        hs.fit_stopping(drawn(300, 0), max_accuracy_loss=0.05, signals=("residual",))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not a policy"),
        ("{", "not a policy"),
        ("[]", "not a policy"),
        ('{"conditions": [], "max_steps": 3}', "conditions"),
        ('{"conditions": [{"signal": "mood", "threshold": 1}], "max_steps": 3}', "unknown signal 'mood'"),
        ('{"conditions": [{"signal": "steps", "threshold": NaN}], "max_steps": 3}', "number"),
        ('{"conditions": [{"signal": ["x"], "threshold": 1}], "max_steps": 3}', "unknown signal"),
        ('{"conditions": [{"signal": "steps", "threshold": 1' + "0" * 400 + '}], "max_steps": 3}', "finite number"),
        ('{"conditions": [{"signal": "steps", "threshold": 1}], "max_steps": 100000000000000000000000}', "max_steps"),
        ('{"conditions": [{"signal": "stable", "threshold": 1}], "max_steps": 3, "reads": "none"}', "stable needs"),
        ('{"conditions": [{"signal": "kl", "threshold": 1}], "max_steps": 3, "reads": "judge"}', "kl needs"),
        ('{"conditions": [{"signal": "steps", "threshold": 1}], "max_steps": 0}', "max_steps"),
        ('{"conditions": [{"signal": "steps", "threshold": 1}], "max_steps": 3, "max_step": 4}', "max_step"),
        ('{"format": 9, "conditions": [{"signal": "steps", "threshold": 1}], "max_steps": 3}', "format"),
    ],
)
def test_a_file_that_is_none_says_where(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(PolicyError, match=match):
        hs.Policy.load(tmp_path / "p.json")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(PolicyError, match=r"cannot read nowhere\.json"):
        hs.Policy.load("nowhere.json")


def test_a_signal_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="twice"):
        hs.Policy(conditions=(hs.Condition("residual", 1), hs.Condition("residual", 2)), max_steps=3)


def test_too_few_examples_are_refused_with_their_number() -> None:
    with pytest.raises(PolicyError, match=r"takes 2,302 there, so 4,604 in all"):
        hs.fit_stopping((Countdown(), [numbers(500, 9)]), max_accuracy_loss=0.001, judge=One())


def test_all_wrong_and_all_right_are_refused() -> None:
    x, y = numbers(300, 9)
    with pytest.raises(PolicyError, match="none of the 300 calibration examples is right"):
        hs.fit_stopping((Countdown(), [(x, torch.zeros_like(y) + 7)]), max_accuracy_loss=0.05, judge=One())
    with pytest.raises(PolicyError, match="right at every step from the first on"):
        hs.fit_stopping((Countdown(), [(torch.ones_like(x), y)]), max_accuracy_loss=0.05, judge=One())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "either max_accuracy_loss"),
        ({"max_accuracy_loss": 0.1, "max_mean_steps": 3}, "either max_accuracy_loss"),
        ({"max_accuracy_loss": 0}, "share between 0 and 1"),
        ({"max_accuracy_loss": float("nan")}, "share between 0 and 1"),
        ({"max_accuracy_loss": 0.1, "confidence": 1}, "confidence must be a probability"),
        ({"max_mean_steps": 0}, "max_mean_steps must be"),
        ({"max_accuracy_loss": 0.1, "max_error": 2}, "max_error must be a share"),
    ],
)
def test_impossible_wishes_are_refused(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        hs.fit_stopping(drawn(100, 0), **options)


def test_an_audit_is_a_source() -> None:
    x, y = numbers(600, 12)
    audit = hs.audit(Countdown(), [(x, y)], steps=[1, 24], judge=One(), alignment=False)
    policy = hs.fit_stopping(audit, max_accuracy_loss=0.05)
    found = hs.predict(Countdown(), x, policy=policy, judge=One())
    lost = ~One().correct(found.outputs, y)
    assert lost.float().mean() <= 0.05
    with pytest.raises(InputError, match="takes an audit, or"):
        hs.fit_stopping(3, max_accuracy_loss=0.1)


def test_a_policy_needs_the_judge_it_was_made_with() -> None:
    class Masked(One):
        def asked(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs > 0

    policy = hs.fit_stopping((Countdown(), [numbers(400, 12)]), max_accuracy_loss=0.05, judge=Masked())
    assert policy.masked
    with pytest.raises(InputError, match="asked"):
        hs.predict(Countdown(), torch.ones(1, 1), policy=policy, judge=One())
    noisy = Countdown()
    noisy.stochastic = True
    with pytest.raises(ContractError, match="random numbers"):
        hs.predict(noisy, torch.ones(1, 1), policy=hs.Policy(conditions=policy.conditions, max_steps=3))
    assert math.isfinite(json.loads(policy.to_json())["mean_steps"])
