"""Checkpoints: a round trip, and every way in which one can be wrong. Nothing in one is ever executed."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from homeostat.errors import CheckpointError, OutputError
from homeostat.models import CheckpointConfig, Own, RecallConfig, RecallNet, load, save
from homeostat.models.checkpoint import TaskReference, build

CONFIG = CheckpointConfig(
    name="small",
    model=RecallConfig(spatial_dims=1, in_channels=1, classes=2, width=4),
    task=TaskReference(name="prefix-sums", options={"bits": 32}),
    trained_steps=20,
    predict_steps=1.5,
    training={"seed": 3, "recipe": "path-independent"},
)


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    return save(build(CONFIG), CONFIG, tmp_path / "deep" / "checkpoint")


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other weights, with a checksum that fits them."""
    save_file(tensors, folder / "model.safetensors")
    edit(folder, sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("what", ["", "model.safetensors", "config.json"])
def test_a_round_trip(folder, what):
    torch.manual_seed(0)
    model = build(CONFIG)
    found = load(folder / what)
    assert not found.model.training
    assert found.config == CONFIG.model_copy(update={"sha256": found.config.sha256})
    assert (found.model.name, found.model.trained_steps) == ("small", 20)
    for name, value in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name
    context = found.model.encode(torch.ones(1, 1, 9))
    assert torch.isfinite(found.model.step(found.model.initial_state(context, Own()), context)).all()
    assert "small: prefix-sums" in repr(found)


def test_saving_is_deterministic(folder, tmp_path):
    torch.manual_seed(0)
    again = save(build(CONFIG), CONFIG, tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_truncated_file(folder, name, share):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=rf"{name} is truncated") as error:
        load(folder)
    one_line(error)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version(folder, version):
    edit(folder, format=version)
    with pytest.raises(CheckpointError, match=r"has format .*; this version of homeostat reads format 1"):
        load(folder)


def test_a_configuration_of_another_kind(folder):
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match="has format None"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"surprise": 1}, "surprise"),
        ({"trained_steps": 0}, "trained_steps"),
        ({"trained_steps": "many"}, "trained_steps"),
        ({"predict_steps": -1}, "predict_steps"),
        ({"model": {"kind": "recall", "spatial_dims": 3, "in_channels": 1, "classes": 2}}, "model.recall.spatial_dims"),
        ({"model": {"kind": "matrix", "channels": 2, "depth": 9}}, "model.matrix.depth"),
        ({"model": {"kind": "other", "spatial_dims": 1, "in_channels": 1, "classes": 2}}, "model"),
        ({"task": {"name": "x", "code": "y"}}, "task.code"),
        ({"task": None}, "task"),
    ],
)
def test_unknown_or_impossible_fields_are_named(folder, changes, where):
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=rf"config.json: {where}: ") as error:
        load(folder)
    one_line(error)


def test_edited_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.bias"] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("cell.inner.bias"), r"cell.inner.bias is missing, the configuration needs \(4,\)"),
        (lambda t: t.update(extra=torch.zeros(1)), r"extra is \(1,\), the configuration needs no such tensor"),
        (
            lambda t: t.update({"decoder.bias": torch.zeros(5)}),
            r"decoder.bias is \(5,\), the configuration needs \(2,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_their_configuration(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    replace_weights(folder, tensors)
    with pytest.raises(CheckpointError, match=message) as error:
        load(folder)
    one_line(error)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("write", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save])
def test_no_code_in_a_checkpoint_is_ever_run(folder, tmp_path, name, write):
    mark = tmp_path / "executed"
    write(Bomb(mark), folder / name)
    with pytest.raises(CheckpointError):
        load(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # the bomb would have worked


def test_missing_files(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*model.safetensors: No such file"):
        load(folder)
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json: No such file"):
        load(tmp_path)
    other = tmp_path / "weights.pt"
    other.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not a checkpoint: give the folder"):
        load(other)
    with pytest.raises(CheckpointError, match="no checkpoint at nowhere: there is no folder of that name"):
        load("nowhere")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save(RecallNet(CONFIG.model), CONFIG, tmp_path / "file" / "checkpoint")
