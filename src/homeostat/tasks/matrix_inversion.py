"""Matrix inversion: the inverse of a symmetric positive definite matrix.

A numerical task with a smooth error instead of symbols: iterative solvers reach any precision, and the worse the
condition number, the more iterations they need. The ridge that keeps the smallest eigenvalue away from zero is the
difficulty dial.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.checks import plain_numbers
from homeostat.errors import InputError
from homeostat.tasks.base import Batch, Split, Task
from homeostat.tasks.random_words import Words, random_words
from homeostat.tasks.split import TEST_ONE_IN, collect, in_split, instance_hash

_MOST_SIZE = 1_000
_MOST_SIDE = 64
_FRACTION_BITS = 22
"""Entries of A are multiples of 2**-22. Sums of 64 products of two such numbers fit into the 53 bits of a float64, so
R is exact, and with it the split of an instance, on every machine and in every order of summation."""


@dataclass(frozen=True)
class MatrixInversion(Task):
    """Inverses of `2 R + r I`, with `R = A A^T` and the entries of A uniform from -1 to 1.

    The dial `size` is the inverse ridge, r = 1 / size: the smallest eigenvalue is at least r. With 10 x 10 matrices
    size 2 (r = 0.5) and size 10 (r = 0.1) are the easy and the hard set of Du et al., "Learning Iterative Reasoning
    through Energy Minimization" (2022), by their public code. Condition numbers there, over 10,000 instances of each
    size:

    | size | 5 % | median | 95 % |
    |---|---|---|---|
    | 1 | 16 | 20 | 26 |
    | 2 | 27 | 38 | 50 |
    | 5 | 47 | 87 | 119 |
    | 10 | 62 | 158 | 231 |
    | 20 | 74 | 267 | 447 |
    | 100 | 92 | 620 | 2,041 |

    Inputs and targets `(batch, side, side)` float32. The target is the inverse of the float32 input, computed in
    float64. Outputs have the shape of the targets.

    The split is a hash of R: an R of the test split is trained on with no ridge at all.

    Args:
        side: rows and columns of a matrix.
        tolerance: an answer is correct when its relative error, Frobenius norm of the error over that of the target,
            is at most this; an entry is right when its error is at most this share of the RMS of the target's entries.

    Raises:
        InputError: a side outside 1 to 64, or a tolerance that is not a number above 0.

    Example:
        >>> task = MatrixInversion(side=4)
        >>> inputs, targets = task.sample(2, 3, split="train", seed=0)
        >>> tuple(inputs.shape)
        (3, 4, 4)
        >>> bool(((inputs @ targets) - torch.eye(4)).abs().max() < 1e-4)
        True
        >>> task.correct(torch.stack([targets[0], 1.005 * targets[1], 1.1 * targets[2]]), targets)
        tensor([ True,  True, False])
    """

    side: int = 10
    tolerance: float = 0.01

    name: ClassVar[str] = "matrix-inversion"
    summary: ClassVar[str] = "the inverse of a positive definite matrix"
    size_name: ClassVar[str] = "(inverse ridge)"
    sizes: ClassVar[tuple[int, ...]] = (2, 5, 10, 20)

    def __post_init__(self) -> None:
        plain_numbers(self)
        if isinstance(self.side, bool) or not isinstance(self.side, int) or not 1 <= self.side <= _MOST_SIDE:
            raise InputError(f"side {self.side!r} is impossible: a whole number from 1 to {_MOST_SIDE}")
        number = isinstance(self.tolerance, int | float) and not isinstance(self.tolerance, bool)
        if not number or not 0 < self.tolerance < math.inf:
            raise InputError(f"tolerance {self.tolerance!r} is impossible: a relative error above 0, such as 0.01")

    def sample(self, size: int, count: int, *, split: Split, seed: int) -> Batch:
        """`count` matrices with the ridge 1 / `size`, and their inverses.

        Raises:
            InputError: a size below 1 or above 1,000.
        """
        if not 1 <= size <= _MOST_SIZE:
            raise InputError(f"size {size} is impossible for {self.name}: 1 to {_MOST_SIZE:,}, the inverse ridge")

        def draw(keys: Words) -> tuple[np.ndarray, ...]:
            gram = self._gram(keys)
            return (gram[in_split(_hash(gram), split)],)

        rate = 1 / TEST_ONE_IN if split == "test" else 1 - 1 / TEST_ONE_IN
        most = max(1, 2**20 // self.side**2)
        (gram,) = collect(draw, count, size=size, split=split, seed=seed, rate=rate, most=most, what="matrix")
        inputs = (2 * gram + np.eye(self.side) / size).astype(np.float32)
        targets = np.linalg.inv(inputs.astype(np.float64)).astype(np.float32)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def _gram(self, keys: Words) -> NDArray[np.float64]:
        """R of every candidate, exact."""
        words = random_words(keys, self.side**2) >> np.uint64(63 - _FRACTION_BITS)
        entries = words.astype(np.float64) * 2.0**-_FRACTION_BITS - 1
        factor = entries.reshape(-1, self.side, self.side)
        return factor @ factor.swapaxes(1, 2)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` bool: the relative error in the Frobenius norm is at most `tolerance`."""
        return self.error(outputs, targets) <= self.tolerance

    def symbols(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` float32: share of the entries with an error of at most `tolerance` times the RMS of the target."""
        allowed = self.tolerance * targets.square().mean((1, 2), keepdim=True).sqrt()
        return ((outputs - targets).abs() <= allowed).float().mean((1, 2))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` squared error, mean over the entries, in squared units of the inverse."""
        return (outputs - targets).square().mean((1, 2))

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` relative error: Frobenius norm of `outputs - targets` over that of `targets`."""
        return torch.linalg.matrix_norm(outputs - targets) / torch.linalg.matrix_norm(targets)


def _hash(gram: NDArray[np.float64]) -> Words:
    """Hash R for the split, from its upper triangle."""
    rows, columns = np.triu_indices(gram.shape[1])
    data = np.ascontiguousarray(gram[:, rows, columns], dtype="<f8").view(np.uint8)
    return instance_hash(np.unpackbits(data, axis=1, bitorder="little").view(np.bool_))
