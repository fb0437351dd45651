"""The training loop, on Lightning Fabric: devices, precision and strategies come from there."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from homeostat.errors import HomeostatError, InputError, OutputError
from homeostat.files import write_text
from homeostat.models.checkpoint import Checkpoint, CheckpointConfig, build, load, save
from homeostat.models.net import Net
from homeostat.models.recall import RecallConfig
from homeostat.tasks import Batch, PuzzleTask, Task
from homeostat.training.ema import Average
from homeostat.training.instances import training_instances, training_task, visited
from homeostat.training.pool import Pools
from homeostat.training.progress import FILE, load_progress, save_progress
from homeostat.training.recipe import Recipe
from homeostat.training.step import TrainingStep
from homeostat.training.visit import Stream, Visit


@dataclass(frozen=True)
class TrainingEvent:
    """What a progress callback is told after a step."""

    step: int
    steps: int
    loss: float
    """That of the task, mean over the batch; terms added to it are in `losses.csv`."""
    seconds: float
    """Spent on training so far, over all sessions of this run."""


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
        >>> recipe = get_recipe("path-independent").changed(steps=2, batch=4, model=small)
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
    task = training_task(recipe)
    record = {"recipe": recipe.as_record(), "seed": seed}
    key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    config = _config(recipe, task, record)
    if (folder / "config.json").exists() and not (folder / FILE).exists():
        return _finished(folder, recipe, seed, fabric.device)

    torch.manual_seed(Stream.WEIGHTS.seed(seed))
    model = build(config.model_copy(update={"damping": 1.0}))
    if model.stochastic:
        raise HomeostatError(
            f"{model.name} draws random numbers in its step, which no killed training could repeat; set stochastic to "
            f"False and use path_noise, or homeostat.nn.VariationalDropout, whose masks are part of the context"
        )
    run = _Run(recipe, task, model, seed, fabric)
    history = load_progress(folder, model, run.optimiser, key)
    losses, spent = ([], 0.0) if history is None else (history.losses, history.seconds)
    if history is not None:
        run.restore(history.more)
    began = time.perf_counter() - spent
    for step in range(len(losses), recipe.steps):
        losses.append(run.step(step))
        seconds = time.perf_counter() - began
        if (step + 1) % checkpoint_every == 0:
            more = run.tensors()
            if fabric.is_global_zero:
                save_progress(folder, model, run.optimiser, losses, seconds, key, more)
        if on_step is not None and fabric.is_global_zero:
            on_step(TrainingEvent(step + 1, recipe.steps, losses[-1][0], seconds))
    seconds = time.perf_counter() - began
    record |= {"seconds": round(seconds, 1)} | run.summary(np.array(losses))
    record |= {"torch": torch.__version__.split("+")[0], "device": str(fabric.device), "processes": fabric.world_size}
    if fabric.is_global_zero:
        rows = (f"{i + 1},{','.join(map(repr, row))}\n" for i, row in enumerate(losses))
        write_text(folder / "losses.csv", f"step,{','.join(run.columns)}\n{''.join(rows)}")
        save(run.result, config.model_copy(update={"training": record}), folder)
        (folder / FILE).unlink(missing_ok=True)
    fabric.barrier()
    return load(folder, device=fabric.device)


class _Run:
    """What changes while a training goes on: weights, optimiser, moving average, pools and counts."""

    def __init__(self, recipe: Recipe, task: Task, model: Net, seed: int, fabric: Fabric) -> None:
        self._recipe, self._task, self._model, self._seed, self._fabric = recipe, task, model, seed, fabric
        self._module = TrainingStep(model, task, recipe)
        options = recipe.optimiser
        optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        self._wrapped: Any
        self.optimiser: Any
        self._wrapped, self.optimiser = fabric.setup(self._module, optimiser)
        self._average = Average(model, recipe.ema) if recipe.ema else None
        self._pools: Pools | None = None
        if recipe.segments is not None:
            self._pools = Pools(recipe.segments, task, batch=recipe.batch, seed=seed, fabric=fabric)
        self._instances: dict[int, Batch] = {}
        self._evaluations = torch.zeros(3, dtype=torch.int64)
        terms = {"jacobian": recipe.jacobian, "path_penalty": recipe.path_penalty}
        self.columns = ["loss", *(name for name, term in terms.items() if term is not None)]

    @property
    def result(self) -> Net:
        """The model that the checkpoint holds."""
        return self._model if self._average is None else self._average.model  # type: ignore[return-value]

    def step(self, step: int) -> list[float]:
        """One training step; the loss of the task and the terms added to it, means over the batch.

        Raises:
            HomeostatError: the loss or its gradient is not finite.
        """
        recipe, fabric = self._recipe, self._fabric
        rng = np.random.default_rng(Stream.SCHEDULE.seed(self._seed, step))
        size, free, graphed = recipe.draw(step, rng)
        visit = Visit(self._seed, step, step / recipe.steps, free, graphed)
        if self._pools is None:
            batch = self._batch(size, visit)
            share = recipe.batch // fabric.world_size
            first = fabric.global_rank * share
            visit.indices = range(first, first + share)
            inputs, targets = batch[first : first + share].to(fabric.device)
        else:
            inputs, targets = self._pools.enter(size, visit)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.optimiser.rate(step / recipe.steps)
        self.optimiser.zero_grad()
        loss = self._wrapped(inputs, targets, visit)
        fabric.backward(loss)
        norm: Any = fabric.clip_gradients(
            self._wrapped, self.optimiser, max_norm=recipe.optimiser.clip, error_if_nonfinite=False
        )
        parts = [float(self._mean(self._module.parts[name])) for name in self.columns]
        if not (np.isfinite([*parts, float(norm)]).all()):
            raise HomeostatError(
                f"training step {step + 1} of {recipe.steps} has loss {parts[0]:g}{self._terms(parts)} and a gradient "
                f"of norm {float(norm):g}; lower the learning rate or the depth, or give a solve that does not "
                f"converge more steps"
            )
        self.optimiser.step()
        if self._average is not None:
            self._average.update(self._model)
        if self._pools is not None:
            self._pools.leave(size, self._module.reached, free + graphed)
        self._evaluations += torch.tensor(self._module.evaluations())
        return parts

    def _batch(self, size: int, visit: Visit) -> Batch:
        """The instances of a training step, for all processes together."""
        recipe = self._recipe
        if recipe.instances is None:
            return self._task.sample(size, recipe.batch, split="train", seed=visit.stream(Stream.DATA))
        if size not in self._instances:
            self._instances[size] = training_instances(recipe, seed=self._seed, size=size)
        rows = visited(recipe.instances, recipe.batch, visit.step, self._seed)
        return self._instances[size].at(rows)

    def _mean(self, value: Tensor) -> Tensor:
        mean: Any = self._fabric.all_reduce(value.double(), reduce_op="mean")
        return mean

    def _terms(self, parts: list[float]) -> str:
        return "".join(f", {name} {value:g}" for name, value in zip(self.columns[1:], parts[1:], strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """All there is to know beside model, optimiser and losses. Every process has to call this."""
        found = {"evaluations": self._total()}
        if self._average is not None:
            found |= {f"average.{name}": value for name, value in self._average.tensors().items()}
        if self._pools is not None:
            found |= {f"pools.{name}": value for name, value in self._pools.tensors().items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Bring all of that back."""

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(name): value for key, value in tensors.items() if key.startswith(name)}

        if self._fabric.is_global_zero:  # the sum over processes, which goes on from there
            self._evaluations = tensors["evaluations"].clone()
        if self._average is not None:
            self._average.restore(part("average."))
        if self._pools is not None:
            self._pools.restore(part("pools."))

    def _total(self) -> Tensor:
        total: Any = self._fabric.all_reduce(self._evaluations.clone().to(self._fabric.device), reduce_op="sum")
        return total.cpu()

    def summary(self, losses: NDArray[np.float64]) -> dict[str, Any]:
        """What the checkpoint's record says of the whole training. Every process has to call this."""
        final = {f"final_{name}": float(np.mean(losses[-50:, i])) for i, name in enumerate(self.columns)}
        names = ("forward", "graphed", "adjoint")
        found: dict[str, Any] = final | {"row_evaluations": dict(zip(names, self._total().tolist(), strict=True))}
        residuals = self._module.residuals()
        if residuals:
            found["last_residuals"] = residuals
        if self._pools is not None:
            found["oldest_state"] = self._pools.oldest()
        return found


def _default_model(recipe: Recipe, task: Task) -> RecallConfig:
    if isinstance(task, PuzzleTask):  # an answer at each position, as the recall network gives it
        return RecallConfig.of(task)
    raise InputError(f"recipe {recipe.name} names no model, and {task.name} has no default one; give it a model")


def _config(recipe: Recipe, task: Task, record: dict[str, Any]) -> CheckpointConfig:
    return CheckpointConfig(
        name=recipe.name,
        description=recipe.description,
        model=recipe.model or _default_model(recipe, task),
        task=recipe.task,
        trained_steps=recipe.horizon,
        predict_steps=recipe.predict_steps,
        damping=recipe.predict_damping,
        training=record,
    )


def _finished(folder: Path, recipe: Recipe, seed: int, device: torch.device) -> Checkpoint:
    checkpoint = load(folder, device=device)
    there = checkpoint.config.training
    try:  # a record of an older version may lack fields that have a default today
        same = there.get("seed") == seed and Recipe.model_validate(there.get("recipe")) == recipe
    except ValidationError:
        same = False
    if not same:
        raise OutputError(f"{folder} holds a model trained with another recipe or seed; choose another folder")
    return checkpoint
