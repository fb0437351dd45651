"""What is said, and where, when rows did not converge that a gradient is taken of."""

from torch import Tensor

from homeostat.engine.gradients import OnFailure
from homeostat.engine.solution import Status
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


def report_failure(what: str, status: Tensor, on_failure: OnFailure) -> None:
    """Warn or raise, with counts, when rows did not converge.

    Args:
        what: which solve, "forward" or "adjoint".
        status: `(batch,)` of `Status`.
        on_failure: see `Implicit`.

    Raises:
        ConvergenceError: with `on_failure="raise"`.

    Example:
        >>> import torch
        >>> report_failure("forward", torch.tensor([0, 0]), "warn")
        >>> report_failure("forward", torch.tensor([0, 3, 3]), "raise")
        Traceback (most recent call last):
        homeostat.errors.ConvergenceError: the forward solve left 2 of 3 rows unconverged (2 MAX_STEPS); ...
    """
    counts = {kind: int((status == kind).sum()) for kind in Status if kind is not Status.CONVERGED}
    failed = ", ".join(f"{count} {kind.name}" for kind, count in counts.items() if count)
    if not failed:
        return
    total = sum(counts.values())
    message = f"the {what} solve left {total} of {len(status)} rows unconverged ({failed})"
    if on_failure == "raise":
        raise ConvergenceError(f"{message}; their gradient would not be that of a fixed point")
    diverged = counts[Status.DIVERGED]
    consequences = [_CONSEQUENCE[on_failure]] if diverged < total else []
    if diverged and (on_failure != "mask" or not consequences):
        consequences.append(_DIVERGED[on_failure])
    warn_caller(f"{message}; {', and '.join(consequences)}", ConvergenceWarning)
