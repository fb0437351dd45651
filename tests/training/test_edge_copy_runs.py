"""Edge copy from training to audit: inputs that are a nest of tensors go all the way."""

from pathlib import Path

import pytest
import torch

from homeostat.errors import ConvergenceWarning
from homeostat.models import GraphConfig, load
from homeostat.studies.task_audit import audit_checkpoint
from homeostat.tasks import EdgeCopy, get_task
from homeostat.training import get_recipe, train


def small(**changes):
    model = GraphConfig.of(EdgeCopy(), width=6, memory=2)
    return get_recipe("edge-copy").model_copy(update={"steps": 3, "batch": 4, "model": model} | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    train(small(), folder)
    return folder


def test_a_killed_training_goes_on_exactly(run, tmp_path):
    class Killed(Exception):
        pass

    def kill(event):
        if event.step == 2:
            raise Killed

    with pytest.raises(Killed):
        train(small(), tmp_path, checkpoint_every=1, on_step=kill)
    resumed = train(small(), tmp_path).model.state_dict()
    for name, value in load(run).model.state_dict().items():
        assert torch.equal(value, resumed[name]), name


def test_implicit_gradients_train_too(tmp_path):
    with pytest.warns(ConvergenceWarning, match="unconverged"):  # fresh weights do not settle
        train(small(gradient="implicit", steps=1), tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_an_audit_judges_every_edge(run):
    found = audit_checkpoint(load(run), get_task("edge-copy"), {3: 5, 4: 4}, steps=[1, 8])
    assert [d.name for d in found.difficulties] == ["3 nodes", "4 nodes"]
    assert [d.count for d in found.difficulties] == [5, 4]
    easy = found.difficulty("3 nodes")
    assert {a.start for a in easy.alignments} == {"noise", "swapped"}
    assert all(a.cosine.count == 5 for a in easy.alignments)
    assert easy.budgets[-1].symbol is not None
    assert easy.budgets[-1].loss is not None


def test_the_recipes_differ_in_starts_and_depths_alone():
    one, other = (get_recipe(name).model_dump() for name in ("edge-copy", "edge-copy-fixed"))
    assert {key for key in one if one[key] != other[key]} == {"name", "description", "start", "depth"}
