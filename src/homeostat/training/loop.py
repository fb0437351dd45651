"""The training loop, on Lightning Fabric: devices, precision and strategies come from there."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from torch import Tensor, nn

from homeostat.engine import Implicit, Picard, Stop, Unrolled, solve
from homeostat.errors import HomeostatError, OutputError
from homeostat.files import write_text
from homeostat.models.checkpoint import Checkpoint, CheckpointConfig, build, load, save
from homeostat.models.net import Net
from homeostat.models.recall import RecallConfig
from homeostat.models.starts import stream_seed
from homeostat.tasks import Task, get_task
from homeostat.training.progress import FILE, load_progress, save_progress
from homeostat.training.recipe import Recipe

# Streams of random numbers that a run draws from, each for itself.
_WEIGHTS, _SCHEDULE, _DATA, _STARTS = range(4)


@dataclass(frozen=True)
class TrainingEvent:
    """What a progress callback is told after a step."""

    step: int
    steps: int
    loss: float
    """Mean over the batch, in nats."""
    seconds: float
    """Spent on training so far, over all sessions of this run."""


class _TrainingStep(nn.Module):
    """Loss of one batch. A module, so that a strategy can wrap it and reduce its gradients."""

    def __init__(self, model: Net, task: Task, recipe: Recipe) -> None:
        super().__init__()
        self.model, self._task, self._recipe = model, task, recipe

    def forward(self, inputs: Tensor, targets: Tensor, free: int, graphed: int, seed: int, first: int) -> Tensor:
        context = self.model.encode(inputs)
        start = self._recipe.start.seeded(seed, range(first, first + len(targets)))
        with torch.no_grad():
            state = self.model.initial_state(context, start)
        if self._recipe.gradient == "unrolled":
            gradient, stop = Unrolled(last=graphed), Stop(rtol=0, max_steps=free + graphed)
        else:
            gradient, stop = Implicit(), Stop(rtol=1e-5, max_steps=free + graphed)
        solution = solve(self.model.step, state, context, method=Picard(), stop=stop, gradient=gradient)
        return self._task.loss(self.model.decode(solution.state, context), targets).mean()


def train(
    recipe: Recipe,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    fabric: Fabric | None = None,
    checkpoint_every: int = 100,
    on_step: Callable[[TrainingEvent], None] | None = None,
) -> Checkpoint:
    """Train a model into `folder`, or go on where a killed training of the same recipe and seed stopped there.

    A finished training is not repeated: its checkpoint is returned.

    Args:
        recipe: what to do.
        folder: gets `model.safetensors`, `config.json`, `losses.csv` and, while it runs, `training.safetensors`.
        seed: of weights, data, starts and depths.
        fabric: devices, precision and strategy; one process on the CPU when None. The batch is the global one: each
            process takes its share.
        checkpoint_every: steps after which progress is written; a kill loses at most these.
        on_step: called after every step, in the first process.

    Raises:
        HomeostatError: the loss is not finite; another process trains in this folder.
        CheckpointError: the folder holds another training.

    Example:
        >>> import tempfile
        >>> from homeostat.models import RecallConfig
        >>> from homeostat.training import get_recipe
        >>> small = RecallConfig(spatial_dims=1, in_channels=1, classes=2, width=4)
        >>> recipe = get_recipe("path-independent").model_copy(update={"steps": 2, "batch": 4, "model": small})
        >>> train(recipe, tempfile.mkdtemp())
        Checkpoint(path-independent: prefix-sums, 130 parameters)
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be 1 or more, not {checkpoint_every}")
    folder = Path(folder)
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    if recipe.batch % fabric.world_size:
        raise HomeostatError(f"a batch of {recipe.batch} does not divide over {fabric.world_size} processes")
    lock = FileLock(folder / ".lock", timeout=0)
    problem = fabric.broadcast(_acquire(lock, folder) if fabric.is_global_zero else None)
    if problem is not None:
        raise problem
    try:
        return _train(recipe, folder, seed, fabric, checkpoint_every, on_step)
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> HomeostatError | None:
    """Take the lock, or say what is wrong: an exception would leave the other processes waiting for this one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        return HomeostatError(f"another process is training in {folder}; wait for it or choose another folder")
    except OSError as error:
        return OutputError(f"cannot write to {folder}: {error.strerror or error}")
    return None


def _train(
    recipe: Recipe,
    folder: Path,
    seed: int,
    fabric: Fabric,
    checkpoint_every: int,
    on_step: Callable[[TrainingEvent], None] | None,
) -> Checkpoint:
    task = get_task(recipe.task.name, **recipe.task.options)
    record = {"recipe": recipe.as_record(), "seed": seed}
    key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    config = _config(recipe, task, record)
    if (folder / "config.json").exists() and not (folder / FILE).exists():
        return _finished(folder, record, fabric.device)

    torch.manual_seed(stream_seed(seed, _WEIGHTS))
    model = build(config.model_copy(update={"damping": 1.0}))
    step_module = _TrainingStep(model, task, recipe)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.optimiser.learning_rate, weight_decay=recipe.optimiser.weight_decay
    )
    wrapped, optimiser = fabric.setup(step_module, optimiser)
    progress = load_progress(folder, model, optimiser, key)
    losses, spent = progress or ([], 0.0)
    began = time.perf_counter() - spent
    for step in range(len(losses), recipe.steps):
        losses.append(_one_step(fabric, wrapped, optimiser, recipe, task, seed, step))
        seconds = time.perf_counter() - began
        if fabric.is_global_zero and (step + 1) % checkpoint_every == 0:
            save_progress(folder, model, optimiser, losses, seconds, key)
        if on_step is not None and fabric.is_global_zero:
            on_step(TrainingEvent(step + 1, recipe.steps, losses[-1], seconds))
    seconds = time.perf_counter() - began
    record |= {"seconds": round(seconds, 1), "final_loss": float(np.mean(losses[-50:]))}
    record |= {"torch": torch.__version__.split("+")[0], "device": str(fabric.device), "processes": fabric.world_size}
    if fabric.is_global_zero:
        write_text(folder / "losses.csv", "step,loss\n" + "".join(f"{i + 1},{x!r}\n" for i, x in enumerate(losses)))
        save(model, config.model_copy(update={"training": record}), folder)
        (folder / FILE).unlink(missing_ok=True)
    fabric.barrier()
    return load(folder, device=fabric.device)


def _one_step(fabric: Fabric, module: Any, optimiser: Any, recipe: Recipe, task: Task, seed: int, step: int) -> float:
    rng = np.random.default_rng(stream_seed(seed, _SCHEDULE, step))
    size, free, graphed = recipe.draw(step, rng)
    batch = task.sample(size, recipe.batch, split="train", seed=stream_seed(seed, _DATA, step))
    share = recipe.batch // fabric.world_size
    first = fabric.global_rank * share
    mine = batch[first : first + share].to(fabric.device)
    for group in optimiser.param_groups:
        group["lr"] = recipe.optimiser.rate(step / recipe.steps)
    optimiser.zero_grad()
    loss = module(mine.inputs, mine.targets, free, graphed, stream_seed(seed, _STARTS, step), first)
    fabric.backward(loss)
    norm: Any = fabric.clip_gradients(module, optimiser, max_norm=recipe.optimiser.clip, error_if_nonfinite=False)
    mean: Any = fabric.all_reduce(loss.detach().double(), reduce_op="mean")
    if not (np.isfinite(float(mean)) and bool(torch.isfinite(norm))):
        raise HomeostatError(
            f"training step {step + 1} of {recipe.steps} has loss {float(mean):g} and a gradient of norm "
            f"{float(norm):g}; lower the learning rate or the depth, or give a solve that does not converge more steps"
        )
    optimiser.step()
    return float(mean)


def _config(recipe: Recipe, task: Task, record: dict[str, Any]) -> CheckpointConfig:
    return CheckpointConfig(
        name=recipe.name,
        description=recipe.description,
        model=recipe.model or RecallConfig.of(task),  # type: ignore[arg-type]
        task=recipe.task,
        trained_steps=recipe.horizon,
        predict_steps=recipe.predict_steps,
        damping=recipe.predict_damping,
        training=record,
    )


def _finished(folder: Path, record: dict[str, Any], device: torch.device) -> Checkpoint:
    checkpoint = load(folder, device=device)
    there = {key: checkpoint.config.training.get(key) for key in record}
    if there != record:
        raise OutputError(f"{folder} holds a model trained with another recipe or seed; choose another folder")
    return checkpoint
