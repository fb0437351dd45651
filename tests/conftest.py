"""Small checkpoints that many tests use, trained once."""

from pathlib import Path

import pytest

from homeostat.models import RecallConfig
from homeostat.models.checkpoint import TaskReference
from homeostat.tasks import Mazes, PrefixSums
from homeostat.training import FixedDepth, Recipe, train


@pytest.fixture(scope="session")
def bits_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix-sum model that has hardly learned anything."""
    recipe = Recipe(
        name="tiny-bits",
        task=TaskReference(name="prefix-sums"),
        model=RecallConfig.of(PrefixSums(), width=6),
        depth=FixedDepth(steps=4),
        steps=3,
        batch=8,
        sizes=(8,),
    )
    folder = tmp_path_factory.mktemp("bits")
    train(recipe, folder)
    return folder


@pytest.fixture(scope="session")
def maze_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A maze model that has hardly learned anything."""
    recipe = Recipe(
        name="tiny-mazes",
        task=TaskReference(name="mazes"),
        model=RecallConfig.of(Mazes(), width=6),
        depth=FixedDepth(steps=4),
        steps=2,
        batch=4,
        sizes=(3,),
        predict_steps=3,
    )
    folder = tmp_path_factory.mktemp("mazes")
    train(recipe, folder)
    return folder
