"""torchdeq's weight normalisation of layers: computed when it is reset, and not at every access.

In an iteration that is what one wants: the weight is the same at every step, and costs one evaluation a solve. The
price is that somebody has to reset it before each solve (`reset_norm`, `reset_deq`). The parameters have torchdeq's
names (`weight_g` and `weight_v`; `weight_orig`, `weight_g`, `weight_u` and `weight_v`), so that its checkpoints load.
`homeostat.nn.normalise` with `hs.nn.Equilibrium` needs no reset.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat.checks import plain_numbers
from homeostat.engine.stop import check_count, check_range
from homeostat.errors import ContractError, InputError

KINDS = ("weight_norm", "spectral_norm")

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FIRST = {**dict.fromkeys(_PLAIN, (("weight",), (0,))), **dict.fromkeys(_TRANSPOSED, (("weight",), (1,)))}
_TARGETS: dict[str, dict[type[nn.Module], tuple[tuple[str, ...], tuple[int, ...]]]] = {
    kind: dict(_FIRST) for kind in KINDS
}

_NAMES = {
    "norm_target_norm": "target_norm",
    "norm_clip": "clip",
    "norm_clip_value": "clip_value",
    "sn_n_power_iters": "n_power_iterations",
}
"""Names in `args`, and in keywords."""


@dataclass(frozen=True)
class _Norm:
    """How a module's weights are normalised: `w = v min(clip_value, g / size of v)`, the minimum only with `clip`."""

    kind: str
    names: tuple[str, ...]
    dims: tuple[int, ...]
    learn_scale: bool = True
    target_norm: float = 1.0
    clip: bool = False
    clip_value: float = 1.0
    n_power_iterations: int = 1
    eps: float = 1e-12

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name in ("target_norm", "clip_value"):
            check_range(name, getattr(self, name), 1e-12, "a number above 0")
        check_count("n_power_iterations", self.n_power_iterations)

    def attach(self, module: nn.Module) -> None:
        """Put the parameters in place of the weights, and compute these."""
        for name, dim in zip(self.names, self.dims, strict=True):
            weight = module._parameters.pop(name)
            if weight is None:
                raise ContractError(f"{type(module).__name__} has no parameter {name!r} to normalise")
            spread = [weight.shape[d] if d == dim else 1 for d in range(weight.ndim)]
            if self.kind == "weight_norm":
                module.register_parameter(f"{name}_v", nn.Parameter(weight.data))
                scale = _sizes(weight.data, dim)
            else:
                module.register_parameter(f"{name}_orig", weight)
                scale = weight.data.new_full(spread, self.target_norm)
                rows, columns = _matrix(weight.data, dim).shape
                for suffix, length in (("u", rows), ("v", columns)):
                    vector = F.normalize(torch.randn_like(weight.data.new_empty(length)), dim=0, eps=self.eps)
                    module.register_buffer(f"{name}_{suffix}", vector)
            if self.learn_scale:
                module.register_parameter(f"{name}_g", nn.Parameter(scale))
        self(module)

    def __call__(self, module: nn.Module) -> None:
        """The weights from their parameters, with a graph where gradients are enabled."""
        for name, dim in zip(self.names, self.dims, strict=True):
            setattr(module, name, self._weight(module, name, dim))

    def remove(self, module: nn.Module) -> None:
        """Plain weights again, with the values of now."""
        for name, dim in zip(self.names, self.dims, strict=True):
            with torch.no_grad():
                weight = self._weight(module, name, dim, power=False)
            delattr(module, name)
            for suffix in ("g", "v", "orig", "u"):
                if hasattr(module, f"{name}_{suffix}"):
                    delattr(module, f"{name}_{suffix}")
            module.register_parameter(name, nn.Parameter(weight.detach()))

    def _weight(self, module: nn.Module, name: str, dim: int, power: bool = True) -> Tensor:
        if self.kind == "weight_norm":
            raw = getattr(module, f"{name}_v")
            size = _sizes(raw, dim)
        else:
            raw = getattr(module, f"{name}_orig")
            size = self._spectral(module, name, _matrix(raw, dim), power and module.training)
        factor = (getattr(module, f"{name}_g") if self.learn_scale else self.target_norm) / size
        return raw * (factor.clamp(max=self.clip_value) if self.clip else factor)

    def _spectral(self, module: nn.Module, name: str, matrix: Tensor, power: bool) -> Tensor:
        """The largest singular value, as the power iteration knows it; in training it goes on."""
        u, v = getattr(module, f"{name}_u"), getattr(module, f"{name}_v")
        if power:
            with torch.no_grad():
                for _ in range(self.n_power_iterations):
                    v = F.normalize(matrix.T @ u, dim=0, eps=self.eps)
                    u = F.normalize(matrix @ v, dim=0, eps=self.eps)
            setattr(module, f"{name}_u", u)
            setattr(module, f"{name}_v", v)
        return u @ matrix @ v


def _sizes(weight: Tensor, dim: int) -> Tensor:
    """Euclidean norms over all dimensions but one, which are kept with size 1."""
    return torch.linalg.vector_norm(weight, dim=[d for d in range(weight.ndim) if d != dim], keepdim=True)


