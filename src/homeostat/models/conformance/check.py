"""`check_model`: run a model on a few examples, and say in plain words where it breaks the contract."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from homeostat.checks import is_whole
from homeostat.errors import HomeostatError, InputError
from homeostat.models.conformance import batches, calls, repeats
from homeostat.models.conformance.case import Case, Untested, Wrong, rows_in, said
from homeostat.models.conformance.result import Check, Conformance
from homeostat.models.contract import FUNCTIONS, IteratedModel, from_functions

_CHECKS: tuple[tuple[str, str | None, Callable[[Case], Any]], ...] = (
    ("attributes", None, calls.attributes),
    ("evaluation mode", None, calls.evaluation_mode),
    ("encode", "encode", calls.encode),
    ("context by example", "encode", batches.context_rows),
    ("initial_state", "initial_state", calls.initial_state),
    ("nothing in place", None, repeats.in_place),
    ("other starts", None, calls.starts),
    ("step keeps the state", "step", calls.step),
    ("finite", None, calls.finite),
    ("decode", "decode", calls.decode),
    ("score", "score", calls.score),
    ("repeatable", None, repeats.repeatable),
    ("nothing remembered", None, repeats.nothing_remembered),
    ("same in any batch", None, batches.same_in_any_batch),
    ("small batches", None, batches.few_rows),
    ("judge", None, calls.judge),
)
"""Name, the function that has failed where this check has, and the check."""


def check_model(
    model: Any,
    inputs: Any,
    targets: Any = None,
    *,
    judge: Any = None,
    steps: int | None = None,
    seed: int = 0,
    rtol: float | None = None,
    device: str | torch.device | None = None,
) -> Conformance:
    """Check a model against the contract, on a few of its own examples.

    It is run as probes run it: an `nn.Module` in evaluation mode, without gradients. Nothing of it is changed.

    Args:
        model: anything with the functions of the contract, or anything that is meant to have them.
        inputs: one batch, a tensor or a nest of tensors, batch first; four examples or more say most, and one alone
            leaves much untested. They should differ from one another.
        targets: of the same examples, for what says what is right; None leaves that untested.
        judge: has what it can of `correct`, `symbols`, `loss`, `answers`; the model's own object when None.
        steps: of the longest run; its trained steps when None, eight at least and 64 at most.
        seed: of the starts.
        rtol: largest difference that rounding may make between batches of other sizes, relative to the root mean square
            of a leaf. By dtype when None: 1e-9, 1e-4, 2e-2 and 1e-1 for float64, float32, float16 and bfloat16, and 50
            times that, 0.2 at most, on devices other than a CPU. A dependence weaker than that is not seen.
        device: where to run; that of the model's parameters when None.

    Returns:
        A `Conformance`: print it; `passed` is whether nothing is wrong.

    Raises:
        InputError: inputs that are no batch, or options that make no sense.

    Example:
        >>> import homeostat as hs
        >>> model = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=torch.zeros_like,
        ...     step=lambda z, x: 0.5 * z + x - x.mean(0),
        ...     decode=lambda z, x: z,
        ... )
        >>> found = check_model(model, torch.eye(4))
        >>> found.passed, [check.name for check in found.failed]
        (False, ['same in any batch'])
        >>> print(found.failed[0].message)  # doctest: +ELLIPSIS
        step gives something else for example 0 alone than in the batch of 4: state differs by ...
    """
    rows = rows_in(inputs)
    if not rows:
        raise InputError(
            "inputs must be a tensor or a nest of tensors, batch first, with as many rows each, and one row at least"
        )
    if steps is not None and (not is_whole(steps) or not 1 <= steps <= 100_000):
        raise InputError(f"steps must be a whole number from 1 to 100,000, not {steps!r}")
    if rtol is not None and not 0 <= rtol < 1:
        raise InputError(f"rtol must be a number from 0 up to 1, not {rtol!r}")
    if not is_whole(seed) or seed < 0:
        raise InputError(f"seed must be a whole number of 0 or more, not {seed!r}")
    name = str(getattr(model, "name", type(model).__name__))
    missing = _missing(model)
    if missing is not None:
        rest = [Check(check, "not tested", "needs the functions") for check, _, _ in _CHECKS]
        return Conformance(name, rows, 0, (Check("functions", "failed", missing), *rest))
    trained = getattr(model, "trained_steps", None)
    longest = int(steps) if steps else min(64, max(8, int(trained) if is_whole(trained) else 8))
    iterated = _as_it_is(model)
    checks = [Check("functions", "passed", ", ".join(FUNCTIONS))]
    with _evaluating(model, device) as place, torch.no_grad():
        inputs, targets = (_moved(tree, place) for tree in (inputs, targets))
        case = Case(model, iterated, inputs, targets, model if judge is None else judge, rows, longest, int(seed), rtol)
        checks += [_made(check, function, ask, case) for check, function, ask in _CHECKS]
    return Conformance(name, rows, longest, tuple(checks))


def _made(name: str, function: str | None, ask: Callable[[Case], Any], case: Case) -> Check:
    try:
        found = ask(case)
    except Untested as reason:
        return Check(name, "not tested", str(reason))
    except Wrong as wrong:
        message, difference = str(wrong), wrong.difference
    except HomeostatError as error:
        message, difference = str(error), None
    except Exception as error:
        message, difference = f"fails: {said(error)}", None
    else:
        note, difference = found if isinstance(found, tuple) else (found, None)
        if difference is None:
            return Check(name, "passed", note)
        return Check(name, "passed", note, difference.size, difference.tolerance)
    if function is not None:
        case.unsure.add(function)
    if difference is None:
        return Check(name, "failed", message)
    return Check(name, "failed", message, difference.size, difference.tolerance)


def _missing(model: Any) -> str | None:
    """Which functions are not there, in words."""
    gone = [name for name in FUNCTIONS if not callable(getattr(model, name, None))]
    if gone:
        return f"{type(model).__name__} has no function {', '.join(gone)}; a model has {', '.join(FUNCTIONS)}"
    if getattr(model, "score", None) is not None and not callable(model.score):
        return f"score must be a function, not {model.score!r}; leave it out where there is none"
    return None


def _as_it_is(model: Any) -> IteratedModel:
    """The functions alone: attributes that make no sense have a check of their own."""
    if isinstance(model, IteratedModel):
        return model
    score = getattr(model, "score", None)
    iterated = from_functions(**{name: getattr(model, name) for name in FUNCTIONS}, score=score)
    iterated.name, iterated.stochastic = (
        str(getattr(model, "name", type(model).__name__)),
        bool(getattr(model, "stochastic", False)),
    )
    return iterated


@contextmanager
def _evaluating(model: Any, device: str | torch.device | None) -> Iterator[torch.device]:
    """The model in evaluation mode, and every part of it back in its own mode afterwards."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(part, part.training) for part in parts]
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield torch.device(device) if device is not None else torch.device("cpu") if first is None else first.device
    finally:
        for part, mode in modes:
            part.training = mode


def _moved(tree: Any, device: torch.device) -> Any:
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)
