"""`fit_stopping`: the cheapest rule for stopping that can be promised to lose no more accuracy than asked."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from homeostat.checks import is_number
from homeostat.errors import InputError, PolicyError
from homeostat.inference.candidates import Candidate, evaluate, families, most_accurate
from homeostat.inference.learn_then_test import (
    binomial_p_value,
    fewest_examples,
    fixed_sequence,
    hoeffding_bentkus_p_value,
)
from homeostat.inference.policy import Guarantee, Policy, Row
from homeostat.inference.select import select_answers
from homeostat.probes import Audit
from homeostat.probes.courses.courses import Courses
from homeostat.probes.courses.follow import OnExamples, follow
from homeostat.probes.courses.signals import CHEAP, Signal

_HORIZONS = 8
"""The longest budget, in multiples of the trained horizon, where none is given."""


def fit_stopping(
    source: Any,
    *,
    max_accuracy_loss: float | None = None,
    max_mean_steps: float | None = None,
    max_error: float | None = None,
    confidence: float = 0.9,
    max_steps: int | None = None,
    judge: Any = None,
    signals: Sequence[Signal] = CHEAP,
    seed: int = 0,
    device: Any = None,
    on_examples: OnExamples | None = None,
) -> Policy:
    """Choose when to stop, on calibration examples that the model was not trained on.

    Half of the examples, split at random within each difficulty, choose a family of rules: fixed budgets, thresholds
    on one signal, or on one signal beside a fixed threshold on another. The other half judges the rules of this family
    from the strictest threshold to the loosest, by Learn then Test, until one cannot be promised; the cheapest of those
    before it is the policy. The promise needs no assumption on the model or on the distribution, only that later
    examples are drawn as these were.

    The accuracy lost is the share of examples that are right at the reference budget, the most accurate one while
    rules are chosen, and wrong where the policy stops; answers that thinking longer would have spoiled are not set
    against it.

    Args:
        source: an `Audit` made in this session, `Courses`, or `(model, examples)`: batches `(inputs, targets)`, or
            several such iterables by the name of their difficulty, in the shares in which they will come.
        max_accuracy_loss: largest share of accuracy that may be lost, such as 0.001 for 0.1 points. Or
        max_mean_steps: compute budget, largest mean number of evaluations of `step` an example; the most accurate rule
            within it is taken.
        max_error: beside it, largest share of wrong ones among the answers that are given; for the others the policy
            abstains. A third part of the examples judges that, and it may look at the rule's own signals and at those
            that cost nothing.
        confidence: probability of each promise, over the draw of the calibration examples.
        max_steps: the longest budget; eight times the trained horizon when None.
        judge: has `correct` and `answers`, see `follow`; the model's own object when None.
        signals: what rules may look at; `alignment` doubles the cost of a step, which is counted.
        seed: of the split.
        device: where to run.
        on_examples: told of progress.

    Raises:
        InputError: no examples, impossible options.
        PolicyError: too few examples for what is asked (the message says how many it takes), none of them ever right,
            all of them right from the first step on, or no rule that can be promised.

    Source:
        Learn then Test (arXiv 2110.01052), by fixed-sequence testing.

    Example:
        >>> import torch, homeostat as hs
        >>> heron = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.ones_like(x),
        ...     step=lambda z, x: 0.5 * (z + x / z),
        ...     decode=lambda z, x: z,
        ...     trained_steps=2,
        ... )
        >>> class Right:
        ...     def correct(self, outputs, targets):
        ...         return ((outputs / targets - 1).abs() < 1e-4).all(1)
        >>> x = 10 ** (8 * torch.rand(400, 1, generator=torch.Generator().manual_seed(0)))
        >>> policy = hs.fit_stopping((heron, [(x, x.sqrt())]), max_accuracy_loss=0.02, max_steps=30, judge=Right())
        >>> policy.conditions
        (residual <= 0.0133544,)
    """
    if (max_accuracy_loss is None) == (max_mean_steps is None):
        raise InputError("give either max_accuracy_loss, such as 0.001, or max_mean_steps, such as 50")
    if not is_number(confidence) or not 0 < confidence < 1:
        raise InputError(f"confidence must be a probability between 0 and 1, such as 0.9, not {confidence!r}")
    confidence = float(confidence)
    if max_accuracy_loss is not None:
        max_accuracy_loss = _share("max_accuracy_loss", max_accuracy_loss)
    elif not is_number(max_mean_steps) or not 1 <= max_mean_steps < float("inf"):
        raise InputError(f"max_mean_steps must be a number, 1 or more, not {max_mean_steps!r}")
    if max_error is not None:
        max_error = _share("max_error", max_error)
    courses = _courses(source, max_steps, judge, signals, seed, device, on_examples)
    _check_courses(courses, max_accuracy_loss, max_error, confidence)
    choosing, *judging = _parts(courses, 2 if max_error is None else 3, seed)
    chooser, judger = courses.at(choosing), courses.at(judging[0])
    reference = most_accurate(chooser)
    found = families(chooser, reference)

    def p_value(one: Candidate) -> float:
        if max_accuracy_loss is not None:
            return binomial_p_value(int(one.lost.sum()), len(one.lost), max_accuracy_loss)
        assert max_mean_steps is not None
        worst = one.max_steps * one.most_a_step
        return hoeffding_bentkus_p_value(one.cost / worst, len(one.stops), max_mean_steps / worst)

    if max_accuracy_loss is not None:
        chain = _cheapest_family(found, p_value, confidence)
    else:
        chain = _most_accurate_family(found, p_value, confidence)
    judged = [_again(judger, one, reference) for one in chain]
    p_values = [p_value(one) for one in judged]
    promised = fixed_sequence(p_values, confidence)
    if not promised:
        raise PolicyError(_nothing(judged, p_values, max_accuracy_loss, max_mean_steps, confidence, reference))
    if max_accuracy_loss is not None:
        pick = min(range(promised), key=lambda i: chain[i].cost)
    else:
        pick = max(range(promised), key=lambda i: (chain[i].accuracy, -chain[i].cost))
    one, there = chain[pick], judged[pick]
    guarantee = Guarantee(
        what="accuracy loss" if max_accuracy_loss is not None else "mean steps",
        level=max_accuracy_loss if max_accuracy_loss is not None else float(max_mean_steps or 0),
        confidence=confidence,
        examples=len(judger),
        observed=there.loss if max_accuracy_loss is not None else there.cost,
        p_value=p_values[pick],
        reference_steps=reference,
    )
    select = None
    if max_error is not None:  # examples of its own: the rule was picked by what the others said
        third = courses.at(judging[1])
        select = select_answers(chooser, third, one, _again(third, one, reference), max_error, confidence)
    return Policy(
        conditions=one.conditions,
        max_steps=one.max_steps,
        select=select,
        reads=courses.reads,
        masked=courses.masked,
        seed=courses.seed,
        failed=int((courses.failed_at > 0).sum()),
        model=courses.model,
        model_hash=courses.model_hash,
        guarantee=guarantee,
        mean_steps=there.cost,
        accuracy=there.accuracy,
        reference_accuracy=float(judger.right[:, reference - 1].mean()),
        compared=_compared(found, one),
    )


def _courses(
    source: Any, max_steps: int | None, judge: Any, signals: Sequence[Signal], seed: int, device: Any, tell: Any
) -> Courses:
    if isinstance(source, Courses | Audit):
        given = {"max_steps": max_steps, "judge": judge, "device": device, "on_examples": tell}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} has no effect: the examples have been followed already; leave it out")
        if tuple(signals) != CHEAP:
            raise InputError("signals has no effect: the examples have been followed already; leave it out")
    if isinstance(source, Courses):
        return source
    if isinstance(source, Audit):
        if source.courses is None:
            raise InputError(
                "this audit kept no courses of its examples: nothing said what is right, it was read from a file, or "
                "there were too many steps to keep; give (model, examples)"
            )
        return source.courses
    if not isinstance(source, tuple) or len(source) != 2:
        raise InputError(f"fit_stopping takes an audit, or (model, examples), not {type(source).__name__}")
    model, examples = source
    longest = max_steps
    if longest is None:
        horizon = getattr(model, "trained_steps", None)
        if not horizon:
            raise InputError("max_steps is needed: the model does not say its trained_steps")
        longest = _HORIZONS * int(horizon)
    if isinstance(signals, str):
        raise InputError(f"signals must be several names, such as ('residual', 'stable'), not {signals!r}")
    found = follow(
        model, examples, max_steps=longest, judge=judge, signals=signals, seed=seed, device=device, on_examples=tell
    )
    if tuple(signals) != CHEAP and found.notes:  # what was asked for by name is not left out in silence
        raise InputError(f"{found.model}: {'; '.join(found.notes)}")
    return found


def _check_courses(courses: Courses, max_loss: float | None, max_error: float | None, confidence: float) -> None:
    """Refuse what nothing can be learned from."""
    levels = [level for level in (max_loss, max_error) if level is not None]
    least = max((fewest_examples(level, confidence) for level in levels), default=1)
    parts = 2 if max_error is None else 3
    if len(courses) // parts < least:
        raise PolicyError(
            f"{len(courses):,} calibration examples are too few: one of {parts} parts judges, and a promise at this "
            f"level and confidence takes {least:,} there, so {parts * least:,} in all, without one error; give more "
            "or allow more errors"
        )
    failed = int((courses.failed_at > 0).sum())
    lost = f", and the states of {failed:,} are not finite" if failed else ""
    if not courses.right.any():
        raise PolicyError(
            f"none of the {len(courses):,} calibration examples is right at any step{lost}: there is nothing to keep"
        )
    if courses.right.all():
        raise PolicyError(
            f"all of the {len(courses):,} calibration examples are right at every step from the first on: they cannot "
            "tell when to stop; take harder ones, or a budget of 1 step"
        )


def _parts(courses: Courses, many: int, seed: int) -> list[np.ndarray]:
    """Places of the examples in equal parts, at random within each difficulty: the first one chooses, others judge."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(courses))
    order = order[np.argsort(courses.group[order], kind="stable")]
    return [np.sort(order[part::many]) for part in range(many)]


