"""The verdict: what an audit's figures say about thinking longer, by rules that were fixed beforehand.

The rules, with their thresholds, are written down for readers in docs/verdict.md; keep the two together.
"""

from collections.abc import Sequence

import numpy as np

from homeostat.probes.estimates import paired_change
from homeostat.probes.results import Decision, Difficulty, Estimate, Finding, Verdict

SIGNIFICANCE = 0.05
"""Chance of calling a change of accuracy where there is none, over all difficulties together (Holm)."""
RELIABLE = 0.8
"""A budget is reliable at a difficulty when the lower end of the interval of exact accuracy is at least this."""

ALIGNED = 0.99
"""Mean cosine from which runs from another start count as ending in the same place."""


def decide(difficulties: Sequence[Difficulty], at_horizon: Sequence[np.ndarray | None], horizon: int | None) -> Verdict:
    """The verdict on one model.

    Args:
        difficulties: easiest first.
        at_horizon: for each, `(examples,)` bool, right at the budget `horizon`.
        horizon: the budget that longer thinking is compared with.
    """
    longest = difficulties[-1].budgets[-1].steps
    findings = [*_failures(difficulties), *_settling(difficulties), *_stopping(difficulties), *_alignment(difficulties)]
    if any(d.budgets[-1].exact is None for d in difficulties):
        text = "nothing says what is right, so that only the dynamics are reported"
        return _verdict("not judged", text, findings)
    if horizon is None or horizon >= longest:
        text = (
            "the trained horizon is unknown or not below the largest budget, so that there is nothing to compare with"
        )
        return _verdict("not judged", text, findings)
    changes = _changes(difficulties, at_horizon)
    findings = [*_accuracy(difficulties, changes, horizon), *_lost(difficulties), *findings]
    gains = [d for d, (gained, lost, sure) in zip(difficulties, changes, strict=True) if sure and gained > lost]
    losses = [d for d, (gained, lost, sure) in zip(difficulties, changes, strict=True) if sure and lost > gained]
    failed = sum(d.budgets[-1].failed for d in difficulties)
    reached = [d for d in gains if _exact(d, longest).low >= RELIABLE]
    span = f"from {horizon} to {longest} steps"
    if losses:
        worst = min(losses, key=lambda d: _exact(d, longest).value - _exact(d, horizon).value)
        text = (
            f"more steps lose answers it had: exact accuracy on {worst.name} falls from "
            f"{_percent(_exact(worst, horizon))} at {horizon} steps to {_percent(_exact(worst, longest))} at {longest}"
        )
        if gains:
            text += f" (they gain on {', '.join(d.name for d in gains)})"
        return _verdict("may not think longer", text, findings)
    if failed:
        text = f"{failed} examples end in a state that is not finite after {longest} steps"
        return _verdict("may not think longer", text, findings)
    if reached:
        best = reached[-1]
        text = (
            f"exact accuracy on {best.name} rises from {_percent(_exact(best, horizon))} at {horizon} steps, its "
            f"trained horizon, to {_percent(_exact(best, longest))} at {longest}, and no difficulty loses any"
        )
        weak = [d for d in difficulties if _exact(d, longest).low < RELIABLE]
        if weak:
            text += "; it is not reliable on " + ", ".join(f"{d.name} ({_percent(_exact(d, longest))})" for d in weak)
        return _verdict("may think longer", text, findings)
    if all(_exact(d, horizon).low >= RELIABLE for d in difficulties):
        text = f"it is reliable on every difficulty at {horizon} steps already, and stays so {span}"
        return _verdict("no need", text, findings)
    if gains:
        best = max(gains, key=lambda d: _exact(d, longest).value)
        text = (
            f"more steps help, but make it reliable nowhere: best on {best.name}, "
            f"from {_percent(_exact(best, horizon))} to {_percent(_exact(best, longest))} {span}"
        )
        return _verdict("not decided", text, findings)
    unsolved = [d for d in difficulties if _exact(d, horizon).low < RELIABLE]
    if all(_exact(d, longest).high < RELIABLE for d in unsolved):
        names = ", ".join(d.name for d in unsolved)
        text = f"{span} exact accuracy on {names} does not change beyond chance: no budget makes it reliable there"
        return _verdict("may not think longer", text, findings)
    text = f"{span} no change of exact accuracy stands out from chance; more examples would tell"
    return _verdict("not decided", text, findings)


def _verdict(decision: Decision, text: str, findings: Sequence[Finding]) -> Verdict:
    return Verdict(decision, text[0].upper() + text[1:], tuple(findings))


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _exact(difficulty: Difficulty, steps: int) -> Estimate:
    exact = difficulty.at(steps).exact
    assert exact is not None, "checked before"
    return exact


