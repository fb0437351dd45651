"""Which model a policy was made for: a hash of its weights and settings.

A policy made for one model says nothing about another one, though it would run.
"""

import functools
import hashlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.models.contract import FUNCTIONS

_DEPTH = 6
"""How far weights are looked for behind functions: partial, closure, attribute, container, each counts."""

_APART = ("name", "examples", "training_examples")
"""Attributes that do not change what a model computes."""

_KNOWN: "weakref.WeakKeyDictionary[nn.Module, tuple[object, str | None]]" = weakref.WeakKeyDictionary()
"""Hashes of modules, with what they were found for: hashing a large model at every prediction would take seconds."""


def hash_of(model: Any) -> str | None:
    """Hash of the weights of a model and of the plain settings beside them.

    Weights are the tensors of all modules that it is made of: the model itself, its attributes, and what its functions
    are bound to, close over or find by a global name, tensors among them. Settings are their numbers, flags and texts
    (but no names, no mode, and nothing that begins with an underscore); the code of the functions is not looked at.

    Returns:
        64 hexadecimal digits, or None where there are no weights: then nothing can be checked.

    Example:
        >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> hash_of(first) == hash_of(first) != hash_of(second)
        True
        >>> hash_of(lambda x: x) is None
        True
    """
    if not isinstance(model, nn.Module):
        return _hash(model)
    # In place or not, whatever changes a tensor changes its version or its memory.
    tensors = [*model.parameters(), *model.buffers()]
    now = ([(x.data_ptr(), x._version) for x in tensors if not x.is_inference()], len(tensors), tuple(_settings(model)))
    known = _KNOWN.get(model)
    if known is None or known[0] != now:
        known = now, _hash(model)
        _KNOWN[model] = known
    return known[1]


def _hash(model: Any) -> str | None:
    digest, found = hashlib.sha256(), False
    functions = getattr(model, "_functions", None) or {n: getattr(model, n, None) for n in (*FUNCTIONS, "score")}
    things = [model] if isinstance(model, nn.Module) else [model, *(functions[name] for name in sorted(functions))]
    seen: set[int] = set()
    for part in (part for thing in things for part in _reached(thing, seen, _DEPTH)):
        if isinstance(part, str):
            digest.update(part.encode() + b"\0")
            continue
        found = True
        named = part.state_dict() if isinstance(part, nn.Module) else {"": part}
        for name, value in sorted(named.items()):
            if isinstance(value, Tensor):
                data = value.detach().cpu().contiguous()
                digest.update(f"{name} {tuple(data.shape)} {data.dtype}\0".encode())
                digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return digest.hexdigest() if found else None


def _settings(module: nn.Module) -> Iterator[str]:
    """Plain values of a module and of all its parts, as texts."""
    for path, part in module.named_modules():
        yield f"{path} {type(part).__qualname__}"
        for name, value in sorted(vars(part).items()):
            if name not in ("training", "name") and not name.startswith("_") and _is_plain(value):
                yield f"{path}.{name}={value!r}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _reached(thing: Any, seen: set[int], depth: int) -> Iterator[nn.Module | Tensor | str]:
    """Modules and tensors with weights behind something, and texts of the settings, in an order of their own."""
    if thing is None or depth == 0 or id(thing) in seen:
        return
    if _is_plain(thing):
        yield repr(thing)
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        for part in thing.modules():
            seen.add(id(part))
        yield from _settings(thing)
        if thing.state_dict():
            yield thing
    else:
        for part in _parts(thing):
            yield from _reached(part, seen, depth - 1)


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, list | tuple):
        return list(thing)
    if isinstance(thing, dict):
        return [value for _, value in sorted(thing.items(), key=lambda item: str(item[0]))]
    attributes = getattr(thing, "__dict__", {})
    return [
        getattr(thing, "__self__", None),
        *(_content(cell) for cell in getattr(thing, "__closure__", None) or ()),
        *_globals_of(thing),
        *(value for name, value in sorted(attributes.items()) if name not in _APART),
    ]


def _globals_of(function: Any) -> list[Any]:
    """Modules and tensors that a function reaches by a global name, as those of a notebook do."""
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    scope = getattr(function, "__globals__", {})
    return [scope[name] for name in names if isinstance(scope.get(name), nn.Module | Tensor)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
