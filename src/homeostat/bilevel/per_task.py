"""One module for many tasks at once, every task with parameters of its own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Parameters = Mapping[str, Tensor]
"""By name as in the module, `(tasks, *shape)`."""

Backward = Callable[[Tensor], dict[str, Tensor]]
"""From the gradient of the outputs to that of the parameters, by name."""

_ELEMENTWISE: dict[type[nn.Module], Callable[[Tensor, Tensor], Tensor] | None] = {
    nn.Identity: lambda out, g: g,
    nn.ReLU: lambda out, g: torch.where(out > 0, g, 0.0),
    nn.Tanh: lambda out, g: g * (1 - out.square()),
    nn.Sigmoid: lambda out, g: g * out * (1 - out),
    nn.GELU: None,
    nn.SiLU: None,
    nn.ELU: None,
    nn.Softplus: None,
}
"""Layers without parameters, with the gradient of their input from that of their output, `(output, gradient)`, where it
is as short as that."""


class PerTask:
    """A module as a function of parameters and inputs that have a row for each task.

    Sequences of linear layers and elementwise functions become batched matrix products, forward and backward; anything
    else runs under `torch.func.vmap`. Both give the same numbers. Where tasks are small the second takes several times
    as long, nearly all of it in the bookkeeping of single operations.

    Example:
        >>> module = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
        >>> weights = {name: p.detach().expand(5, *p.shape) for name, p in module.named_parameters()}
        >>> tuple(PerTask(module)(weights, torch.zeros(5, 7, 2)).shape)  # 5 tasks of 7 samples
        (5, 7, 3)
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._layers = module, _layers(module)
        layers = self._layers or []
        self._short = all(_ELEMENTWISE.get(type(layer), True) is not None for _, layer in layers)

    def __call__(self, parameters: Parameters, inputs: Any) -> Tensor:
        """Outputs, tasks first."""
        if not self._batched(inputs):
            return mapped(self._module, parameters, inputs)
        for name, layer in self._layers or []:
            inputs = _linear(name, parameters, inputs) if isinstance(layer, nn.Linear) else layer(inputs)
        return inputs

    def with_backward(self, parameters: Parameters, inputs: Any) -> tuple[Tensor, Backward] | None:
        """Outputs, and what leads back from them to the parameters in operations that can be differentiated again; None
        where that is left to autograd.
        """
        if not self._short or not self._batched(inputs):
            return None
        layers, values = self._layers or [], [inputs]
        for name, layer in layers:
            values.append(_linear(name, parameters, values[-1]) if isinstance(layer, nn.Linear) else layer(values[-1]))

        def backward(gradient: Tensor) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            first = next(i for i, (_, layer) in enumerate(layers) if isinstance(layer, nn.Linear))
            for i, (name, layer) in reversed(list(enumerate(layers))[first:]):
                if not isinstance(layer, nn.Linear):
                    gradient = _ELEMENTWISE[type(layer)](values[i + 1], gradient)  # type: ignore[misc]
                    continue
                flat, before = gradient.flatten(1, -2), values[i].flatten(1, -2)
                found[f"{name}weight"] = torch.bmm(flat.mT, before)
                if layer.bias is not None:
                    found[f"{name}bias"] = flat.sum(1)
                if i > first:
                    gradient = torch.bmm(flat, parameters[f"{name}weight"]).view(values[i].shape)
            return found

        return values[-1], backward

    def _batched(self, inputs: Any) -> bool:
        return self._layers is not None and isinstance(inputs, Tensor) and inputs.ndim >= 3


def mapped(module: nn.Module, parameters: Parameters, inputs: Any) -> Tensor:
    """Any module under `torch.func.vmap`: the reference of `PerTask`."""

    def one(named: dict[str, Tensor], samples: Any) -> Tensor:
        return torch.func.functional_call(module, named, (samples,))

    return torch.func.vmap(one)(dict(parameters), inputs)


def _layers(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """Linear and elementwise layers in order, by name; None where there is anything else."""
    if type(module) is nn.Linear:
        return [("", module)] if _is_plain(module) else None
    if type(module) is not nn.Sequential or module._forward_hooks or module._forward_pre_hooks:
        return None
    parts = list(module.named_children())
    # Layers that stand in several places, or that do not adapt, are not worth a rule of their own.
    repeated = len(parts) < len(module) or _count(module, twice=True) > _count(module, twice=False)
    fixed = not all(p.requires_grad for p in module.parameters())
    linear = any(type(part) is nn.Linear for _, part in parts)
    if repeated or fixed or not linear or not all(_is_plain(part) for _, part in parts):
        return None
    return [(f"{name}.", part) for name, part in parts]


def _count(module: nn.Module, *, twice: bool) -> int:
    return sum(1 for _ in module.named_parameters(remove_duplicate=not twice))


def _is_plain(module: nn.Module) -> bool:
    """Exactly one of the known layers: no subclass, no hooks."""
    known = type(module) is nn.Linear or type(module) in _ELEMENTWISE
    return known and not module._forward_hooks and not module._forward_pre_hooks


def _linear(name: str, parameters: Parameters, inputs: Tensor) -> Tensor:
    weight, bias = parameters[f"{name}weight"].mT, parameters.get(f"{name}bias")
    flat = inputs if inputs.ndim == 3 else inputs.flatten(1, -2)
    outputs = torch.bmm(flat, weight) if bias is None else torch.baddbmm(bias[:, None], flat, weight)
    return outputs if inputs.ndim == 3 else outputs.unflatten(1, inputs.shape[1:-1])
