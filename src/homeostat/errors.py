"""What Homeostat says when something is wrong: one line that names what, where, and what would be right.

The command line prints these as they are, without a traceback, and exits with a non-zero code.
"""


class HomeostatError(Exception):
    """Base of every error that Homeostat raises on purpose."""


class ContractError(HomeostatError):
    """A model breaks the contract: a `step` that changes a shape, a missing function, rows that do not match."""


class InputError(HomeostatError):
    """What the user handed in cannot be read: a maze without a start, a character that is not a bit, an empty file."""


class CheckpointError(HomeostatError):
    """A checkpoint is missing, truncated, of another version, or does not fit its configuration."""


class OutputError(HomeostatError):
    """A result cannot be written; nothing half-written is left behind."""


class ConvergenceError(HomeostatError):
    """Rows did not converge and the caller asked to be stopped by that (`on_failure="raise"`)."""


class ConvergenceWarning(UserWarning):
    """Rows did not converge, so that what is computed from them is not what it claims to be."""


class CompileWarning(UserWarning):
    """A step was to be compiled and runs eagerly, or is compiled again and again: slower than asked for, not wrong."""
