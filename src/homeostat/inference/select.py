"""Which answers to give: a threshold on a signal, such that of the answers given few enough are wrong."""

import numpy as np

from homeostat.errors import PolicyError
from homeostat.inference.candidates import Candidate, thresholds
from homeostat.inference.learn_then_test import binomial_p_value, fewest_examples, fixed_sequence
from homeostat.inference.policy import Selection
from homeostat.probes.courses.condition import Condition
from homeostat.probes.courses.courses import Courses


def select_answers(
    chooser: Courses, judger: Courses, rule: Candidate, there: Candidate, max_error: float, confidence: float
) -> Selection:
    """The condition that answers most examples while at most `max_error` of the answers are wrong.

    The signal is the one that, while rules are chosen, answers most within that share. Its thresholds are tested from
    the strictest on; given how many are answered, the number of wrong ones is binomial, so that each test is exact.

    Raises:
        PolicyError: no threshold can be promised.
    """
    best: tuple[float, list[Condition]] | None = None
    for signal in chooser.signals:
        grid = [*thresholds(chooser, signal)][::-1]
        coverage = max((_coverage(chooser, rule, one, max_error) for one in grid), default=0.0)
        if grid and (best is None or coverage > best[0]):
            best = coverage, grid
    if best is None:
        raise PolicyError("no signal was recorded by which answers could be told apart")
    chain = [one for one in best[1] if _given(chooser, rule, one).sum() >= fewest_examples(max_error, confidence)]
    counted = []
    for one in chain:
        given = _given(judger, there, one)
        wrong = int((given & ~judger.right_at(there.stops)).sum())
        counted.append((wrong, int(given.sum())))
    p_values = [binomial_p_value(wrong, count, max_error) for wrong, count in counted]
    promised = fixed_sequence(p_values, confidence)
    if not promised:
        raise PolicyError(
            f"no threshold can be promised to keep the share of wrong answers at {max_error:g} or less with "
            f"probability {confidence:g}; ask for less, give more examples, or better ones"
        )
    i = promised - 1
    wrong, count = counted[i]
    return Selection(
        condition=chain[i],
        level=max_error,
        confidence=confidence,
        examples=count,
        errors=wrong,
        p_value=p_values[i],
        coverage=count / len(judger),
    )


def _given(courses: Courses, rule: Candidate, one: Condition) -> np.ndarray:
    """`(examples,)` bool: the condition holds where the rule stops."""
    return courses.met(one)[np.arange(len(courses)), rule.stops - 1]


def _coverage(courses: Courses, rule: Candidate, one: Condition, max_error: float) -> float:
    given = _given(courses, rule, one)
    if not given.any():
        return 0.0
    wrong = (given & ~courses.right_at(rule.stops)).sum() / given.sum()
    return float(given.mean()) if wrong <= max_error else 0.0
