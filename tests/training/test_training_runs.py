"""Training runs: exact resumption, one process or two, refusals, and full disks."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

import homeostat.training.loop as loop
from homeostat.errors import CheckpointError, HomeostatError, InputError, OutputError
from homeostat.models import RecallConfig, load
from homeostat.models.checkpoint import TaskReference
from homeostat.models.starts import Mixed
from homeostat.tasks import Mazes, PrefixSums, get_task
from homeostat.training import FixedDepth, Optimiser, RandomDepth, Recipe, TrainingEvent, train
from processes import running, wait_until

RECIPE = Recipe(
    name="tiny",
    task=TaskReference(name="prefix-sums"),
    model=RecallConfig.of(PrefixSums(), width=6),
    start=Mixed(),
    depth=RandomDepth(free=(0, 3), graphed=(1, 3)),
    steps=12,
    batch=8,
    sizes=(8,),
)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(RECIPE, folder)
    return folder


def test_a_run_leaves_a_model_its_losses_and_nothing_else(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} <= {"model.safetensors", "config.json", "losses.csv", ".lock"}
    rows = (finished / "losses.csv").read_text().splitlines()
    assert rows[0] == "step,loss"
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(1, 13))
    record = load(finished).config.training
    assert Recipe.model_validate(record["recipe"]) == RECIPE
    assert load(finished).config.trained_steps == 6


def test_another_seed_gives_other_weights(finished: Path, tmp_path: Path) -> None:
    train(RECIPE, tmp_path, seed=1)
    assert weights(tmp_path) != weights(finished)


class _Interrupted(Exception):
    pass


def interrupt_at(step: int) -> Any:
    def on_step(event: TrainingEvent) -> None:
        if event.step == step:
            raise _Interrupted

    return on_step


@pytest.mark.parametrize("step", [3, 7, 8])
def test_an_interrupted_run_ends_with_the_same_weights(finished: Path, tmp_path: Path, step: int) -> None:
    with pytest.raises(_Interrupted):
        train(RECIPE, tmp_path, checkpoint_every=4, on_step=interrupt_at(step))
    again: list[int] = []
    train(RECIPE, tmp_path, checkpoint_every=4, on_step=lambda event: again.append(event.step))
    assert again[0] == step // 4 * 4 + 1, "no more than one interval is done again"
    assert weights(tmp_path) == weights(finished)
    assert (tmp_path / "losses.csv").read_bytes() == (finished / "losses.csv").read_bytes()


SCRIPT = """
import sys
from homeostat.training import Recipe, train
train(Recipe.model_validate_json(sys.argv[1]), sys.argv[2], checkpoint_every=5)
"""


def test_a_killed_process_is_taken_up_where_it_was(tmp_path: Path) -> None:
    recipe = RECIPE.changed(steps=400)
    folder = tmp_path / "run"
    with running([sys.executable, "-c", SCRIPT, recipe.model_dump_json(), str(folder)]) as process:
        wait_until((folder / "training.safetensors").exists, process)
    assert not (folder / "model.safetensors").exists()
    first: list[int] = []
    train(recipe, folder, checkpoint_every=50, on_step=lambda event: first.append(event.step))
    assert first[0] > 5, "the checkpoint was not used"
    assert first[0] % 5 == 1
    train(recipe, tmp_path / "whole")
    assert weights(folder) == weights(tmp_path / "whole")
    assert (folder / "losses.csv").read_bytes() == (tmp_path / "whole" / "losses.csv").read_bytes()


def test_killed_between_the_model_and_the_removal_of_its_progress(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, missing_ok: bool = False) -> None:
        raise _Interrupted

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(_Interrupted):
        train(RECIPE, tmp_path, checkpoint_every=4)
    monkeypatch.undo()
    assert (tmp_path / "config.json").exists()
    train(RECIPE, tmp_path, checkpoint_every=4)
    assert weights(tmp_path) == weights(finished)
    assert not (tmp_path / "training.safetensors").exists()


def test_a_finished_run_is_not_repeated(finished: Path) -> None:
    before = (finished / "model.safetensors").stat().st_mtime_ns
    steps: list[TrainingEvent] = []
    checkpoint = train(RECIPE, finished, on_step=steps.append)
    assert steps == []
    assert checkpoint.config.name == "tiny"
    assert (finished / "model.safetensors").stat().st_mtime_ns == before


def test_a_finished_run_of_an_older_version_is_known_again(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    for field in ("path_noise", "jacobian", "path_penalty", "segments", "ema"):
        del config["training"]["recipe"][field]
    del config["training"]["recipe"]["start"]["by"]
    path.write_text(json.dumps(config))
    assert train(RECIPE, tmp_path / "old").config.training["recipe"] == config["training"]["recipe"]
    config["training"]["recipe"]["depth"] = "lost"
    path.write_text(json.dumps(config))
    with pytest.raises(OutputError, match="another recipe or seed"):
        train(RECIPE, tmp_path / "old")


@pytest.mark.parametrize(("changes", "seed"), [({}, 1), ({"batch": 4}, 0), ({"steps": 13}, 0)])
def test_the_folder_of_another_run_is_refused(
    finished: Path, tmp_path: Path, changes: dict[str, Any], seed: int
) -> None:
    other = RECIPE.changed(**changes)
    with pytest.raises(OutputError, match="another recipe or seed"):
        train(other, finished, seed=seed)
    with pytest.raises(_Interrupted):
        train(RECIPE, tmp_path, checkpoint_every=4, on_step=interrupt_at(5))
    before = (tmp_path / "training.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="another recipe, seed or version"):
        train(other, tmp_path, seed=seed)
    assert (tmp_path / "training.safetensors").read_bytes() == before


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_truncated_progress_is_one_clear_error(tmp_path: Path, length: int) -> None:
    with pytest.raises(_Interrupted):
        train(RECIPE, tmp_path, checkpoint_every=4, on_step=interrupt_at(5))
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"training\.safetensors is truncated") as caught:
        train(RECIPE, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_second_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(HomeostatError, match="another process is training"):
        train(RECIPE, tmp_path)
    train(RECIPE.changed(steps=1), tmp_path)  # the lock is free again


def test_two_processes_follow_the_loss_curve_of_one(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(RECIPE.model_dump_json())
    command = [sys.executable, "-m", "homeostat", "train", "prefix-sums", "--recipe", str(tmp_path / "recipe.json")]
    command += ["--out", str(tmp_path / "two"), "--strategy", "ddp", "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (np.loadtxt(folder / "losses.csv", delimiter=",", skiprows=1) for folder in (finished, tmp_path / "two"))
    np.testing.assert_allclose(two, one, rtol=2e-5)
    assert load(tmp_path / "two").config.training["processes"] == 2


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = loop.Fabric(accelerator="cpu", devices=1)
    monkeypatch.setattr(type(fabric), "world_size", property(lambda self: 3))
    with pytest.raises(HomeostatError, match="batch of 8 does not divide over 3"):
        train(RECIPE, tmp_path, fabric=fabric)


def test_a_loss_that_is_not_finite_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def loss(self: PrefixSums, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return outputs.flatten(1).mean(1) * (float("nan") if calls == 6 else 1)

    monkeypatch.setattr(PrefixSums, "loss", loss)
    with pytest.raises(HomeostatError, match="training step 6 of 12 has loss nan") as caught:
        train(RECIPE, tmp_path, checkpoint_every=4)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "training.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_training_never_sees_a_test_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = get_task("mazes"), []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(task, name)

        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return task.loss(outputs, targets)

        def sample(self, *args: Any, **options: Any) -> Any:
            batch = task.sample(*args, **options)
            seen.append(batch.inputs)
            return batch

    monkeypatch.setattr(loop, "training_task", lambda recipe: Spy())
    recipe = Recipe(
        task=TaskReference(name="mazes"),
        model=RecallConfig.of(Mazes(), width=4),
        depth=FixedDepth(steps=1),
        steps=6,
        batch=32,
        sizes=(2, 3),
        growth=1,
    )
    train(recipe, tmp_path)
    assert sum(len(inputs) for inputs in seen) == 6 * 32
    assert not any(task.in_test_split(inputs).any() for inputs in seen)
    test = task.sample(3, 32, split="test", seed=0).inputs
    assert task.in_test_split(test).all()


@pytest.mark.filterwarnings("ignore::homeostat.errors.ConvergenceWarning")  # its first solves stop early
def test_the_implicit_gradient_trains(tmp_path: Path) -> None:
    recipe = Recipe(
        task=TaskReference(name="prefix-sums"),
        model=RecallConfig.of(PrefixSums(), width=8),
        depth=FixedDepth(steps=12),
        gradient="implicit",
        optimiser=Optimiser(learning_rate=1e-2),
        steps=30,
        batch=16,
        sizes=(2,),
    )
    losses: list[float] = []
    train(recipe, tmp_path, on_step=lambda event: losses.append(event.loss))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def no_room(*args: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, finished: Path
) -> None:
    kept: list[bytes] = []

    def fill(event: TrainingEvent) -> None:
        if event.step == 4:
            kept.append((tmp_path / "training.safetensors").read_bytes())
            monkeypatch.setattr(os, call, no_room)

    with pytest.raises(OutputError, match="No space left on device"):
        train(RECIPE, tmp_path, checkpoint_every=4, on_step=fill)
    assert (tmp_path / "training.safetensors").read_bytes() == kept[0]
    assert {path.name for path in tmp_path.iterdir()} <= {"training.safetensors", ".lock"}
    monkeypatch.undo()
    train(RECIPE, tmp_path)
    assert weights(tmp_path) == weights(finished)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write to"):
        train(RECIPE, tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_task_without_a_default_network_needs_a_model(tmp_path: Path) -> None:
    recipe = Recipe(task=TaskReference(name="matrix-inversion"), depth=FixedDepth(steps=1), steps=1, sizes=(2,))
    with pytest.raises(InputError, match="names no model, and matrix-inversion has no default one"):
        train(recipe, tmp_path)
