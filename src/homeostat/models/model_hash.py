"""Which model a policy was made for: a hash of its weights.

A policy made for one model says nothing about another one, though it would run.
"""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.models.contract import FUNCTIONS


def hash_of(model: Any) -> str | None:
    """Hash of the weights of all modules that a model is made of: names, shapes, dtypes and values.

    They are looked for in the model itself, in its attributes, and in what its functions are bound to or close over.

    Returns:
        64 hexadecimal digits, or None where no module with weights can be found: then nothing is checked.

    Example:
        >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> hash_of(first) == hash_of(first) != hash_of(second)
        True
        >>> hash_of(lambda x: x) is None
        True
    """
    digest, found = hashlib.sha256(), False
    for module in _modules(model):
        for name, value in sorted(module.state_dict().items()):
            if not isinstance(value, Tensor):
                continue
            found = True
            data = value.detach().cpu().contiguous()
            digest.update(f"{name} {tuple(data.shape)} {data.dtype}\0".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return digest.hexdigest() if found else None


def _modules(model: Any) -> list[nn.Module]:
    """The modules with their own order, each once, and none that is a part of another."""
    if isinstance(model, nn.Module):
        return [model]
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    functions = getattr(model, "_functions", None) or {n: getattr(model, n, None) for n in (*FUNCTIONS, "score")}
    for thing in (model, *(functions[name] for name in sorted(functions))):
        for module in _reached(thing, seen, depth=6):
            found.setdefault(id(module), module)
    inner = {id(part) for module in found.values() for part in module.modules() if part is not module}
    return [module for key, module in found.items() if key not in inner]


def _reached(thing: Any, seen: set[int], depth: int) -> Iterator[nn.Module]:
    if thing is None or depth == 0 or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        return
    if isinstance(thing, functools.partial):
        parts = [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, list | tuple):
        parts = list(thing)
    elif isinstance(thing, dict):
        parts = list(thing.values())
    else:
        parts = [getattr(thing, "__self__", None)]
        parts += [_content(cell) for cell in getattr(thing, "__closure__", None) or ()]
        parts += list(getattr(thing, "__dict__", {}).values())
    for part in parts:
        yield from _reached(part, seen, depth - 1)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