def _matrix(weight: Tensor, dim: int) -> Tensor:
    return weight.movedim(dim, 0).flatten(1)


def apply_norm(
    model: nn.Module,
    norm_type: str = "weight_norm",
    prefix_filter_out: str | Sequence[str] | None = None,
    filter_out: str | Sequence[str] | None = None,
    args: Any = None,
    **norm_kwargs: Any,
) -> None:
    """Normalise the weights of all linear and convolutional layers, in place.

    Args:
        model: where the layers are looked for, at any depth.
        norm_type: `"weight_norm"`, `"spectral_norm"` or `"none"`.
        prefix_filter_out: leave out modules whose name begins so.
        filter_out: leave out modules whose name has this in it.
        args: a Namespace or dict with `norm_type`, `norm_no_scale`, `norm_target_norm`, `norm_clip`,
            `norm_clip_value` and `sn_n_power_iters`, which go before the keywords; other names are left alone.
        norm_kwargs: `learn_scale`, `target_norm`, `clip`, `clip_value`, `n_power_iterations`, `eps`.

    Raises:
        InputError: an unknown kind or keyword.
        ContractError: a layer that is normalised already.

    Example:
        >>> layer = nn.Linear(3, 3)
        >>> apply_norm(layer, learn_scale=False, target_norm=0.5)
        >>> layer.weight.norm(dim=1).detach().round(decimals=3)
        tensor([0.5000, 0.5000, 0.5000])
    """
    given = {} if args is None else dict(args) if isinstance(args, dict) else dict(vars(args))
    norm_type = given.get("norm_type", norm_type)
    if norm_type == "none":
        return
    if norm_type not in KINDS:
        raise InputError(f"norm_type must be 'weight_norm', 'spectral_norm' or 'none', not {norm_type!r}")
    known = {"learn_scale", "target_norm", "clip", "clip_value", "n_power_iterations", "eps"}
    for name in norm_kwargs:
        if name not in known:
            raise InputError(f"apply_norm has no option {name!r}; there are {', '.join(sorted(known))}")
    settings = {**norm_kwargs, **{ours: given[theirs] for theirs, ours in _NAMES.items() if theirs in given}}
    if "norm_no_scale" in given:
        settings["learn_scale"] = not given["norm_no_scale"]
    norm = _Norm(norm_type, (), (), **settings)
    prefixes, parts = _strings(prefix_filter_out), _strings(filter_out)
    for name, module in model.named_modules():
        target = _TARGETS[norm_type].get(type(module))
        if target is None or name.startswith(prefixes) or any(part in name for part in parts):
            continue
        if hasattr(module, "_deq_norm"):
            raise ContractError(f"the layer {name!r} is normalised already")
        own = replace(norm, names=target[0], dims=target[1])
        own.attach(module)
        object.__setattr__(module, "_deq_norm", own)


def _strings(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if not value else (value,) if isinstance(value, str) else tuple(value)


def reset_norm(model: nn.Module) -> None:
    """Compute the normalised weights anew: once before each solve, and after every step of an optimiser.

    Example:
        >>> layer = nn.Linear(3, 3)
        >>> apply_norm(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight_g.mul_(2)
        >>> before = layer.weight.norm()
        >>> reset_norm(layer)
        >>> (layer.weight.norm() / before).detach().round(decimals=3)
        tensor(2.)
    """
    for module in model.modules():
        if hasattr(module, "_deq_norm"):
            module._deq_norm(module)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


def remove_norm(model: nn.Module) -> None:
    """Plain weights again, with the values of now.

    Example:
        >>> layer = nn.Linear(3, 3)
        >>> apply_norm(layer)
        >>> remove_norm(layer)
        >>> sorted(name for name, _ in layer.named_parameters())
        ['bias', 'weight']
    """
    for module in model.modules():
        if hasattr(module, "_deq_norm"):
            module._deq_norm.remove(module)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            del module._deq_norm


def register_norm_module(
    module_class: type[nn.Module],
    norm_type: str,
    names: str | Sequence[str] = "weight",
    dims: int | Sequence[int] = 0,
) -> None:
    """Let `apply_norm` normalise parameters of a class of yours.

    Args:
        module_class: the class itself; classes made from it are not meant.
        norm_type: `"weight_norm"` or `"spectral_norm"`.
        names: parameters.
        dims: of each, the dimension of its outputs.

    Raises:
        InputError: an unknown kind, or not one dimension for each name.

    Example:
        >>> class Cell(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.W = nn.Parameter(torch.randn(3, 3))
        >>> register_norm_module(Cell, "weight_norm", "W", 0)
        >>> cell = Cell()
        >>> apply_norm(cell)
        >>> sorted(name for name, _ in cell.named_parameters())
        ['W_g', 'W_v']
    """
    if norm_type not in KINDS:
        raise InputError(f"norm_type must be 'weight_norm' or 'spectral_norm', not {norm_type!r}")
    target = _strings(names), (dims,) if isinstance(dims, int) else tuple(dims)
    if len(target[0]) != len(target[1]):
        raise InputError(f"there are {len(target[0])} names and {len(target[1])} dims; give one dim for each name")
    _TARGETS[norm_type][module_class] = target
