"""When a step is looked at: closely at its first use, and then once in so many evaluations, so that it costs little."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch.utils.weak import WeakIdRef

from homeostat.engine.problem import Problem
from homeostat.engine.step_function import held, step_owner

_EVERY = 400
"""Evaluations of a step between two looks: one look takes as long as about five evaluations of a small cell."""


@dataclass
class _Looks:
    """What is known of a step."""

    seen: set[str] = field(default_factory=set[str])
    last: tuple[Any, ...] | None = None
    taken: int = 0


_known: WeakKeyDictionary[Any, dict[Any, _Looks]] = WeakKeyDictionary()


def is_new(step: Any, what: str) -> bool:
    """Whether this has not been looked at before for that step.

    Example:
        >>> step = lambda z: z / 2
        >>> is_new(step, "values"), is_new(step, "values")
        (True, False)
    """
    looks = _looks(step)
    new = what not in looks.seen
    looks.seen.add(what)
    return new


def is_due(problem: Problem) -> bool:
    """Whether it is time for another look: never before, 400 evaluations ago, or other things than at the last one.

    Args:
        problem: its step with what that holds, and the kinds and shapes of its leaves count.

    Example:
        >>> import torch
        >>> from dataclasses import replace
        >>> problem = Problem.of(lambda z: z / 2, torch.ones(3), None)
        >>> is_due(problem), took(problem, 50), is_due(problem)
        (True, None, False)
        >>> took(replace(problem, compared=False), 350), is_due(problem)
        (None, True)
    """
    looks = _looks(problem.step)
    return looks.taken >= _EVERY or looks.last != _given(problem)


def took(problem: Problem, evaluations: int) -> None:
    """So many evaluations of its step were taken, and looked at where `problem.compared`, with no fault found."""
    looks = _looks(problem.step)
    if problem.compared:
        looks.last, looks.taken = _given(problem), 0
    looks.taken += evaluations


def _given(problem: Problem) -> tuple[Any, ...]:
    """What a dependence of rows may come from: what the step holds, and the kinds and shapes of its leaves."""
    shapes = [getattr(x, "shape", None) for x in (*problem.state, *problem.context)]
    # References, not identities: another object may come to stand where the first one stood.
    return tuple(map(WeakIdRef, held(problem.step))), problem.context_layout.kinds, shapes


def forget(step: Any) -> None:
    """Look again at once: something was found.

    Example:
        >>> step = lambda z: z / 2
        >>> is_new(step, "values"), forget(step), is_new(step, "values")
        (True, None, True)
    """
    owner, part = step_owner(step)
    with suppress(TypeError, KeyError):
        del _known[owner][part]


def _looks(step: Any) -> _Looks:
    owner, part = step_owner(step)
    try:
        return _known.setdefault(owner, {}).setdefault(part, _Looks())
    except TypeError:  # not hashable, or without weak references
        return _Looks()
