"""One module for many tasks at once, every task with parameters of its own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Parameters = Mapping[str, Tensor]
"""By name as in the module, `(tasks, *shape)`."""

_ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Identity)


def per_task(module: nn.Module) -> Callable[[Parameters, Any], Tensor]:
    """The module as a function of parameters and inputs with a row for each task.

    Sequences of linear layers and elementwise functions become batched matrix products; anything else runs under
    `torch.func.vmap`, which gives the same numbers and takes two to four times as long where a task is small.

    Example:
        >>> module = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
        >>> weights = {name: p.detach().expand(5, *p.shape) for name, p in module.named_parameters()}
        >>> tuple(per_task(module)(weights, torch.zeros(5, 7, 2)).shape)  # 5 tasks of 7 samples
        (5, 7, 3)
    """
    layers = _layers(module)

    def outputs(parameters: Parameters, inputs: Any) -> Tensor:
        if layers is None or not isinstance(inputs, Tensor) or inputs.ndim < 3:
            return mapped(module, parameters, inputs)
        for name, layer in layers:
            inputs = _linear(name, parameters, inputs) if isinstance(layer, nn.Linear) else layer(inputs)
        return inputs

    return outputs


def mapped(module: nn.Module, parameters: Parameters, inputs: Any) -> Tensor:
    """Any module under `torch.func.vmap`: the reference of `per_task`."""

    def one(named: dict[str, Tensor], samples: Any) -> Tensor:
        return torch.func.functional_call(module, named, (samples,))

    return torch.func.vmap(one)(dict(parameters), inputs)


def _layers(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """Linear and elementwise layers in order, by name; None where there is anything else."""
    if type(module) is not nn.Sequential:
        return [("", module)] if _is_plain(module) else None
    parts = list(module.named_children())
    # Parameters that some layers share, or that do not adapt, are not worth a rule of their own.
    shared = sum(1 for _ in module.named_parameters(remove_duplicate=False)) > sum(1 for _ in module.parameters())
    fixed = not all(p.requires_grad for p in module.parameters())
    if shared or fixed or module._forward_hooks or module._forward_pre_hooks or not all(_is_plain(m) for _, m in parts):
        return None
    return [(f"{name}.", part) for name, part in parts]


def _is_plain(module: nn.Module) -> bool:
    """Exactly one of the known layers: no subclass, no hooks."""
    known = type(module) is nn.Linear or type(module) in _ELEMENTWISE
    return known and not module._forward_hooks and not module._forward_pre_hooks


def _linear(name: str, parameters: Parameters, inputs: Tensor) -> Tensor:
    weight, bias = parameters[f"{name}weight"].mT, parameters.get(f"{name}bias")
    flat = inputs if inputs.ndim == 3 else inputs.flatten(1, -2)
    outputs = torch.bmm(flat, weight) if bias is None else torch.baddbmm(bias[:, None], flat, weight)
    return outputs if inputs.ndim == 3 else outputs.unflatten(1, inputs.shape[1:-1])
