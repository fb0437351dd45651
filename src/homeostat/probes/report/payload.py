"""The data that the plots and the gallery need, as strict JSON, and nothing else of an audit."""

import json
import math
import string
from collections.abc import Iterable, Sequence
from typing import Any

from homeostat.probes.report import facts, words
from homeostat.probes.report.palette import difficulty_colours
from homeostat.probes.results import Alignment, Audit, Budget, Clip, Difficulty, Estimate

# One character a cell keeps a hundred frames of a maze at a hundred kilobytes.
_ALPHABET = string.digits + string.ascii_lowercase + string.ascii_uppercase

FACTS = (
    ("first", "first solved", lambda example: example.first_solved),
    ("change", "last change of the answer", lambda example: example.last_change),
    ("settled", "settled", lambda example: example.settled_at),
)
"""Key, name and value of the step numbers that are followed for each example."""


def difficulty_names(audits: Sequence[Audit]) -> list[str]:
    """Names of all difficulties, in the order of first appearance; the same name is the same curve in every model."""
    return list(dict.fromkeys(difficulty.name for audit in audits for difficulty in audit.difficulties))


def payload(audits: Sequence[Audit]) -> dict[str, Any]:
    """Everything that is drawn, as plain lists and numbers; what is not finite is None."""
    names = difficulty_names(audits)
    steps = [budget.steps for audit in audits for difficulty in audit.difficulties for budget in difficulty.budgets]
    clips = [(owner, clip) for owner, audit in enumerate(audits) for clip in audit.clips]
    return {
        "difficulties": [
            {"name": name, "light": light, "dark": dark}
            for name, light, dark in zip(
                names,
                difficulty_colours(len(names), dark=False),
                difficulty_colours(len(names), dark=True),
                strict=True,
            )
        ],
        "models": [_model(audit, names) for audit in audits],
        "steps": [min(steps), max(steps)] if steps else None,
        "clips": [
            {"place": place, "model": owner, **_clip(audits[owner], clip)} for place, (owner, clip) in enumerate(clips)
        ],
    }


def to_json(data: object) -> str:
    """Strict JSON that can stand inside a `<script>` element: no NaN, and nothing that ends the element.

    Example:
        >>> print(to_json({"name": "</script>"}))
        {"name":"\\u003c/script\\u003e"}
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _model(audit: Audit, names: list[str]) -> dict[str, Any]:
    return {
        "name": audit.model,
        "trained": audit.trained_steps,
        "unitCost": _finite(audit.unit_cost),
        "settleRtol": _finite(audit.settings.settle_rtol),
        "curves": [
            {"difficulty": names.index(difficulty.name), **_curves(audit, difficulty)}
            for difficulty in audit.difficulties
        ],
    }


def _curves(audit: Audit, difficulty: Difficulty) -> dict[str, Any]:
    budgets = sorted(difficulty.budgets, key=lambda budget: budget.steps)
    return {
        "cone": difficulty.light_cone,
        "exact": _share_curve(audit, ((budget, budget.exact) for budget in budgets), "exact accuracy"),
        "symbol": _share_curve(audit, ((budget, budget.symbol) for budget in budgets), "accuracy per symbol"),
        "settled": _share_curve(audit, ((budget, budget.settled) for budget in budgets), "settled"),
        "residual": [_residual(audit, budget) for budget in budgets],
        "alignments": [
            point for alignment in difficulty.alignments if (point := _alignment(audit, alignment)) is not None
        ],
        "facts": {key: _fact(facts.spread(difficulty, of), name) for key, name, of in FACTS},
        "judged": facts.lost(difficulty) is not None,
    }


def _share_curve(audit: Audit, pairs: Iterable[tuple[Budget, Estimate | None]], name: str) -> list[dict[str, Any]]:
    return [
        {
            "steps": budget.steps,
            **_estimate(estimate),
            "text": f"{words.steps_and_cost(budget.steps, audit.unit_cost)}\n{name} {words.interval(estimate)}"
            + (f"\n{budget.failed} failed (not finite)" if budget.failed else ""),
        }
        for budget, estimate in pairs
        if estimate is not None and math.isfinite(estimate.value)
    ]


def _residual(audit: Audit, budget: Budget) -> dict[str, Any]:
    return {
        "steps": budget.steps,
        "median": _finite(budget.residual_median),
        "high": _finite(budget.residual_high),
        "text": f"{words.steps_and_cost(budget.steps, audit.unit_cost)}"
        f"\nresidual: median {words.number(budget.residual_median)},"
        f" 90th percentile {words.number(budget.residual_high)}"
        + (f"\n{budget.failed} failed (not finite)" if budget.failed else ""),
    }


def _alignment(audit: Audit, alignment: Alignment) -> dict[str, Any] | None:
    exact = alignment.exact
    if exact is None or not (math.isfinite(exact.value) and math.isfinite(alignment.cosine.value)):
        return None
    return {
        "start": alignment.start,
        "cosine": _estimate(alignment.cosine),
        "null": _estimate(alignment.null) if math.isfinite(alignment.null.value) else None,
        "exact": _estimate(exact),
        "text": f"start: {alignment.start}, {words.steps_and_cost(alignment.steps, audit.unit_cost)}"
        f"\ncosine {words.cosine(alignment.cosine)}"
        f"\nnull {words.cosine(alignment.null)}"
        f"\nexact accuracy {words.interval(exact)}",
    }


def _fact(found: facts.Spread, name: str) -> dict[str, Any]:
    return {
        "quantiles": found.quantiles,
        "text": f"{name}: median {found}\n{found.have} of {found.total} examples",
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    # An interval that is unknown is drawn as none, not as a wide one.
    low = estimate.low if math.isfinite(estimate.low) else estimate.value
    high = estimate.high if math.isfinite(estimate.high) else estimate.value
    return {"value": _rounded(estimate.value), "low": _rounded(low), "high": _rounded(high)}


def _clip(audit: Audit, clip: Clip) -> dict[str, Any]:
    # Frames that repeat are stored once: a solved example no longer changes.
    pictures: dict[str, int] = {}
    order: list[int] = []
    for frame in clip.frames:
        text = "".join(_character(code) for row in frame for code in row)
        order.append(pictures.setdefault(text, len(pictures)))
    return {
        "title": clip.title,
        "difficulty": clip.difficulty,
        "solved": clip.solved,
        "columns": len(clip.frames[0][0]) if clip.frames and clip.frames[0] else 0,
        "steps": clip.steps,
        "pictures": list(pictures),
        "order": order,
        "residuals": [words.number(residual) for residual in clip.residuals],
        "correct": clip.correct,
        "labels": clip.labels,
        "colours": clip.colours,
        "cost": audit.unit_cost if audit.unit_cost != 1 else None,
    }


def _character(code: int) -> str:
    return _ALPHABET[code] if code < len(_ALPHABET) else chr(0x100 + code)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rounded(value: float) -> float:
    return round(value, 5)
