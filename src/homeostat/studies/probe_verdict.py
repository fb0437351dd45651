"""The verdict on path independence, by rules that were fixed before any model was judged by them.

The rules, with their thresholds, are written down for readers in docs/probes.md; keep the two together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from homeostat.probes import Attack, AttackRow, StartAlignment, StartAlignments

Decision = Literal["path-independent", "not path-independent", "not decided"]

ALIGNED = 0.99
"""Mean cosine from which runs from another start count as ending in the same place."""

ENOUGH = 16
"""Examples of a difficulty that a verdict needs: with fewer, the intervals themselves are not to be relied on."""


@dataclass(frozen=True)
class DifficultyVerdict:
    """What was decided at one difficulty, and by which rule."""

    difficulty: str
    decision: Decision
    text: str
    attacked: bool
    """Whether starts of an adversary were among those that were compared."""


@dataclass(frozen=True)
class PathVerdict:
    """Whether runs from every start end in the same place."""

    decision: Decision
    text: str
    difficulties: tuple[DifficultyVerdict, ...]


def decide(alignment: StartAlignments | None, attack: Attack | None) -> PathVerdict:
    """The verdict on one model.

    Args:
        alignment: of several starts; without it nothing is decided.
        attack: on the limit; without it the verdict says that it is missing.
    """
    if alignment is None:
        return PathVerdict("not decided", "not decided: alignment was not measured", ())
    names = list(dict.fromkeys(row.difficulty for row in alignment.rows))
    attacks = {} if attack is None else {row.difficulty: row for row in attack.rows}
    found = tuple(
        _one(name, [row for row in alignment.rows if row.difficulty == name], attacks.get(name)) for name in names
    )
    against = [d for d in found if d.decision == "not path-independent"]
    open_ones = [d for d in found if d.decision == "not decided"]
    good = [d for d in found if d.decision == "path-independent"]
    if against:
        text = "not path-independent: " + "; ".join(f"{d.text} on {d.difficulty}" for d in against)
        if good:
            text += f" (path-independent on {_names(good)})"
        return PathVerdict("not path-independent", text, found)
    if open_ones:
        text = "not decided: " + "; ".join(f"{d.text} on {d.difficulty}" for d in open_ones)
        if good:
            text += f" (path-independent on {_names(good)})"
        return PathVerdict("not decided", text, found)
    included = "attacked starts included" if all(d.attacked for d in good) else "starts of an adversary were not tried"
    text = f"path-independent on {_names(good)}: runs from every start end in the same place, {included}"
    return PathVerdict("path-independent", text, found)


def _names(found: Sequence[DifficultyVerdict]) -> str:
    return ", ".join(d.difficulty for d in found)


def _one(difficulty: str, rows: Sequence[StartAlignment], attack: AttackRow | None) -> DifficultyVerdict:
    """The rules, in this order."""
    count = rows[0].count
    compared = [row for row in rows if row.cosine.value == row.cosine.value]  # the others start where they began

    def verdict(decision: Decision, text: str) -> DifficultyVerdict:
        return DifficultyVerdict(difficulty, decision, text, attack is not None)

    if count < ENOUGH:
        few = "1 example is" if count == 1 else f"{count} examples are"
        return verdict("not decided", f"{few} too few (at least {ENOUGH} are needed)")
    if not compared:
        return verdict("not decided", "no start could be told from another one")
    control = min((row.restart for row in compared), key=lambda e: e.value)
    elsewhere = [row for row in compared if row.cosine.high < ALIGNED]
    # What has not settled moves on by itself: only what lies below that is due to the start.
    due = [row for row in elsewhere if row.cosine.high < row.restart.low]
    if due:
        worst = min(due, key=lambda row: row.cosine.value)
        failed = f", {worst.failed} of {worst.count} runs failed" if worst.failed else ""
        text = f"runs from {worst.start} end elsewhere (cosine {worst.cosine.value:.3f}{failed})"
        return verdict("not path-independent", text)
    if attack is not None and attack.cosine_attacked.high < min(ALIGNED, control.low):
        text = f"attacked starts end elsewhere (cosine {attack.cosine_attacked.value:.3f})"
        return verdict("not path-independent", text)
    if control.high < ALIGNED:
        return verdict("not decided", f"runs have not settled (cosine {control.value:.3f} with what they go on to)")
    if any(not row.null.low < ALIGNED for row in compared):
        return verdict("not decided", "different examples end in the same place too, so that the cosine says nothing")
    cosines = [row.cosine for row in compared] + ([] if attack is None else [attack.cosine_attacked])
    if all(e.low >= ALIGNED for e in cosines):
        return verdict("path-independent", "runs from every start end in the same place")
    low = min(cosines, key=lambda e: e.value)
    return verdict(
        "not decided", f"the interval of a cosine, {low.value:.3f} [{low.low:.3f}, {low.high:.3f}], leaves it open"
    )