def _cheapest_family(
    found: list[list[Candidate]], p_value: Callable[[Candidate], float], confidence: float
) -> list[Candidate]:
    """The family that would be cheapest by these examples: at one threshold before the loosest of those that can be
    promised, since the loosest was lucky most of all.
    """
    best, chosen = math.inf, found[0]
    for family in found:
        promised = fixed_sequence((p_value(one) for one in family), confidence)
        if promised:
            cost = family[max(promised - 2, 0)].cost
            if cost < best:
                best, chosen = cost, family
    return chosen


def _most_accurate_family(
    found: list[list[Candidate]], p_value: Callable[[Candidate], float], confidence: float
) -> list[Candidate]:
    """The family that would be most accurate within the compute budget, its cheapest rule first."""
    best, chosen = -1.0, found[0][::-1]
    for family in found:
        chain = family[::-1]
        promised = fixed_sequence((p_value(one) for one in chain), confidence)
        accuracy = max((one.accuracy for one in chain[:promised]), default=-1.0)
        if accuracy > best:
            best, chosen = accuracy, chain
    return chosen


def _again(courses: Courses, one: Candidate, reference: int) -> Candidate:
    """The same rule on other examples."""
    return evaluate(courses, one.conditions, courses.met_all(one.conditions), one.max_steps, reference)


