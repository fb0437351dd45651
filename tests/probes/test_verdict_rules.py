"""The verdict, on examples of which it is laid down when they are solved and lost."""

import math

import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.probes.results import Audit

HORIZON, LONGEST = 4, 16
NEVER = 99


def audited(
    *difficulties: list[tuple[int, int]], horizon: int | None = HORIZON, judged: bool = True, breaks: bool = False
) -> Audit:
    """Examples `(first, end)` are right at the steps from `first` to before `end`."""

    class Judge:
        def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return outputs[:, 0] > 0

    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros(len(x), 1),
        step=lambda z, x: torch.where(z + 1 == LONGEST, z + (math.inf if breaks else 1), z + 1),
        decode=lambda z, x: (z >= x[:, :1]) & (z < x[:, 1:]),
        trained_steps=horizon,
    )
    examples = {
        f"level {i}": [(torch.tensor(rows, dtype=torch.float32), torch.zeros(len(rows)))]
        for i, rows in enumerate(difficulties, start=1)
    }
    return hs.audit(model, examples, steps=[1, LONGEST], judge=Judge() if judged else object(), alignment=False)


EARLY, LATE, LOST, UNSOLVED = (2, NEVER), (8, NEVER), (2, 8), (NEVER, NEVER)


def decision(*difficulties: list[tuple[int, int]], **options: bool) -> str:
    return audited(*difficulties, **options).verdict.decision  # type: ignore[arg-type]


def test_it_may_think_longer_where_that_makes_it_reliable() -> None:
    found = audited([EARLY] * 40, [LATE] * 40)
    assert found.verdict.decision == "may think longer"
    assert "level 2 rises from 0.0 %" in found.verdict.text
    assert "100.0 % [91.2, 100.0] at 16" in found.verdict.text
    assert "(40 gained, 0 lost of 40)" in "".join(f.text for f in found.verdict.findings)


def test_it_may_not_where_answers_are_lost_even_if_others_are_gained() -> None:
    found = audited([LOST] * 40, [LATE] * 40)
    assert found.verdict.decision == "may not think longer"
    assert "level 1 falls from 100.0 %" in found.verdict.text
    assert "level 2" in found.verdict.text
    lost = next(f for f in found.verdict.findings if f.rule == "solved then lost")
    assert lost.text.startswith("40 of 80")
    assert lost.good is False


def test_it_may_not_where_states_break() -> None:
    assert decision([EARLY] * 40, [LATE] * 40, breaks=True) == "may not think longer"


def test_a_difficulty_that_stays_unsolved_says_no() -> None:
    assert decision([EARLY] * 40, [UNSOLVED] * 40) == "may not think longer"


def test_there_is_no_need_where_all_is_solved_at_the_horizon() -> None:
    assert decision([EARLY] * 40, [EARLY] * 40) == "no need"


def test_gains_that_make_nothing_reliable_decide_nothing() -> None:
    assert decision([LATE] * 20 + [UNSOLVED] * 20) == "not decided"


def test_few_examples_decide_nothing() -> None:
    assert decision([EARLY] * 6 + [UNSOLVED] * 2) == "not decided"


@pytest.mark.parametrize("change", [LATE, LOST])
def test_a_change_must_stand_out_over_all_difficulties_together(change: tuple[int, int]) -> None:
    """Six of six is p = 0.031: enough for one difficulty, and by Holm's rule not for one of three."""
    rows = [change] * 6 + [EARLY] * 60
    alone = audited(rows).verdict.findings
    together = audited(rows, [EARLY] * 60, [EARLY] * 60).verdict.findings
    want = change is LATE
    assert next(f for f in alone if f.rule == "accuracy").good is want
    assert [f.good for f in together if f.rule == "accuracy"] == [None, None, None]
    assert (decision(rows) == "may not think longer") is (change is LOST)


def test_holm_lets_a_weaker_change_through_after_a_strong_one() -> None:
    # p = 0.0002 and p = 0.031: alone they are held against 0.025 and 0.05.
    found = audited([LATE] * 13 + [EARLY] * 40, [LATE] * 6 + [EARLY] * 40)
    assert [f.good for f in found.verdict.findings if f.rule == "accuracy"] == [True, True]


def test_without_a_judge_nothing_is_judged() -> None:
    found = audited([EARLY] * 4, judged=False)
    assert found.verdict.decision == "not judged"
    assert found.difficulties[0].budgets[0].exact is None
    assert found.difficulties[0].settled_correct is None
    assert "median residual" in repr(found)


@pytest.mark.parametrize("horizon", [None, LONGEST, 100])
def test_without_a_horizon_below_the_largest_budget_there_is_nothing_to_compare(horizon: int | None) -> None:
    found = audited([EARLY] * 4, horizon=horizon)
    assert found.verdict.decision == "not judged"
    assert found.settings.budgets == (1, LONGEST)


def test_the_horizon_is_among_the_budgets() -> None:
    assert audited([EARLY] * 4).settings.budgets == (1, HORIZON, LONGEST)
