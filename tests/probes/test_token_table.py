"""Next tokens: the judge and the table by place, against figures worked out by hand."""

import numpy as np
import pytest
import torch

import homeostat as hs
from homeostat.errors import ContractError, InputError
from homeostat.probes import NextTokens, estimates, measure_tokens, next_tokens
from homeostat.probes.answers import asked, logits_of
from homeostat.probes.judge import Judge
from homeostat.tasks.base import IGNORE


def says(tokens: torch.Tensor, vocabulary: int = 6) -> torch.Tensor:
    return 5 * torch.eye(vocabulary)[tokens].movedim(-1, 1)


class Countdown:
    """Token t of a sequence is right from step `when[t]` on; the state of a token halves at every step."""

    trained_steps = 3
    unit_cost = 2.0
    name = "countdown"

    def __init__(self, when: torch.Tensor, broken: bool = False) -> None:
        self.when, self.broken = when, broken

    def encode(self, ids):
        return ids

    def initial_state(self, ids):
        return torch.ones(*ids.shape, 2), torch.zeros(len(ids), dtype=torch.long)

    def step(self, state, ids):
        tokens, count = state
        tokens = tokens * torch.tensor([0.5, 1.0])  # (0.5^n, 1): residual 0.5^n / RMS
        if self.broken:
            tokens = torch.where((count >= 1)[:, None, None] & (ids[:, :1, None] == 5), torch.nan, tokens)
        return tokens, count + 1

    def decode(self, state, ids):
        right = state[1][:, None] >= self.when[: ids.shape[1]]
        return says(torch.where(right, ids, (ids + 1) % 6))


def test_the_judge() -> None:
    targets = torch.tensor([[1, 2, IGNORE], [3, IGNORE, 4]])
    logits = says(torch.tensor([[1, 2, 0], [3, 5, 5]]))
    judge = NextTokens()
    assert judge.correct(logits, targets).tolist() == [True, False]
    assert judge.symbols(logits, targets).tolist() == [1.0, 0.5]
    each = -logits.log_softmax(1)
    by_hand = [(each[0, 1, 0] + each[0, 2, 1]) / 2, (each[1, 3, 0] + each[1, 4, 2]) / 2]
    torch.testing.assert_close(judge.loss(logits, targets), torch.stack(by_hand))
    assert judge.answers(logits).tolist() == [[1, 2, 0], [3, 5, 5]]


def test_a_token_without_a_finite_logit_is_wrong() -> None:
    logits = says(torch.tensor([[0, 1]]))
    logits[0, :, 0] = float("nan")  # the largest of NaN has a place all the same: the first one
    assert NextTokens().symbols(logits, torch.tensor([[0, 1]])).tolist() == [0.5]
    assert NextTokens().correct(logits, torch.tensor([[0, 1]])).tolist() == [False]


def test_probes_take_the_outputs_for_logits() -> None:
    logits, targets = says(torch.tensor([[1, 2, 0]])), torch.tensor([[1, 2, IGNORE]])
    judge = Judge.of(NextTokens())
    assert logits_of(logits, judge) is logits
    assert asked(targets, judge.decoded(logits)).tolist() == [[True, True, False]]


