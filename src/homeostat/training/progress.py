"""Training state on disk: weights, optimiser, losses and more in one safetensors file: a killed run goes on exactly.

All randomness of a run is found from its seed and the number of the step, so that no generator has to be saved.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from homeostat.errors import CheckpointError
from homeostat.files import write_bytes

FILE = "training.safetensors"


class Progress(NamedTuple):
    """Where a training stands beside its model and optimiser."""

    losses: list[list[float]]
    """One row a training step: the loss of the task, and the terms added to it."""
    seconds: float
    """Spent so far, over all sessions."""
    more: dict[str, Tensor]
    """Tensors that other parts of a training need to go on."""


def save_progress(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    losses: Sequence[Sequence[float]],
    seconds: float,
    key: str,
    more: Mapping[str, Tensor],
) -> None:
    """Write where a training stands, whole or not at all. `key` says which training it is."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors |= {f"more.{name}": value for name, value in more.items()}
    # Copies: tensors that share memory cannot be written, and an average may share its buffers with the model.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    write_bytes(folder / FILE, save_tensors(tensors, {"key": key, "seconds": json.dumps(seconds)}))


def load_progress(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, key: str) -> Progress | None:
    """Bring model and optimiser back to where a training stood.

    Returns:
        The rest of what was saved; None when there is nothing to go on from.

    Raises:
        CheckpointError: the file is truncated, or belongs to another recipe, seed or version.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or is not a safetensors file ({error}); remove it to start again"
        ) from error
    if metadata.get("key") != key:
        raise CheckpointError(
            f"{folder} holds a training with another recipe, seed or version; choose another folder, "
            f"or remove it to start again"
        )
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, field = name.split(".", 2)
            state.setdefault(int(index), {})[field] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    more = {name.removeprefix("more."): value for name, value in tensors.items() if name.startswith("more.")}
    return Progress(tensors["losses"].tolist(), float(json.loads(metadata["seconds"])), more)
