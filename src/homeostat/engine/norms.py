"""Sizes of states and residuals, row by row and free of scale and dimension."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Sums of squares of float32 values between these magnitudes neither overflow nor vanish.
_SMALL, _LARGE = 1e-15, 1e18

# Beyond this root mean square an example counts as diverged: still finite, but no longer a computation.
_BOUNDS = {torch.float64: 1e100, torch.float16: 1e4}
_DEFAULT_BOUND = 1e28

_PRECISE = (torch.float32, torch.float64)


def _flat(leaf: Tensor) -> Tensor:
    """`(batch, ...) -> (batch, n)`, also where a dimension is 0."""
    return leaf.flatten(1) if leaf.ndim > 1 else leaf[:, None]


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """What norms and histories of such values are kept in: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def finite_rows(leaf: Tensor) -> Tensor:
    """`(batch,)` bool: no entry is infinite or NaN."""
    return torch.isfinite(_flat(leaf)).all(1)


def row_lengths(leaf: Tensor) -> Tensor:
    """Euclidean norm of each row, `(batch, ...) -> (batch,)`, in float32 at least and in one pass.

    Right for values from `smallest_trusted` to `largest_trusted`: elsewhere a sum of squares vanishes or overflows.
    """
    flat = leaf if leaf.ndim == 2 else _flat(leaf)
    return torch.linalg.vector_norm(flat, dim=1, dtype=None if leaf.dtype in _PRECISE else torch.float32)


def smallest_trusted(dtype: torch.dtype) -> float:
    """The smallest root mean square for which `row_lengths` is right to rounding."""
    return 1e-140 if dtype == torch.float64 else _SMALL


def largest_trusted(dtype: torch.dtype) -> float:
    """The largest root mean square for which `row_lengths` is right, for rows of less than 1e20 entries."""
    return 1e140 if dtype == torch.float64 else 1e9


def row_rms(leaf: Tensor) -> Tensor:
    """Root mean square of each row, `(batch, ...) -> (batch,)`, in float32 at least.

    Right for every finite value: where a sum of squares would overflow or vanish, rows are scaled first. A row that
    is not finite gives a value that is not finite. A row without elements gives 0.

    Example:
        >>> row_rms(torch.tensor([[3.0, 4.0], [1e-30, 1e-30], [1e30, 1e30]]))
        tensor([3.5355e+00, 1.0000e-30, 1.0000e+30])
    """
    flat = _flat(leaf)
    if flat.shape[1] == 0:
        return flat.new_zeros(flat.shape[0], dtype=norm_dtype(leaf.dtype))
    dtype = norm_dtype(leaf.dtype)
    root = flat.shape[1] ** 0.5
    if flat.is_cuda and dtype == torch.float32:  # a look at the sums would wait for the device; in float64 none is due
        norm = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
        return (norm / root).to(dtype)
    norm = torch.linalg.vector_norm(flat, dim=1, dtype=dtype)
    plain = (norm > _SMALL) & (norm < _LARGE)
    if bool(plain.all()):
        return norm / root
    largest = flat.abs().amax(dim=1).to(dtype)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, torch.ones_like(largest))
    scaled = torch.linalg.vector_norm(flat.to(dtype) / scale[:, None], dim=1)
    # Row by row, so that no bit of a row's norm depends on who shares its batch.
    return torch.where(plain, norm / root, scaled / root * scale)


def residuals(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """For measured leaves `z` and `f(z)`: RMS of each change, RMS of each `f(z)`, and the relative residual.

    The relative residual of an example is RMS(f(z) - z) / RMS(f(z)), the largest over its leaves; 0/0 is 0.

    Returns:
        changes: one `(batch,)` per leaf. sizes: one `(batch,)` per leaf. relative: `(batch,)`.
    """
    changes = [row_rms(new - old) for old, new in zip(before, after, strict=True)]
    sizes = [row_rms(new) for new in after]
    relative = None
    for change, size in zip(changes, sizes, strict=True):
        ratio = torch.where(change == 0, torch.zeros_like(change), change / size)
        relative = ratio if relative is None else torch.maximum(relative, ratio.to(relative.dtype))
    assert relative is not None, "a state has at least one measured leaf"
    return changes, sizes, relative


def bound(dtype: torch.dtype) -> float:
    """The root mean square beyond which an example counts as diverged."""
    return _BOUNDS.get(dtype, _DEFAULT_BOUND)


def out_of_bounds(leaves: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
    """`(batch,)` bool: a leaf is not finite, or beyond 1e28 (float64: 1e100, float16: 1e4) in root mean square."""
    bad = None
    for leaf, size in zip(leaves, sizes, strict=True):
        outside = ~(size <= bound(leaf.dtype))  # a NaN is outside too
        bad = outside if bad is None else bad | outside
    assert bad is not None, "a state has at least one measured leaf"
    return bad


def noise_floor(leaves: Sequence[Tensor], units: float) -> float:
    """Relative residual of `units` units in the last place of the coarsest dtype, 5 % at most.

    Under autocast that dtype counts too: a float32 state then moves in the steps of what it is computed in.
    """
    dtypes = {leaf.dtype for leaf in leaves}
    device = leaves[0].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return min(0.05, units * max(torch.finfo(dtype).eps for dtype in dtypes))
