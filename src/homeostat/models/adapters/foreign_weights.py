"""State dicts from other people's repositories: read without running anything in them, and fitted with every
difference named.
"""

import os
import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from homeostat.errors import CheckpointError

_LISTED = 4
"""Names that an error lists before it counts the rest."""


class Ignored:
    """Stands for an object in a checkpoint that is not weights: it takes whatever it is made of, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Ignored":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_file(path: str | os.PathLike[str], *, ignore: Sequence[str] = ()) -> Any:
    """What a `.safetensors` file or a file of `torch.save` holds. No code in it is run.

    Args:
        path: the file.
        ignore: full names of classes and functions that such files refer to beside their weights; an `Ignored` takes
            the place of each of their objects.

    Raises:
        CheckpointError: it cannot be read, is truncated, or holds an object that would need code to run.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the checkpoint file in it")
    stand_ins: list[Any] = [(Ignored, name) for name in ignore]
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the age of the format, before it is known whether it can be read
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or is not a safetensors file ({error})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, or is no file of torch.save; nothing in it was run "
            f"({_reason(error)})"
        ) from error
    except Exception as error:  # a damaged archive fails in as many ways as it has bytes
        raise CheckpointError(f"{path} is truncated or is no file of torch.save ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The line of torch's message that says what was met; the rest is advice to load it with code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    line = (named or lines or [type(error).__name__])[0].removeprefix("WeightsUnpickler error: ")
    return line.split(" was not an allowed")[0].split(" Please use")[0][:200]


def tensors_of(found: Any, path: Any, *, drop: Iterable[str] = (), start: Iterable[str] = ()) -> dict[str, Tensor]:
    """A state dict with the names that wrappers put around it taken off.

    Args:
        found: what the file holds.
        path: for the errors.
        drop: parts of a name that are left out wherever they stand: `_orig_mod` of compiled modules, `module` of data
            parallel ones.
        start: parts that are left out at the beginning, one after the other.

    Raises:
        CheckpointError: no mapping of names to tensors, or two names that become one.
    """
    if not isinstance(found, Mapping) or not found or not all(isinstance(key, str) for key in found):
        raise CheckpointError(f"{path} holds no state dict but {_kind(found)}")
    dropped, start = set(drop), list(start)
    tensors: dict[str, Tensor] = {}
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key} is {_kind(value)}, not a tensor; this is no state dict")
        parts = [part for part in key.split(".") if part not in dropped]
        for part in start:
            parts = parts[1:] if parts[:1] == [part] and len(parts) > 1 else parts
        name = ".".join(parts)
        if name in tensors:
            raise CheckpointError(f"{path} has {name} twice, under different prefixes")
        tensors[name] = value
    return tensors


def fit(module: nn.Module, tensors: Mapping[str, Tensor], path: Any, what: str) -> None:
    """Load the tensors into the module, which must have the same names and shapes.

    Raises:
        CheckpointError: naming what is missing, unexpected, of another shape, or not finite.
    """
    expected = module.state_dict()
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    problems = [
        _listed("missing", [f"{name} {shape}" for name, shape in shapes.items() if name not in tensors]),
        _listed("unexpected", [f"{name} {tuple(t.shape)}" for name, t in tensors.items() if name not in shapes]),
        _listed(
            "wrong shape",
            [
                f"{name} is {tuple(t.shape)}, not {shapes[name]}"
                for name, t in tensors.items()
                if name in shapes and tuple(t.shape) != shapes[name]
            ],
        ),
        _listed("not floating", [name for name, t in tensors.items() if not t.is_floating_point()]),
        _listed("not finite", [name for name, t in tensors.items() if not bool(torch.isfinite(t).all())]),
    ]
    problems = [problem for problem in problems if problem]
    if problems:
        raise CheckpointError(f"{path} does not fit {what}: {'; '.join(problems)}")
    module.load_state_dict(dict(tensors))


def _listed(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{title}: {', '.join(names[:_LISTED])}{more}"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "an empty dict" if value == {} else f"a {type(value).__name__}"
