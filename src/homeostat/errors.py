"""What Homeostat says when something is wrong: one line that names what, where, and what would be right.

The command line prints these as they are, without a traceback, and exits with a non-zero code.
"""

import sys
import warnings


class HomeostatError(Exception):
    """Base of every error that Homeostat raises on purpose."""


class ContractError(HomeostatError):
    """A model breaks the contract: a `step` that changes a shape, a missing function, rows that do not match."""


class InputError(HomeostatError):
    """What the user handed in cannot be read: a maze without a start, a character that is not a bit, an empty file."""


class CheckpointError(HomeostatError):
    """A checkpoint is missing, truncated, of another version, or does not fit its configuration."""


class PolicyError(HomeostatError):
    """A stopping policy cannot be read, was made for another model, or cannot be promised from what there is."""


class OutputError(HomeostatError):
    """A result cannot be written; nothing half-written is left behind."""


class ConvergenceError(HomeostatError):
    """Rows did not converge and the caller asked to be stopped by that (`on_failure="raise"`)."""


class ConvergenceWarning(UserWarning):
    """Rows did not converge, so that what is computed from them is not what it claims to be."""


class CompileWarning(UserWarning):
    """A step was to be compiled and runs eagerly, or is compiled again and again: slower than asked for, not wrong."""


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's that led here: the first one outside of this package and of PyTorch."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("homeostat", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
