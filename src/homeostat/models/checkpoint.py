"""Checkpoints: weights as safetensors with their configuration beside them. Reading one never runs code from it."""

import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from homeostat.errors import CheckpointError
from homeostat.files import write_bytes, write_text
from homeostat.models.net import Net
from homeostat.models.registry import ModelConfig, build_net

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class TaskReference(BaseModel):
    """Which task a model was trained for, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class CheckpointConfig(BaseModel):
    """What stands in `config.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    name: str
    description: str = ""
    model: ModelConfig
    task: TaskReference
    trained_steps: int = Field(ge=1)
    """The horizon: the most steps an example took in training."""
    predict_steps: float = Field(gt=0, allow_inf_nan=False)
    """Most steps that a prediction takes, in multiples of the longest side of its input."""
    damping: float = Field(default=1.0, gt=0, le=1)
    """Share of a step that is taken when the model is used; training takes whole steps."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Where the weights come from: recipe, seed, steps, seconds. For readers; nothing is computed from it."""
    sha256: str = ""
    """Of the weights file."""


class Checkpoint:
    """A model with its configuration.

    Attributes:
        model: in evaluation mode.
        config: what stands beside the weights.
    """

    def __init__(self, model: Net, config: CheckpointConfig) -> None:
        self.model = model
        self.config = config

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.model.parameters())
        return f"Checkpoint({self.config.name}: {self.config.task.name}, {count:,} parameters)"


def build(config: CheckpointConfig) -> Net:
    """The model that a configuration describes, with fresh weights."""
    return build_net(config.model, name=config.name, trained_steps=config.trained_steps, damping=config.damping)


def save(model: Net, config: CheckpointConfig, folder: str | os.PathLike[str]) -> Path:
    """Write `model.safetensors` and `config.json` into `folder`, each whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    data = save_tensors({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    config = config.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    # Weights first: a configuration without its weights would look like a finished checkpoint.
    write_bytes(folder / WEIGHTS, data)
    write_text(folder / CONFIG, config.model_dump_json(indent=2) + "\n")
    return folder


def shipped() -> dict[str, Path]:
    """Checkpoints that come with the package, by name."""
    root = Path(str(resources.files("homeostat"))) / "checkpoints"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{CONFIG}"))}


def load(source: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint: a folder, its `model.safetensors`, or the name of one that ships with the package.

    Raises:
        CheckpointError: missing, truncated, of another version, or weights that do not fit the configuration.

    Example:
        >>> load("no-such-model")
        Traceback (most recent call last):
        homeostat.errors.CheckpointError: no checkpoint at no-such-model: there is no folder of that name, and the \
shipped ones are mazes, sudoku-4, sudoku-6
    """
    folder = _find(source)
    config = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or is not a safetensors file ({error})") from error
    if config.sha256 and hashlib.sha256(data).hexdigest() != config.sha256:
        raise CheckpointError(f"{path} is not the file that {CONFIG} beside it was written for (sha256 differs)")
    model = build(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: {name} is {found.get(name, 'missing')}, the configuration needs "
                f"{expected.get(name, 'no such tensor')}"
            )
    model.load_state_dict(tensors)
    return Checkpoint(model.to(device).eval(), config)


def _find(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        if path.name in (WEIGHTS, CONFIG):
            return path.parent
        raise CheckpointError(f"{path} is not a checkpoint: give the folder that holds {WEIGHTS} and {CONFIG}")
    known = shipped()
    if str(source) in known:
        return known[str(source)]
    names = ", ".join(known) or "none"
    raise CheckpointError(
        f"no checkpoint at {source}: there is no folder of that name, and the shipped ones are {names}"
    )


def _read_config(path: Path) -> CheckpointConfig:
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated or is not JSON ({error})") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version!r}; this version of homeostat reads format {FORMAT}")
    try:
        return CheckpointConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {where}: {first['msg']}") from error
