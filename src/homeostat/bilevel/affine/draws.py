"""Random affine problems, over- and underparametrised."""

import torch
from torch import Tensor

from homeostat.bilevel.affine.problem import AffineProblem
from homeostat.engine.stop import check_count, check_range


def draw_affine(
    rows: int,
    n: int,
    d: int,
    *,
    m: int | None = None,
    rank: int | None = None,
    step: tuple[float, float] = (0.1, 1.9),
    spectrum: float | None = None,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[AffineProblem, Tensor]:
    """Problems and outer targets `(rows, n)` with independent normal entries.

    They are overparametrised, with probability 1, where `d` is at least the rank of `K`.

    Args:
        n: size of the iterate.
        d: number of parameters.
        m: size of what is made small, `n` by default.
        rank: of `K`, at most `min(m, n)`, which is the default.
        step: ends of the uniform distribution of `eta |K|^2`, within 0 to 2.
        spectrum: when given, the nonzero singular values of `K` are 1, `spectrum`, `spectrum`^2, ..., with random
            directions, and no two modes are equally slow.
        seed: the same draws on every device.

    Example:
        >>> draw_affine(10, n=4, d=2, rank=3, seed=0)[0].overparametrised.any()
        tensor(False)
    """
    m = n if m is None else m
    for name, count in (("rows", rows), ("n", n), ("d", d), ("m", m)):
        check_count(name, count)
    rank = min(m, n) if rank is None else rank
    check_count("rank", rank)
    if rank > min(m, n):
        raise ValueError(f"rank must be at most {min(m, n)}, not {rank}")
    if not 0 < step[0] <= step[1] < 2:
        raise ValueError(f"step must be two numbers above 0 and below 2, the smaller one first, not {step!r}")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator, dtype=torch.float64)

    left, right = normal(m, rank), normal(rank, n)
    if spectrum is not None:
        check_range("spectrum", spectrum, 1e-3, "from 0.001 to 0.999", 0.999)
        left, right = torch.linalg.qr(left).Q, torch.linalg.qr(right.mT).Q.mT
        K = (left * spectrum ** torch.arange(rank, dtype=torch.float64)) @ right
    else:
        K = left if rank == n else right if rank == m else left @ right
    share = step[0] + (step[1] - step[0]) * torch.rand(rows, generator=generator, dtype=torch.float64)
    eta = share / torch.linalg.matrix_norm(K, 2).square()
    U, c, z0, target = normal(m, d), normal(m), normal(n), normal(n)
    return AffineProblem(*(value.to(device) for value in (K, U, c, eta, z0))), target.to(device)
