"""What is said, and where, when rows did not converge that a gradient is taken of."""

import torch
from torch import Tensor

from homeostat.engine.gradients import OnFailure
from homeostat.engine.solution import Status, describe_obstacles
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


def report_failure(
    what: str, status: Tensor, stop: Stop, on_failure: OnFailure, obstacle: Tensor | None = None
) -> None:
    """Warn or raise, with counts, when rows did not end as they were asked to.

    Args:
        what: which solve, "forward" or "adjoint".
        status: `(batch,)` of `Status`.
        stop: of that solve.
        on_failure: see `Implicit`.
        obstacle: `(batch,)` of `Obstacle`, where the solve was one of a linear system.

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
    if obstacle is not None:
        message = "; ".join([message, *describe_obstacles(obstacle)])
    if on_failure == "raise":
        raise ConvergenceError(f"{message}; their gradient would not be that of a fixed point")
    diverged = counts[Status.DIVERGED]
    consequences = [_CONSEQUENCE[on_failure]] if diverged < total else []
    if diverged and (on_failure != "mask" or not consequences):
        consequences.append(_DIVERGED[on_failure])
    warn_caller(f"{message}; {', and '.join(consequences)}", ConvergenceWarning)