def _compared(found: list[list[Candidate]], chosen: Candidate) -> tuple[Row, ...]:
    """Of each kind the cheapest rule that lost no more than the chosen one; kinds with one are sorted by cost."""
    best: dict[str, Candidate] = {}
    for one in (one for family in found for one in family):
        if one.loss <= chosen.loss and (one.kind not in best or one.cost < best[one.kind].cost):
            best[one.kind] = one
    single = [c for c in best.values() if len(c.conditions) == 1 or c is chosen or c.kind == chosen.kind]
    return tuple(
        Row(
            kind=one.kind,
            conditions=one.conditions,
            max_steps=one.max_steps,
            mean_steps=one.cost,
            accuracy=one.accuracy,
            loss=one.loss,
        )
        for one in sorted(single, key=lambda c: c.cost)
    )


def _nothing(
    judged: list[Candidate],
    p_values: list[float],
    loss: float | None,
    steps: float | None,
    confidence: float,
    reference: int,
) -> str:
    first = judged[0]
    asked = f"a loss of at most {loss:g}" if loss is not None else f"at most {steps:g} steps on average"
    return (
        f"no rule can be promised to keep {asked} with probability {confidence:g}: the safest one lost "
        f"{int(first.lost.sum())} of {len(first.lost):,} examples that are right at {reference} steps and took "
        f"{first.cost:.1f} steps on average (p = {p_values[0]:.2g}); allow more, or give more examples"
    )


def _share(name: str, value: Any) -> float:
    if not is_number(value) or not 0 < value < 1:
        raise InputError(f"{name} must be a share between 0 and 1, such as 0.01, not {value!r}")
    return float(value)
