"""Dropout for iterated maps: one mask an example, the same at every step.

A mask that is drawn anew at every step makes a map that has no fixed point, and one that is kept on a module does not
leave the batch together with its row. So the mask is part of the context.
"""

import torch
from torch import Tensor, nn

from homeostat.engine.stop import check_count, check_range
from homeostat.errors import ContractError

# splitmix64 (Steele, Lea, Flood 2014), in int64, which wraps: multipliers from 2^63 on are written as negative numbers.
_STRIDE = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_LARGEST = 2**63 - 1


class VariationalDropout(nn.Module):
    """Dropout whose mask is drawn before the iteration and travels in the context.

    Args:
        p: share of the entries that are dropped, from 0 to below 1; the others are scaled by 1 / (1 - p).
        stream: tells the dropouts of one model apart, where they are given the same seeds.

    Source:
        Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks",
        arXiv 1512.05287.

    Example:
        >>> import homeostat as hs
        >>> dropout = VariationalDropout(0.5)
        >>> x = torch.ones(4, 8)
        >>> context = {"x": x, "mask": dropout.mask(x, seeds=torch.arange(4))}
        >>> solution = hs.solve(lambda z, c: dropout(0.2 * z + c["x"], c["mask"]), torch.zeros(4, 8), context)
        >>> bool(solution.converged.all())
        True
        >>> dropout.eval().mask(x) is None
        True
    """

    def __init__(self, p: float, *, stream: int = 0) -> None:
        super().__init__()
        self.p = check_range("p", p, 0, "a number from 0 to below 1", high=1 - 1e-6)
        self.stream = check_count("stream", stream, 0)

    def mask(
        self, like: Tensor, *, seeds: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """A mask for one solve, to be put into the context. Whether it drops is decided here, by the mode of now.

        Args:
            like: `(batch, ...)`, whose shape, dtype and device the mask takes. A dimension of size 1 is shared by what
                it is spread over later: `mask(z[:, :, :1, :1])` drops whole channels.
            seeds: `(batch,)` int64. An example's mask is a function of its own seed alone, on every device; two
                examples, or two training steps, that are to have different masks need different seeds.
            generator: draws the seeds where none are given; None: torch's generator of the CPU.

        Returns:
            A tensor like `like`, of 0 and 1 / (1 - p); None in evaluation, or where `p` is 0.

        Raises:
            ContractError: seeds that are not one whole number an example, or `like` without a batch.
        """
        if like.ndim == 0 or not like.is_floating_point():
            raise ContractError(f"like must be a floating tensor, batch first, not {like.dtype} {tuple(like.shape)}")
        rows = len(like)
        if seeds is not None and (seeds.shape != (rows,) or seeds.dtype != torch.int64):
            raise ContractError(
                f"seeds must be torch.int64 ({rows},), one an example, not {seeds.dtype} {tuple(seeds.shape)}"
            )
        if seeds is not None and generator is not None:
            raise ContractError("give seeds or a generator, not both")
        if not self.training or self.p == 0:
            return None
        if seeds is None:
            device = torch.device("cpu") if generator is None else generator.device
            seeds = torch.randint(_LARGEST, (rows,), generator=generator, device=device)
        numbers = _mixed(_mixed(seeds.to(like.device)) + self.stream)
        positions = torch.arange(like[0].numel() if rows else 0, device=like.device)
        numbers = _mixed(numbers[:, None] + positions * _STRIDE) & _LARGEST
        keep = (numbers >= int(self.p * 2**63)).view(like.shape)
        return keep.to(like.dtype) / (1 - self.p)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` with the mask applied; `x` itself where there is none."""
        return x if mask is None else x * mask

    def extra_repr(self) -> str:
        return f"p={self.p}, stream={self.stream}"


def _mixed(x: Tensor) -> Tensor:
    """Each 64-bit number replaced by one that looks unrelated to it and its neighbours."""
    x = x + _STRIDE
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own drags the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
