"""What counts as a number in an option: Python's own and NumPy's scalars alike, kept as plain Python numbers."""

from numbers import Integral, Real
from typing import Any, TypeGuard

_PLAIN = (int, float, bool, str, type(None))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether this is a real number: Python's, or a NumPy scalar. A bool is none, and neither is an array or a tensor.

    Example:
        >>> import numpy as np
        >>> is_number(np.float32(0.5)), is_number(2), is_number(True), is_number(np.array(0.5))
        (True, True, False, False)
    """
    kind = type(value)  # options are made in every solve, and asking an abstract class takes time
    return kind is float or kind is int or (isinstance(value, Real) and kind is not bool)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether this is a whole number by its type: Python's, or a NumPy scalar. A bool is none.

    Example:
        >>> import numpy as np
        >>> is_whole(np.int64(3)), is_whole(3.0), is_whole(True)
        (True, False, False)
    """
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def plain_number(value: Any) -> Any:
    """A number as Python's own `int` or `float`, so that it prints, compares and is stored as one; others as they are.

    Example:
        >>> import numpy as np
        >>> plain_number(np.int64(3)), plain_number(np.float32(0.5)), plain_number("3"), plain_number(True)
        (3, 0.5, '3', True)
    """
    if type(value) in _PLAIN or not is_number(value):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def plain_numbers(option: Any) -> None:
    """Make every number among the fields of a dataclass, frozen or not, a plain one: for `__post_init__`."""
    for name, value in vars(option).copy().items():
        if type(value) not in _PLAIN and is_number(value):
            object.__setattr__(option, name, plain_number(value))