def test_sequences_become_examples() -> None:
    ids = torch.tensor([[4, 5, 6, 7], [4, 5, 0, 0], [0, 0, 4, 5]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    inputs, targets = next_tokens(ids, attention_mask=mask)
    assert inputs["input_ids"] is ids
    assert targets.tolist() == [[5, 6, 7, -100], [5, -100, -100, -100], [-100, -100, 5, -100]]
    _, targets = next_tokens(ids[:1], asked=torch.tensor([[0, 0, 1, 1]]))
    assert targets.tolist() == [[-100, 6, 7, -100]]


def test_by_place() -> None:
    ids = torch.tensor([[1, 2, 3, 4], [2, 3, 4, 1], [3, 4, 1, 2]])
    targets = ids.clone()
    targets[0, 1] = IGNORE
    found = measure_tokens(Countdown(torch.tensor([1, 2, 4, 9])), [(ids, targets)], steps=[4, 1], bins=2)
    front, back = found.rows
    assert [(row.first, row.last, row.tokens, row.sequences) for row in found.rows] == [(0, 1, 5, 3), (2, 3, 6, 3)]
    assert [budget.steps for budget in front.budgets] == [1, 4]
    assert [budget.accuracy.value for budget in front.budgets] == [3 / 5, 1]
    assert [budget.accuracy.value for budget in back.budgets] == [0, 3 / 6]
    # The lower median token of a sequence: places 0 and 1 are right at steps 1 and 2, places 2 and 3 at 4 and never.
    assert (front.first_right.value, back.first_right.value) == (1, 4)
    assert (front.never_right.value, back.never_right.value) == (0, 0.5)
    right, wrong = (-says(torch.tensor([[1]])).log_softmax(1)[0, token, 0].item() for token in (1, 2))
    assert front.budgets[0].loss.value == pytest.approx((3 * right + 2 * wrong) / 5)
    assert front.budgets[0].perplexity.value == pytest.approx(np.exp((3 * right + 2 * wrong) / 5))
    # A token's state goes from (1, 1) to (0.5, 1): the change has RMS 0.5 / sqrt(2), the state sqrt(1.25 / 2).
    assert front.budgets[0].residual.value == pytest.approx(0.5 / 1.25**0.5)
    assert found.evaluations == 12
    text = repr(found)
    assert "places" in text
    assert "2–3" in text
    assert "trained steps: 3; seed 0" in text
    assert repr(front).count("\n") == 2


def test_lengths_may_differ_between_batches() -> None:
    batches = [(ids := torch.tensor([[1, 2, 3, 4]]), ids), (ids := torch.tensor([[2, 3], [4, 5]]), ids)]
    found = measure_tokens(Countdown(torch.tensor([1, 1, 1, 9])), batches, steps=[2], bins=4)
    assert [(row.tokens, row.sequences) for row in found.rows] == [(3, 3), (3, 3), (1, 1), (1, 1)]
    assert [row.budgets[0].accuracy.value for row in found.rows] == [1, 1, 1, 0]
    assert found.rows[3].first_right.value == float("inf")


def test_states_that_are_not_finite_are_failures() -> None:
    ids = torch.tensor([[1, 2], [5, 2]])  # the second sequence breaks at its second step
    found = measure_tokens(Countdown(torch.tensor([1, 1]), broken=True), [(ids, ids)], steps=[1, 2], bins=1)
    before, after = found.rows[0].budgets
    assert (before.accuracy.value, after.accuracy.value) == (1, 0.5)
    assert after.loss.count == 1
    assert found.failed == 1
    assert "1 sequences were not finite at the end" in repr(found)


def test_a_share_counts_sequences() -> None:
    """As many tokens as sequences are as good as so many examples; tokens that agree are worth one."""
    rng = np.random.default_rng(0)
    single = (rng.random(200) < 0.7).astype(int)
    plain = estimates.share(single.astype(bool))
    found = estimates.clustered_ratio(single, np.ones(200))
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high))
    copied = estimates.clustered_ratio(50 * single, np.full(200, 50))
    assert (copied.low, copied.high) == pytest.approx((plain.low, plain.high), abs=2e-3)
    even = estimates.clustered_share([1.0, 0.5, 1.0, 0.5], symbols=10)
    assert repr(estimates.clustered_ratio([10, 5, 10, 5], [10] * 4)) == repr(even)
    # 400 repeats of 40 sequences whose chance differs: the interval holds the truth in about 95 of 100.
    held = 0
    for _ in range(400):
        counts = rng.integers(1, 30, 40)
        hits = rng.binomial(counts, rng.beta(2, 2, 40))
        found = estimates.clustered_ratio(hits, counts)
        held += found.low <= 0.5 <= found.high
    assert 365 <= held <= 395


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (torch.full((1, 3), IGNORE), InputError, "sequence 0 of a batch asks for no token"),
        (torch.tensor([[1, 2, 9]]), InputError, "target 9 is no token: these are 0 to 5, or -100"),
        (torch.tensor([[1, 2]]), ContractError, r"state\[0\] has shape \(1, 3, 2\), not one entry a token, \(1, 2\)"),
        (None, InputError, "targets must be tokens of shape"),
    ],
)
def test_targets_that_are_none(targets: object, error: type[Exception], message: str) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(error, match=message):
        measure_tokens(Countdown(torch.tensor([1, 1, 1])), [(ids, targets)], steps=[1])


def test_options_that_make_no_sense() -> None:
    ids = torch.tensor([[1, 2, 3]])
    for steps in ([], [0], [1.5]):
        with pytest.raises(InputError, match="steps must be"):
            measure_tokens(Countdown(torch.tensor([1, 1, 1])), [(ids, ids)], steps=steps)
    with pytest.raises(InputError, match="attention_mask must have the shape of input_ids"):
        next_tokens(ids, attention_mask=torch.ones(1, 2))
    with pytest.raises(InputError, match="judged by logits"):
        NextTokens().correct(torch.zeros(1, 3, 4), ids)


def test_a_state_without_tokens_has_no_residual_by_token() -> None:
    ids = torch.tensor([[1, 2, 3]])
    model = hs.from_functions(
        encode=lambda ids: ids,
        initial_state=lambda ids: torch.zeros(len(ids), 7),
        step=lambda z, ids: z + 1,
        decode=lambda z, ids: says(ids),
    )
    with pytest.raises(ContractError, match="say token_states=False"):
        measure_tokens(model, [(ids, ids)], steps=[1])
    found = measure_tokens(model, [(ids, ids)], steps=[1], token_states=False)
    assert found.rows[0].budgets[0].residual is None
    assert "no parts that belong to tokens" in repr(found)
