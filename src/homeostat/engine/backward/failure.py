"""What is said, and where, when rows did not converge that a gradient is taken of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from homeostat.engine.gradients import OnFailure
from homeostat.engine.methods import AdjointMethod
from homeostat.engine.norms import finite_rows
from homeostat.engine.solution import Adjoint, Status, describe_obstacles
from homeostat.engine.stop import Stop
from homeostat.errors import ConvergenceError, ConvergenceWarning, warn_caller

_CONSEQUENCE = {
    "warn": "their gradient is approximate",
    "mask": "they get no gradient",
    "fallback": "they get the one-step gradient",
}
_DIVERGED = {
    "warn": "rows that diverged get no gradient",
    "mask": "rows that diverged get no gradient",
    "fallback": "rows that diverged forward get no gradient",
}

_HELP = (
    "what diverges may settle with damping (method=hs.Picard(damping=0.5)), a smaller step size, or spectral "
    "normalisation (hs.nn.normalise)"
)


def failures(status: Tensor, stop: Stop) -> Tensor:
    """`(batch,)` bool: rows that did not end as they were asked to.

    Those without a tolerance were asked to take all of their steps, and not to converge.

    Example:
        >>> failures(torch.tensor([0, 3, 4]), Stop(rtol=0, max_steps=5))
        tensor([False, False,  True])
    """
    failed = status != Status.CONVERGED
    if stop.atol > 0:
        return failed
    tested = torch.as_tensor(stop.rtol, device=status.device) > 0
    return failed & (tested | (status != Status.MAX_STEPS))


def not_finite(cotangents: Sequence[Tensor]) -> Tensor:
    """`(rows,)` bool: rows whose incoming gradient overflowed. It is passed on as it is, as a plain loop would.

    A gradient of 0 in its place would be taken for one: a scaler of losses in half precision, which looks for what is
    not finite, would never back off.

    Example:
        >>> not_finite([torch.tensor([[1.0], [torch.inf]])])
        tensor([False,  True])
    """
    return ~torch.stack([finite_rows(g) for g in cotangents]).all(0)


def report_adjoint(
    adjoint: Adjoint,
    stop: Stop,
    on_failure: OnFailure,
    method: AdjointMethod | tuple[AdjointMethod, ...],
    passed_on: Tensor,
) -> None:
    """`report_failure` of an adjoint solve, with the methods that were tried and what is known about the system."""
    methods = method if isinstance(method, tuple) else (method,)
    details = describe_obstacles(adjoint.obstacle) + list(adjoint.notes)
    if len(methods) > 1 and stop.tests:
        details.insert(0, f"tried {', then '.join(type(one).__name__ for one in methods)}")
    report_failure("adjoint", adjoint.status, stop, on_failure, details, passed_on)


def report_failure(
    what: str,
    status: Tensor,
    stop: Stop,
    on_failure: OnFailure,
    details: Sequence[str] = (),
    passed_on: Tensor | None = None,
) -> None:
    """Warn or raise, with counts, when rows did not end as they were asked to.

    Args:
        what: which solve, "forward" or "adjoint".
        status: `(batch,)` of `Status`.
        stop: of that solve.
        on_failure: see `Implicit`.
        details: what else is known.
        passed_on: `(batch,)` bool, diverged rows whose gradient is passed on as it came in.

    Raises:
        ConvergenceError: with `on_failure="raise"`.

    Example:
        >>> report_failure("forward", torch.tensor([0, 0]), Stop(), "warn")
        >>> report_failure("forward", torch.tensor([0, 3, 3]), Stop(), "raise")
        Traceback (most recent call last):
        homeostat.errors.ConvergenceError: the forward solve left 2 of 3 rows unconverged (2 MAX_STEPS); ...
    """
    failed = failures(status, stop)
    if not bool(failed.any()):
        return
    counts = {kind: int((failed & (status == kind)).sum()) for kind in Status}
    kinds = ", ".join(f"{count} {kind.name}" for kind, count in counts.items() if count)
    total = sum(counts.values())
    message = f"the {what} solve left {total} of {len(status)} rows unconverged ({kinds})"
    message = "; ".join([message, *details])
    if what == "forward" and counts[Status.DIVERGED]:
        message = f"{message}; {_HELP}"
    if on_failure == "raise":
        raise ConvergenceError(f"{message}; their gradient would not be that of a fixed point")
    passed = 0 if passed_on is None else int((failed & passed_on).sum())
    diverged = counts[Status.DIVERGED] - passed
    consequences = [_CONSEQUENCE[on_failure]] if total > diverged + passed else []
    if diverged and (on_failure != "mask" or not consequences):
        consequences.append(_DIVERGED[on_failure])
    if passed:
        consequences.append(f"{passed} with an incoming gradient that is not finite pass it on")
    warn_caller(f"{message}; {', and '.join(consequences)}", ConvergenceWarning)
