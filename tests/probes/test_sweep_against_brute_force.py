"""What an audit says of every example, against a plain loop that keeps the whole trajectory."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.models import Own
from homeostat.probes.results import Audit

BUDGETS = [1, 2, 3, 5, 8, 20, 33, 40, 64, 90]
RTOL = 1e-3
KINDS = ("settles", "rests", "turns", "wanders", "overflows", "breaks")


def zoo(x: Tensor) -> hs.IteratedModel:
    """Six maps in one batch. Rows of `x` `(batch, 8)`: the number of a map, and seven numbers that it uses.

    States `(batch, 6)` are read as logits of two classes for three symbols.
    """

    def step(z: Tensor, x: Tensor) -> Tensor:
        kind, u = x[:, :1], x[:, 1:7]
        angle = 0.05 + x[:, 7:8].abs()
        turned = torch.cat([angle.cos() * z[:, :3] - angle.sin() * z[:, 3:],
                            angle.sin() * z[:, :3] + angle.cos() * z[:, 3:]], dim=1)  # fmt: skip
        chaotic = 1 - 1.9 * z.clamp(-1, 1) ** 2
        broken = torch.where(z.abs() > 2.5, torch.full_like(z, float("nan")), z + 0.2 * u.sign())
        maps = [0.9 * z + 0.1 * u, (0.25 * z + u).round(), turned, chaotic, -3 * z + u, broken]
        return torch.stack(maps, dim=1)[torch.arange(len(z)), kind[:, 0].long()]

    return hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: 0.5 * x[:, 1:7].flip(1),
        step=step,
        decode=lambda z, x: z.reshape(-1, 2, 3),
        trained_steps=5,
    )


class Judge:
    def answers(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.answers(outputs) == targets).all(1)

    def symbols(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.answers(outputs) == targets).float().mean(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none").mean(1)


def instances(count: int = 90) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 8, generator=generator).double()
    x[:, 0] = torch.arange(count) % len(KINDS)
    # Answers that come up on the way: those of the state after a few steps, so that solved, lost and never all occur.
    model, when = zoo(x), torch.randint(1, 60, (count,), generator=generator)
    z, targets = model.initial_state(x, Own()), torch.zeros(count, 3, dtype=torch.int64)
    for step in range(1, 60):
        z = model.step(z, x)
        here = (when == step) & (x[:, 0] != KINDS.index("breaks"))
        targets[here] = z.reshape(-1, 2, 3).argmax(1)[here]
    return x, targets  # rows that break ask for 0 everywhere, which is what argmax says of a NaN


@dataclass
class Followed:
    correct: list[bool]
    symbols: list[float]
    loss: list[float]
    residual: list[float]
    failed_at: int | None
    first_solved: int | None
    last_change: int
    settled_at: int | None


def follow(x: Tensor, target: Tensor) -> Followed:
    """One example, one step at a time, with everything kept."""
    model, judge = zoo(x[None]), Judge()
    states = [model.initial_state(x[None], Own())]
    for _ in range(BUDGETS[-1]):
        states.append(model.step(states[-1], x[None]))
    finite = [bool(torch.isfinite(z).all()) and float(z.square().mean().sqrt()) <= 1e100 for z in states]
    failed_at = finite.index(False) if False in finite else None
    alive = [failed_at is None or step < failed_at for step in range(len(states))]
    outputs = [z.reshape(1, 2, 3) for z in states]
    right = [alive[n] and bool(judge.correct(outputs[n], target[None])) for n in range(len(states))]
    residual = [float("inf")]
    for before, after, ok in zip(states, states[1:], alive[1:], strict=False):
        change, size = ((after - before).square().mean().sqrt(), after.square().mean().sqrt())
        residual.append((0.0 if change == 0 else float(change / size)) if ok else float("inf"))
    changes = [
        n
        for n in range(2, len(states))
        if alive[n - 1] and (not alive[n] or bool((outputs[n].argmax(1) != outputs[n - 1].argmax(1)).any()))
    ]
    unsettled = [n for n in range(1, len(states)) if residual[n] > RTOL]
    since = (unsettled[-1] if unsettled else 0) + 1
    return Followed(
        correct=[right[n] for n in BUDGETS],
        symbols=[float(judge.symbols(outputs[n], target[None])) if alive[n] else 0.0 for n in BUDGETS],
        loss=[float(judge.loss(outputs[n], target[None])) if alive[n] else float("nan") for n in BUDGETS],
        residual=[residual[n] for n in BUDGETS],
        failed_at=failed_at,
        first_solved=right.index(True, 1) if True in right[1:] else None,
        last_change=changes[-1] if changes else 0,
        settled_at=since if since < len(states) else None,
    )


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return instances()


@pytest.fixture(scope="module")
def truth(batch: tuple[Tensor, Tensor]) -> list[Followed]:
    return [follow(x, target) for x, target in zip(*batch, strict=True)]


@pytest.fixture(scope="module")
def found(batch: tuple[Tensor, Tensor]) -> Audit:
    return hs.audit(zoo(batch[0]), [batch], steps=BUDGETS, judge=Judge(), settle_rtol=RTOL)


def test_the_instances_hold_every_case(truth: list[Followed]) -> None:
    assert sum(t.failed_at is not None for t in truth) > 10
    assert sum(t.settled_at is not None for t in truth) > 20
    assert sum(t.first_solved is None for t in truth) > 5
    assert sum(t.first_solved is not None and not t.correct[-1] for t in truth) > 10
    assert sum(t.correct[-1] for t in truth) > 10


def test_rows_that_rest_leave_early(found: Audit, batch: tuple[Tensor, Tensor]) -> None:
    assert found.difficulties[0].row_evaluations < len(batch[0]) * BUDGETS[-1] - 15 * 30


@pytest.mark.parametrize("name", ["first_solved", "last_change", "settled_at", "failed_at"])
def test_when_things_happen(found: Audit, truth: list[Followed], name: str) -> None:
    told = [getattr(example, name) for example in found.difficulties[0].examples]
    assert told == [getattr(t, name) for t in truth]


def test_the_end_of_every_example(found: Audit, truth: list[Followed]) -> None:
    for example, t in zip(found.difficulties[0].examples, truth, strict=True):
        assert example.correct == t.correct[-1]
        assert example.lost == (t.first_solved is not None and not t.correct[-1])
        assert example.residual == pytest.approx(t.residual[-1], rel=1e-9, abs=1e-15)


def test_every_budget(found: Audit, truth: list[Followed]) -> None:
    for place, budget in enumerate(found.difficulties[0].budgets):
        assert budget.steps == BUDGETS[place]
        assert budget.exact is not None
        assert budget.symbol is not None
        assert budget.exact.value == pytest.approx(np.mean([t.correct[place] for t in truth]))
        assert budget.symbol.value == pytest.approx(np.mean([t.symbols[place] for t in truth]))
        assert budget.loss == pytest.approx(np.nanmean([t.loss[place] for t in truth]), rel=1e-6)
        residuals = [t.residual[place] for t in truth]
        assert budget.residual_median == pytest.approx(np.median(residuals), rel=1e-9, abs=1e-15)
        assert budget.settled.value == pytest.approx(np.mean([r <= RTOL for r in residuals]))
        assert budget.failed == sum(t.failed_at is not None and t.failed_at <= budget.steps for t in truth)


def test_failures_are_failures_everywhere(found: Audit, truth: list[Followed]) -> None:
    rows = [n for n, t in enumerate(truth) if t.failed_at is not None]
    broken = [n for n in rows if n % len(KINDS) == KINDS.index("breaks")]
    assert broken, "rows whose NaN would be read as the right answer"
    for row in rows:
        example = found.difficulties[0].examples[row]
        assert example.correct is False
        assert example.settled_at is None
        assert (example.limit, example.residual) == ("divergence", float("inf"))
        assert all(cosine == 0 for cosine in example.alignment.values())
    difficulty = found.difficulties[0]
    for alignment in difficulty.alignments:
        assert alignment.failed >= len(rows)
        assert alignment.agreement is not None
        assert alignment.exact is not None
        alive = 1 - len(rows) / difficulty.count
        assert alignment.agreement.value <= alive
        assert alignment.exact.value <= alive


def test_settled_and_right_is_a_partition(found: Audit, truth: list[Followed]) -> None:
    table = found.difficulties[0].settled_correct
    assert table is not None
    want = [[0, 0], [0, 0]]
    for t in truth:
        want[0 if t.residual[-1] <= RTOL else 1][0 if t.correct[-1] else 1] += 1
    assert [list(row) for row in table] == want


def test_batches_do_not_matter(found: Audit, batch: tuple[Tensor, Tensor]) -> None:
    x, targets = batch
    cuts = [0, 1, 2, 30, 77, 90]
    parts = [(x[a:b], targets[a:b]) for a, b in itertools.pairwise(cuts)]
    split = hs.audit(zoo(x), iter(parts), steps=BUDGETS, judge=Judge(), settle_rtol=RTOL)
    whole = found.difficulties[0]
    for one, other in zip(whole.examples, split.difficulties[0].examples, strict=True):
        # A swapped start is another example of the same batch, the only thing that depends on the batch.
        assert replace(one, alignment={}) == replace(other, alignment={})
        assert one.alignment["noise"] == pytest.approx(other.alignment["noise"], abs=1e-12)
        assert one.alignment["zeros"] == pytest.approx(other.alignment["zeros"], abs=1e-12)
    for one, other in zip(whole.budgets, split.difficulties[0].budgets, strict=True):
        assert repr(one) == repr(other)
    assert whole.row_evaluations == split.difficulties[0].row_evaluations
    assert split.difficulties[0].notes == (
        "swapped start not measured: a batch of one example has no other example's limit",
    )


def test_a_single_example(batch: tuple[Tensor, Tensor]) -> None:
    found = hs.audit(zoo(batch[0]), [(batch[0][:1], batch[1][:1])], steps=[4, 9], judge=Judge())
    assert found.difficulties[0].count == 1
    assert {a.start for a in found.difficulties[0].alignments} == {"zeros", "noise"}
    for alignment in found.difficulties[0].alignments:
        assert alignment.null.count == 0
    assert "1" in repr(found)


def test_a_nest_of_targets_follows_its_rows(batch: tuple[Tensor, Tensor]) -> None:
    class Nested(Judge):
        def correct(self, outputs: Any, targets: Any) -> Tensor:
            return super().correct(outputs, targets["answer"][0])

        symbols = loss = None  # type: ignore[assignment]

    x, targets = batch
    plain = hs.audit(zoo(x), [batch], steps=BUDGETS, judge=Judge(), alignment=False)
    nested = hs.audit(zoo(x), [(x, {"answer": [targets]})], steps=BUDGETS, judge=Nested(), alignment=False)
    assert [e.correct for e in plain.difficulties[0].examples] == [e.correct for e in nested.difficulties[0].examples]
    assert nested.difficulties[0].budgets[0].symbol is None
    assert nested.difficulties[0].budgets[0].loss is None
