"""What is said, and where, when rows did not converge that a gradient is taken of."""

import warnings

from torch import Tensor

from homeostat.engine.gradients import OnFailure
from homeostat.engine.solution import Status
from homeostat.errors import ConvergenceError, ConvergenceWarning

_CONSEQUENCE = {
    "warn": "their gradient is approximate, and diverged rows get none",
    "mask": "they get no gradient",
    "fallback": "they get the one-step gradient, and rows that diverged forward get none",
}


def report_failure(what: str, status: Tensor, on_failure: OnFailure, *, stacklevel: int = 2) -> None:
    """Warn or raise, with counts, when rows did not converge.

    Args:
        what: which solve, "forward" or "adjoint".
        status: `(batch,)` of `Status`.
        on_failure: see `Implicit`.
        stacklevel: frames up to the one that the warning is about, as in `warnings.warn`.

    Raises:
        ConvergenceError: with `on_failure="raise"`.

    Example:
        >>> import torch
        >>> report_failure("forward", torch.tensor([0, 0]), "warn")
        >>> report_failure("forward", torch.tensor([0, 3, 3]), "raise")
        Traceback (most recent call last):
        homeostat.errors.ConvergenceError: the forward solve left 2 of 3 rows unconverged (2 MAX_STEPS); ...
    """
    counts = {kind.name: int((status == kind).sum()) for kind in Status if kind is not Status.CONVERGED}
    failed = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if not failed:
        return
    message = f"the {what} solve left {sum(counts.values())} of {len(status)} rows unconverged ({failed})"
    if on_failure == "raise":
        raise ConvergenceError(f"{message}; their gradient would not be that of a fixed point")
    warnings.warn(f"{message}; {_CONSEQUENCE[on_failure]}", ConvergenceWarning, stacklevel=stacklevel + 1)
