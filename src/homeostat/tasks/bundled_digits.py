"""The digits that come with scikit-learn: 1,797 pictures of 8 x 8 pixels."""

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import InputError


def bundled_digits(task: str, *, instead: str = "") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures `(1797, 8, 8)` with ink from 0 to 16, and the digits on them, `(1797,)`.

    Args:
        task: which asks for them, for the error.
        instead: what else the user can do when they are not there.

    Raises:
        InputError: scikit-learn is not installed.

    Source:
        Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998), its test
        part, as `sklearn.datasets.load_digits` has it.

    Example:
        >>> pictures, digits = bundled_digits("blurry-digits")
        >>> pictures.shape, int(pictures.max()), digits[:5].tolist()
        ((1797, 8, 8), 16, [0, 1, 2, 3, 4])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            f"the digits of {task} come with scikit-learn, which is not installed: pip install 'homeostat[digits]'"
            + instead
        ) from None
    pixels, labels = load_digits(return_X_y=True)
    return pixels.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.int64)
