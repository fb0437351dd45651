"""torchdeq's losses: the correction over several states, and measures of the Jacobian."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.stop import check_count
from homeostat.errors import InputError


def _exponential(n: int, k: int, gamma: float = 0.8) -> float:
    return gamma ** (n - k - 1)


def _linear(n: int, k: int, gamma: float = 0.9, bias: float = 0.0) -> float:
    return 1 - (n - k - 1) / n * gamma + bias


def _constant(n: int, k: int, c: float = 1.0) -> float:
    return c


_WEIGHTS: dict[str, Callable[..., float]] = {"exp": _exponential, "linear": _linear, "const": _constant}


def fp_correction(
    crit: Callable[..., Tensor],
    args: Sequence[Any],
    weight_func: str = "exp",
    return_loss_values: bool = False,
    **kwargs: float,
) -> Any:
    """A loss over several states on the way to a fixed point, the sum of `weight(n, k)` times the loss of state k of n.

    Args:
        crit: the loss of one state.
        args: its arguments; a list has one entry a state, anything else is the same for all, and shorter lists are
            gone through again.
        weight_func: `"exp"`: gamma^(n-k-1), gamma 0.8; `"linear"`: 1 - gamma (n-k-1) / n + bias, gamma 0.9, bias 0;
            `"const"`: c, 1; or one from `register_weight_func`.
        return_loss_values: return the single losses as numbers too.
        kwargs: for the weights.

    Source:
        Bai et al., "Deep equilibrium optical flow estimation", CVPR 2022, arXiv 2204.08442.

    Example:
        >>> states = [torch.tensor(2.0), torch.tensor(1.0)]
        >>> fp_correction(lambda z, target: (z - target).abs(), (states, torch.tensor(0.0)), gamma=0.5)
        tensor(2.)
    """
    if weight_func not in _WEIGHTS:
        raise InputError(f"there are no weights {weight_func!r}; there are {', '.join(_WEIGHTS)}")
    lists = [list(arg) if isinstance(arg, list | tuple) else [arg] for arg in args]
    n = max(map(len, lists))
    total: Any = 0.0
    values = []
    for k in range(n):
        loss = crit(*(each[k % len(each)] for each in lists))
        total = total + _WEIGHTS[weight_func](n, k, **kwargs) * loss
        if return_loss_values:
            values.append(loss.item())
    return (total, values) if return_loss_values else total


def register_weight_func(name: str, func: Callable[..., float]) -> None:
    """Give `fp_correction` weights `func(n, k)` of yours under a name.

    Example:
        >>> register_weight_func("last", lambda n, k: float(k == n - 1))
        >>> fp_correction(lambda z: z, ([torch.tensor(2.0), torch.tensor(1.0)],), "last")
        tensor(1.)
    """
    if not callable(func):
        raise InputError(f"func must be a function of n and k, not {func!r}")
    _WEIGHTS[name] = func


def jac_reg(f0: Tensor, z0: Tensor, vecs: int = 1, create_graph: bool = True) -> Tensor:
    """Estimate ||J||_F^2 / n of the whole batch, n being the number of its entries: a number to add to a loss.

    With normal random vectors, as torchdeq has it; `homeostat.nn.jacobian_penalty`, one number an example and with
    random signs, has less variance.

    Args:
        f0: what the map gave at `z0`.
        z0: a tensor that requires a gradient.
        vecs: number of random vectors.
        create_graph: let it be differentiated.

    Source:
        Bai, Koltun, Kolter, "Stabilizing equilibrium models by Jacobian regularization", arXiv 2106.14342.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> z = torch.zeros(10, 1000, requires_grad=True)
        >>> jac_reg(0.5 * z, z).detach().round(decimals=2)
        tensor(0.2500)
    """
    check_count("vecs", vecs)
    total: Any = 0.0
    for _ in range(vecs):
        vector = torch.randn_like(z0)
        product = torch.autograd.grad(f0, z0, vector, retain_graph=True, create_graph=create_graph)[0]
        total = total + product.square().sum()
    return total / (vecs * z0.numel())


def power_method(f0: Tensor, z0: Tensor, n_iters: int = 100) -> tuple[Tensor, Tensor]:
    """The direction and modulus of each example's largest eigenvalue, by power iteration and a Rayleigh quotient.

    That quotient goes round in circles where the largest eigenvalues are a complex pair:
    `homeostat.nn.spectral_radius` does not.

    Args:
        f0: what the map gave at `z0`.
        z0: a tensor that requires a gradient, batch first.
        n_iters: products.

    Returns:
        `(B, ...)` and `(B,)`.

    Example:
        >>> z = torch.zeros(2, 3, requires_grad=True)
        >>> power_method(torch.tensor([[0.5], [0.9]]) * z, z)[1]
        tensor([0.5000, 0.9000])
    """
    check_count("n_iters", n_iters)
    vector = torch.randn_like(z0)
    value = vector.new_zeros(len(vector))
    for _ in range(n_iters):
        product = torch.autograd.grad(f0, z0, vector, retain_graph=True)[0]
        flat, other = vector.flatten(1), product.flatten(1)
        value = (flat * other).sum(1) / flat.square().sum(1)
        vector = (other / other.norm(dim=1, keepdim=True)).view_as(z0)
    return vector, value.abs()
