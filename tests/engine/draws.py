"""Random numbers of a seed."""

import torch
from torch import Tensor


def random(seed: int, *shape: int) -> Tensor:
    """Normally distributed, in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