def _changes(
    difficulties: Sequence[Difficulty], at_horizon: Sequence[np.ndarray | None]
) -> list[tuple[int, int, bool]]:
    """Gained, lost, and whether that is more than chance (McNemar's exact test, Holm over the difficulties)."""
    raw = []
    for difficulty, before in zip(difficulties, at_horizon, strict=True):
        assert before is not None, "judged difficulties know what was right at the horizon"
        raw.append(paired_change(before, [bool(example.correct) for example in difficulty.examples]))
    sure = [False] * len(raw)
    for place, index in enumerate(sorted(range(len(raw)), key=lambda i: raw[i][2])):
        if raw[index][2] > SIGNIFICANCE / (len(raw) - place):
            break
        sure[index] = True
    return [(gained, lost, yes) for (gained, lost, _), yes in zip(raw, sure, strict=True)]


def _accuracy(difficulties: Sequence[Difficulty], changes: list[tuple[int, int, bool]], horizon: int) -> list[Finding]:
    found = []
    for difficulty, (gained, lost, sure) in zip(difficulties, changes, strict=True):
        last = difficulty.budgets[-1]
        text = (
            f"{difficulty.name}: {_percent(_exact(difficulty, horizon))} exact at {horizon} steps, "
            f"{_percent(_exact(difficulty, last.steps))} at {last.steps} "
            f"({gained} gained, {lost} lost of {difficulty.count})"
        )
        found.append(Finding("accuracy", text, (gained > lost) if sure else None))
    return found


def _lost(difficulties: Sequence[Difficulty]) -> list[Finding]:
    lost = sum(bool(example.lost) for d in difficulties for example in d.examples)
    solved = sum(example.first_solved is not None for d in difficulties for example in d.examples)
    if solved == 0:
        return []
    text = f"{lost} of {solved} examples that were right after some step are wrong after the last one"
    return [Finding("solved then lost", text, lost == 0)]


def _failures(difficulties: Sequence[Difficulty]) -> list[Finding]:
    failed = sum(d.budgets[-1].failed for d in difficulties)
    if not failed:
        return []
    total = sum(d.count for d in difficulties)
    return [Finding("finite", f"{failed} of {total} examples end in a state that is not finite", False)]


def _settling(difficulties: Sequence[Difficulty]) -> list[Finding]:
    total = sum(d.count for d in difficulties)
    counts: dict[str, int] = {}
    for difficulty in difficulties:
        for name, count in difficulty.limits.items():
            counts[name] = counts.get(name, 0) + count
    fixed = counts.get("fixed point", 0)
    others = ", ".join(f"{count} {name}" for name, count in counts.items() if count and name != "fixed point")
    text = f"{fixed} of {total} examples end in a fixed point" + (f" ({others})" if others else "")
    found = [Finding("settling", text, None)]
    tables = [d.settled_correct for d in difficulties if d.settled_correct is not None]
    if tables:
        settled, wrong = sum(sum(table[0]) for table in tables), sum(table[0][1] for table in tables)
        text = (
            f"{wrong} of {settled} settled examples are wrong: a small residual does not tell that an answer is right"
        )
        found.append(
            Finding("settled and wrong", text if wrong else f"all {settled} settled examples are right", not wrong)
        )
    return found


def _stopping(difficulties: Sequence[Difficulty]) -> list[Finding]:
    """From which step on nothing changes any more, where that is known."""
    found = []
    changes = [e.last_change for d in difficulties for e in d.examples if e.last_change is not None]
    settled = [e.settled_at for d in difficulties for e in d.examples if e.settled_at is not None]
    if changes:
        text = (
            f"the last change of any answer is at step {max(changes)}; "
            f"half of the answers stay after step {_median(changes)}"
        )
        found.append(Finding("stopping", text, None))
    if settled:
        text = f"of the examples that settle, half have settled by step {_median(settled)}, the last at {max(settled)}"
        found.append(Finding("stopping", text, None))
    return found


def _median(steps: Sequence[int]) -> int:
    return int(np.median(np.asarray(steps)))


def _alignment(difficulties: Sequence[Difficulty]) -> list[Finding]:
    found = []
    for start in ("swapped", "noise", "zeros"):
        rows = [(d.name, a) for d in difficulties for a in d.alignments if a.start == start]
        if not rows:
            continue
        name, worst = min(rows, key=lambda row: row[1].cosine.value)
        text = (
            f"from {start} starts the final states align with cosine {worst.cosine.value:.3f} at worst ({name}; "
            f"different examples: {worst.null.value:.3f})"
        )
        if worst.agreement is not None:
            text += f", and {_percent(worst.agreement)} of the answers agree"
        if worst.failed:
            text += f"; {worst.failed} of {worst.cosine.count} runs failed"
        # Where different examples end in the same place too, the cosine says nothing.
        tells = worst.cosine.value >= ALIGNED and worst.null.value < ALIGNED
        found.append(Finding("alignment", text, True if tells else None))
    return found
