"""Whether a run can be repeated at all: without that, two runs from two starts say nothing about the starts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.norms import finite_rows, noise_floor, residuals
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Own

_STEPS = 3
_UNITS = 64
"""Two runs may differ by so many units in the last place: a device may add up in another order."""


def check_repeatable(model: IteratedModel, inputs: Any, *, seed: int, indices: Sequence[int], steps: int) -> None:
    """Encode a batch twice, start it twice, and take up to three steps twice.

    Raises:
        ContractError: the two differ, or the start is not finite.

    Example:
        >>> import homeostat as hs
        >>> model = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=torch.zeros_like,
        ...     step=lambda z, x: 0.5 * z + x + torch.randn_like(z),
        ...     decode=lambda z, x: z,
        ...     name="noisy",
        ... )
        >>> check_repeatable(model, torch.ones(2, 3), seed=0, indices=range(2), steps=10)
        Traceback (most recent call last):
        homeostat.errors.ContractError: two runs of noisy from the same start differ after 1 step: it draws random \
numbers, so that what another start or budget changes cannot be told from them; seed them by the state or the context, \
or take them out
    """
    with torch.no_grad():
        runs = []
        for _ in range(2):
            context = model.encode(inputs)
            runs.append(Problem.of(model.step, model.initial_state(context, Own().seeded(seed, indices)), context))
        measured = runs[0].layout.measured()
        states = [run.state for run in runs]
        check_finite(states[0], measured, model.name, "its own start", indices)
        for step in range(min(_STEPS, steps) + 1):
            if step:
                states = [run.apply(state, run.context) for run, state in zip(runs, states, strict=True)]
            if _differ(*([state[i] for i in measured] for state in states)):
                raise ContractError(_random_start(model) if step == 0 else _random_step(model, step))


def check_finite(
    state: Sequence[Tensor], measured: Sequence[int], model: str, start: str, indices: Sequence[int]
) -> None:
    """Refuse a start that is not finite: what a run from there ends in is not the model's doing.

    Raises:
        ContractError: naming the first example that it is so for.
    """
    bad = torch.stack([~finite_rows(state[i]) for i in measured]).any(0).cpu()
    if bool(bad.any()):
        where = indices[int(bad.nonzero()[0, 0])]
        raise ContractError(
            f"the state of {model} is not finite before the first step, from {start}: "
            f"{int(bad.sum())} of {len(bad)} examples, the first of them example {where}"
        )


def _differ(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    finite = torch.stack([finite_rows(a) & finite_rows(b) for a, b in zip(first, second, strict=True)]).all(0)
    one_finite = torch.stack([finite_rows(a) ^ finite_rows(b) for a, b in zip(first, second, strict=True)]).any(0)
    apart = residuals(first, second)[2]
    return bool((one_finite | (finite & (apart > noise_floor(first, _UNITS)))).any())


def _random_start(model: IteratedModel) -> str:
    return (
        f"initial_state of {model.name} gives another state each time it is asked for the same start: draw by the "
        "seed of the start that it is given, or return what does not change"
    )


def _random_step(model: IteratedModel, step: int) -> str:
    return (
        f"two runs of {model.name} from the same start differ after {step} step{'s' if step > 1 else ''}: it draws "
        "random numbers, so that what another start or budget changes cannot be told from them; seed them by the state "
        "or the context, or take them out"
    )
