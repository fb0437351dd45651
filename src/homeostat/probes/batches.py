"""Examples and model made ready for a probe: batches on the device, indices of their rows, the model in eval mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from homeostat.errors import ContractError, InputError
from homeostat.models.contract import IteratedModel, as_model
from homeostat.probes.audit import groups_of, pairs_of
from homeostat.probes.judge import Judge
from homeostat.tasks.base import IGNORE


@dataclass(frozen=True)
class Loaded:
    """A batch on the device. `indices` are the places of its rows among the examples of its difficulty."""

    inputs: Any
    targets: Any
    indices: range


@contextmanager
def evaluating(model: Any, device: str | torch.device | None = None) -> Iterator[tuple[IteratedModel, torch.device]]:
    """The model by the contract, in eval mode until the end, and the device to run on: its parameters' unless named."""
    iterated = as_model(model, where="the model")
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    if device is None:
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = torch.device("cpu") if first is None else first.device
    try:
        for module in modules:
            module.training = False
        yield iterated, torch.device(device)
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def loaded(examples: Any, device: torch.device) -> Iterator[tuple[str, Iterator[Loaded]]]:
    """Difficulty by difficulty, its name and its batches.

    Raises:
        InputError: no difficulty at all, or one without examples (when its batches are used up).
        ContractError: what is not a batch.
    """
    groups = groups_of(examples)
    if not groups:
        raise InputError("there are no examples to measure on")
    for name, batches in groups.items():
        yield name, _batches(name, batches, device)


def _batches(name: str, batches: Any, device: torch.device) -> Iterator[Loaded]:
    def move(tree: Any) -> Any:
        return pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, tree)

    first = 0
    for inputs, targets in pairs_of(name, batches):
        leaves = pytree.tree_leaves(inputs)
        rows = next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), None)
        if rows is None:
            raise ContractError("inputs must be a tensor or a nest of tensors, batch first")
        if rows:
            yield Loaded(move(inputs), move(targets), range(first, first + rows))
        first += rows
    if first == 0:
        raise InputError(f"difficulty {name!r} has no examples; give at least one batch with one row")


def judge_of(model: Any, judge: Any) -> Judge:
    """What judges: a `Judge` as it is, or the functions of a task, or of the model's own object when None."""
    return judge if isinstance(judge, Judge) else Judge.of(model if judge is None else judge)


def asked(targets: Any, answers: Tensor) -> Tensor:
    """Bool in the shape of `answers`: positions where an answer is asked, which are all those whose target is not
    `IGNORE`. Only that one value of the targets is read, so that nothing learns what would be right.
    """
    if isinstance(targets, Tensor) and targets.shape == answers.shape and not targets.is_floating_point():
        return targets != IGNORE
    return torch.ones_like(answers, dtype=torch.bool)
