"""Finding a step that changes what it was given, by value: where PyTorch counts changes, the count says so at no cost,
but not under `inference_mode`, nor where a tensor is changed through `.data` or `.numpy()`.
"""

from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import Tensor

# Of a tensor that is the same for all examples, which may be a large one, so many entries are compared.
_SAMPLE = 1 << 16


class Snapshot:
    """Values of tensors before a step, to be held against those after it.

    Args:
        whole: names and tensors that are compared entry by entry.
        shared: names and tensors of which 65,536 entries at equal distances are.

    Example:
        >>> z = torch.ones(2)
        >>> snapshot = Snapshot([("state", z)], [])
        >>> z.data.mul_(2)
        tensor([2., 2.])
        >>> snapshot.changed()
        'state'
    """

    def __init__(self, whole: Iterable[tuple[str, Tensor]], shared: Iterable[tuple[str, Tensor]]) -> None:
        watched = [(name, x.detach()) for name, x in whole if _is_dense(x)]
        watched += [(name, _sample(x.detach())) for name, x in shared if _is_dense(x)]
        self._kept = [(name, x, _values(x)) for name, x in watched]

    def changed(self) -> str | None:
        """The name of a tensor whose values are others now; None where there is none."""
        return next((name for name, x, old in self._kept if not _same(x, old)), None)


def _is_dense(x: Tensor) -> bool:
    return x.layout == torch.strided and not x.is_nested


def _sample(x: Tensor) -> Tensor:
    stride = x.numel() // _SAMPLE
    if stride < 2:
        return x
    return x.view(-1)[::stride] if x.is_contiguous() else x[::stride]


def _values(x: Tensor) -> bytes | Tensor:
    """A copy: bytes where there can be, which take a third of the time to make and to compare."""
    if x.is_cpu and type(x) is Tensor:
        with suppress(TypeError, RuntimeError):  # bfloat16, a tensor inside of a transform
            return x.numpy().tobytes()
    return x.clone()


def _same(x: Tensor, old: bytes | Tensor) -> bool:
    if isinstance(old, bytes):
        return x.numpy().tobytes() == old
    # A NaN that stays one is no change.
    return torch.equal(x, old) or bool(((x == old) | ((x != x) & (old != old))).all())
