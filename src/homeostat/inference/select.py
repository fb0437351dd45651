"""Which answers to give: a threshold on a signal, such that of the answers given few enough are wrong."""

import numpy as np

from homeostat.errors import PolicyError
from homeostat.inference.candidates import Candidate, thresholds
from homeostat.inference.learn_then_test import binomial_p_value, fixed_sequence
from homeostat.inference.policy import Selection
from homeostat.probes.courses.condition import Condition
from homeostat.probes.courses.courses import Courses
from homeostat.probes.courses.signals import COSTLY


def select_answers(
    chooser: Courses, judger: Courses, rule: Candidate, there: Candidate, max_error: float, confidence: float
) -> Selection:
    """The condition that answers most examples while at most `max_error` of the answers are wrong.

    Answers are those of examples that met the rule and this condition. The signal, and the threshold to begin with,
    are chosen on the one part of the examples; the other part judges from there to looser thresholds. Given how
    many are answered, the number of wrong ones is binomial, so that each test is exact. `judger` must hold no example
    by which the rule was chosen or judged.

    Args:
        rule: on the examples of `chooser`; there: the same on those of `judger`.

    Raises:
        PolicyError: no threshold can be promised.
    """
    paid = {condition.signal for condition in rule.conditions}
    chains = []
    for signal in chooser.signals:
        if signal in COSTLY and signal not in paid:
            continue  # it would cost evaluations that the rule's promise does not count
        chain = thresholds(chooser, signal)[::-1]
        if chain:
            p_values = [_p_value(chooser, rule, one, max_error) for one in chain]
            start = int(np.argmin(p_values))
            promised = fixed_sequence(p_values[start:], confidence)
            coverage = _given(chooser, rule, chain[start + promised - 1]).mean() if promised else 0.0
            chains.append((coverage, -p_values[start], chain[start:]))
    if not chains:
        raise PolicyError("no signal was recorded by which answers could be told apart")
    chain = max(chains, key=lambda found: found[:2])[2]
    p_values = [_p_value(judger, there, one, max_error) for one in chain]
    promised = fixed_sequence(p_values, confidence)
    if not promised:
        raise PolicyError(
            f"no threshold can be promised to keep the share of wrong answers at {max_error:g} or less with "
            f"probability {confidence:g}: the first one, {chain[0]!r}, has p = {p_values[0]:.2g}; allow more, "
            "or give more examples"
        )
    given = _given(judger, there, chain[promised - 1])
    return Selection(
        condition=chain[promised - 1],
        level=max_error,
        confidence=confidence,
        examples=int(given.sum()),
        errors=int((given & ~judger.right_at(there.stops)).sum()),
        p_value=p_values[promised - 1],
        coverage=float(given.mean()),
    )


def _given(courses: Courses, rule: Candidate, one: Condition) -> np.ndarray:
    """`(examples,)` bool: the rule was met, and the condition holds where it was."""
    return rule.answered & courses.met(one)[np.arange(len(courses)), rule.stops - 1]


def _p_value(courses: Courses, rule: Candidate, one: Condition, max_error: float) -> float:
    given = _given(courses, rule, one)
    wrong = given & ~courses.right_at(rule.stops)
    return binomial_p_value(int(wrong.sum()), int(given.sum()), max_error)
