"""Weight norm and spectral norm for cells, by PyTorch's own parametrisations, made safe for iteration.

A parametrised weight is computed anew at every access. In an iteration that costs one evaluation a step, and with
spectral norm, whose power iteration goes on at every access in training, the map would change from step to step: there
would be no fixed point to find. `evaluate_once` computes such weights once for a whole solve.
"""

from collections.abc import Iterable
from typing import Literal, TypeVar

from torch import nn
from torch.nn.utils import parametrizations, parametrize

from homeostat.errors import ContractError

Module = TypeVar("Module", bound=nn.Module)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def normalise(
    module: Module, kind: Literal["weight", "spectral"] = "weight", *, names: Iterable[str] | None = None
) -> Module:
    """Normalise the weights of a cell's linear and convolutional layers, in place.

    Args:
        module: the cell. Its `Linear`, `Conv` and `ConvTranspose` layers are normalised, at any depth.
        kind: `"weight"` learns a direction and a length for each output unit. `"spectral"` divides each weight, as a
            matrix with one row an output unit, by an estimate of its largest singular value. For a linear layer that
            is its gain, so that it does not expand; for a convolution it is not, and the gain can be larger by up to
            the square root of the kernel's size.
        names: the layers to normalise, as in `module.named_modules()`; None: all of them.

    Returns:
        The same module.

    Raises:
        ContractError: no such layer, or one that is normalised already.

    Sources:
        Salimans and Kingma, "Weight normalization", arXiv 1602.07868. Miyato et al., "Spectral normalization for
        generative adversarial networks", arXiv 1802.05957.

    Example:
        >>> import torch
        >>> layer = normalise(nn.Linear(64, 64), "spectral")
        >>> layer = layer.eval()  # the estimate stands still
        >>> bool(torch.linalg.matrix_norm(layer.weight, 2) < 1.1)
        True
    """
    if kind not in ("weight", "spectral"):
        raise ValueError(f"kind must be 'weight' or 'spectral', not {kind!r}")
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, _LAYERS)}
    if names is not None:
        chosen = [names] if isinstance(names, str) else list(names)
        for name in chosen:
            if name not in found:
                raise ContractError(f"there is no linear or convolutional layer {name!r}; there are {sorted(found)}")
        found = {name: found[name] for name in chosen}
    if not found:
        raise ContractError(f"{type(module).__name__} has no linear or convolutional layer to normalise")
    for name, layer in found.items():
        if parametrize.is_parametrized(layer, "weight"):
            raise ContractError(f"the weight of layer {name!r} is parametrised already")
    for layer in found.values():
        if kind == "spectral":
            parametrizations.spectral_norm(layer)
        else:
            parametrizations.weight_norm(layer, dim=1 if isinstance(layer, _TRANSPOSED) else 0)
    return module


def evaluate_once(module: nn.Module) -> nn.Module:
    """A view of a module whose parametrised tensors have been computed, once.

    The view shares everything else with the module, and gradients go through the computed tensors to the parameters
    that they are made from, whenever `backward()` comes. The module itself is not changed, beyond what one evaluation
    does (in training, spectral norm's power iteration goes on by one). `Equilibrium` iterates on such a view; with
    `homeostat.solve` make one for each solve. Where nothing is parametrised, this is the module itself.

    Submodules that are kept elsewhere than as attributes (in a closure, in a plain list) are not reached.

    Example:
        >>> cell = normalise(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "spectral")
        >>> view = evaluate_once(cell)
        >>> cell[0].weight is cell[0].weight, view[0].weight is view[0].weight
        (False, True)
    """
    # A copy of the modules on the way to what is parametrised, and not `parametrize.cached()`: that cache is global,
    # keeps tensors that were computed without a graph, and is gone when `backward()` evaluates the cell again.
    return _view(module, {})


def _view(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in known:  # a module that is used twice stays one module
        return known[module]
    parametrised = parametrize.is_parametrized(module)
    children = {
        name: None if child is None else _view(child, known)
        for name, child in module._modules.items()
        if not (parametrised and name == "parametrizations")
    }
    known[module] = module
    if parametrised or any(child is not module._modules[name] for name, child in children.items()):
        kind = parametrize.type_before_parametrizations(module)
        view = object.__new__(kind)
        view.__dict__ = {**module.__dict__, "_modules": children}
        if parametrised:
            for name in module.parametrizations:  # type: ignore[union-attr]
                view.__dict__[name] = getattr(module, name)
        known[module] = view
    return known[module]
