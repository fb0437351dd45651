"""What a step uses that is not its argument: modules, tensors and numbers that it closes over."""

from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

# Containers in containers are looked into so deep; functions and objects in one another as well.
_DEEP = 4


def closed_over(step: Any) -> dict[str, Tensor]:
    """Tensors that a step has beside its arguments, by name; parameters and buffers of modules do not count.

    Example:
        >>> inputs = torch.ones(4, 2)
        >>> list(closed_over(lambda z: z + inputs))
        ['inputs']
    """
    found: dict[str, Tensor] = {}
    for name, value in _look(step):
        if isinstance(value, nn.Module):
            found.update({f"{name}.{key}": x for key, x in vars(value).items() if isinstance(x, Tensor)})
        elif isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            found[name] = value
    return found


class Surroundings:
    """The modules and tensors that a step closes over, as they were at one moment.

    They are found by looking: into the closure, the defaults and the globals that a function names, into bound objects,
    modules and containers. What hides deeper is not found, so that this serves messages, and to find tensors whose
    graph is known; nothing rests on it being complete.
    """

    def __init__(self, step: Any) -> None:
        self._found = dict(_look(step))
        self._marks = {name: _mark(value) for name, value in self._found.items()}
        self._autocast = _autocast()

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by the names under which the step reaches them; those of modules included."""
        found = {}
        for name, value in self._found.items():
            if isinstance(value, nn.Module):
                found.update((*value.named_parameters(name), *value.named_buffers(name)))
                for place, module in value.named_modules(prefix=name):  # what was computed once from parametrised ones
                    found.update({f"{place}.{key}": x for key, x in vars(module).items() if isinstance(x, Tensor)})
            elif isinstance(value, Tensor):
                found[name] = value
        return found

    def changes(self, step: Any) -> list[str]:
        """What is another thing now than it was then, one line each."""
        now = dict(_look(step))
        lines = []
        for name, before in self._marks.items():
            kind, *details = before
            if name not in now:
                lines.append(f"{name} is gone")
                continue
            after = _mark(now[name])
            if after == before:
                continue
            if kind == "module" and after[0] == "module":
                lines += _module_changes(name, details, after[1:])
            elif kind == "tensor" and after[0] == "tensor" and after[1] == before[1]:
                lines.append(f"{name} was changed in place")
            else:
                lines.append(f"{name} is another {'tensor' if kind == 'tensor' else 'value'}")
        if self._autocast != _autocast():
            lines.append("autocast is set otherwise")
        return lines


def _module_changes(name: str, before: list[Any], after: tuple[Any, ...]) -> list[str]:
    lines = []
    if before[1] != after[1]:
        lines.append(f"{name} was switched between train() and eval()")
    if before[2] != after[2]:
        lines.append(f"parameters or buffers of {name} are others, or were changed in place")
    return lines or [f"{name} is another module"]


def _autocast() -> tuple[Any, ...]:
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds)


def _mark(value: Any) -> tuple[Any, ...]:
    """Something that differs where the value differs, as far as that can be seen without reading tensors."""
    if isinstance(value, nn.Module):
        modes = tuple(module.training for module in value.modules())
        tensors = (*value.parameters(), *value.buffers())
        return ("module", id(value), modes, tuple((id(x), _version(x)) for x in tensors))
    if isinstance(value, Tensor):
        return ("tensor", id(value), _version(value))
    if isinstance(value, int | float | str | bool | None):
        return ("value", value)
    return ("object", id(value))


def _version(tensor: Tensor) -> tuple[int, int]:
    version = -1 if tensor.is_inference() else tensor._version
    return version, 0 if tensor.layout != torch.strided else _pointer(tensor)


def _pointer(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a wrapper of torch.func has no memory of its own
        return 0


def _look(step: Any) -> Iterator[tuple[str, Any]]:
    """Names and values that a step reaches: modules, tensors and plain values."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("step", step, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, Tensor | nn.Module):
            if id(value) not in seen:
                seen.add(id(value))
                yield name, value
                if isinstance(value, nn.Module) and not depth:  # a step that is a module: what its code reaches
                    waiting.append((name, type(value).forward, depth + 1))
            continue
        if isinstance(value, int | float | str | bool):
            yield name, value
            continue
        if value is None or id(value) in seen or depth > _DEEP:
            continue
        seen.add(id(value))
        waiting += [(inner, part, depth + 1) for inner, part in _parts(name, value)]


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """What a function, an object or a container holds, one level down."""
    if hasattr(value, "__wrapped__") and not isinstance(value, type):  # what the engine itself puts around a step, too
        return [(name, value.__wrapped__)]
    if isinstance(value, FunctionType):
        code = value.__code__
        cells = []
        for free, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            try:
                cells.append((free, cell.cell_contents))
            except ValueError:  # not set yet
                continue
        used = [(key, value.__globals__[key]) for key in code.co_names if key in value.__globals__]
        used = [(key, found) for key, found in used if isinstance(found, Tensor | nn.Module | int | float)]
        defaults = list(
            zip(
                code.co_varnames[code.co_argcount - len(value.__defaults__ or ()) :],
                value.__defaults__ or (),
                strict=False,
            )
        )
        return cells + used + defaults
    if isinstance(value, MethodType):
        return [("self", value.__self__), (value.__func__.__name__, value.__func__)]
    if isinstance(value, partial):
        return [
            ("function", value.func),
            *((f"argument {i}", x) for i, x in enumerate(value.args)),
            *value.keywords.items(),
        ]
    if isinstance(value, Mapping):
        return [(f"{name}[{key!r}]", x) for key, x in list(value.items())[:1000]]
    if isinstance(value, list | tuple):
        return [(f"{name}[{i}]", x) for i, x in enumerate(value[:1000])]
    if isinstance(value, type) or type(value).__module__.split(".")[0] in ("builtins", "torch", "numpy"):
        return []
    slots = [key for kind in type(value).__mro__ for key in _slots(kind)]
    found = [(f"{name}.{key}", getattr(value, key)) for key in slots if hasattr(value, key)]
    return found + [(f"{name}.{key}", x) for key, x in getattr(value, "__dict__", {}).items()]


def _slots(kind: type) -> tuple[str, ...]:
    own = kind.__dict__.get("__slots__", ())
    return (own,) if isinstance(own, str) else tuple(own)
