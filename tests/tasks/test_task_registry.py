"""Tasks are found by name, and mistakes in names and options list what exists."""

import pytest

from homeostat.errors import InputError
from homeostat.tasks import (
    TASKS,
    BlurryDigits,
    EdgeCopy,
    FewShotCharacters,
    FewShotDigits,
    FewShotTask,
    Images,
    LabelTask,
    MatrixInversion,
    Mazes,
    MiniImageNet,
    Omniglot,
    PrefixSums,
    PuzzleTask,
    Sinusoids,
    Sudoku,
    Text,
    get_task,
)


def test_names():
    assert {name: type(get_task(name)) for name in TASKS} == {
        "prefix-sums": PrefixSums,
        "mazes": Mazes,
        "sudoku": Sudoku,
        "matrix-inversion": MatrixInversion,
        "edge-copy": EdgeCopy,
        "blurry-digits": BlurryDigits,
        "images": Images,
        "text": Text,
        "few-shot-characters": FewShotCharacters,
        "few-shot-digits": FewShotDigits,
        "omniglot": Omniglot,
        "mini-imagenet": MiniImageNet,
        "sinusoids": Sinusoids,
    }
    assert get_task("prefix_sums") == PrefixSums()
    assert get_task("mazes", percolation=0.2, paths="any") == Mazes(percolation=0.2, paths="any")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("maze", {}, f"unknown task 'maze': it is one of {', '.join(TASKS)}"),
        (
            "mazes",
            {"loops": 1},
            "task mazes has no option 'loops': it has percolation, paths, dead_end_start, longest_of",
        ),
        ("prefix-sums", {"base": 3}, "task prefix-sums has no option 'base': it has none"),
        ("mazes", {"percolation": -1}, "percolation -1 is not a probability: a number from 0 to 1"),
    ],
)
def test_mistakes(name, options, message):
    with pytest.raises(InputError) as caught:
        get_task(name, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", TASKS)
def test_what_every_task_declares(name):
    task = get_task(name)
    assert task.summary
    assert task.size_name
    assert list(task.sizes) == sorted(task.sizes, reverse=isinstance(task, FewShotTask))  # more shots are easier
    if isinstance(task, Omniglot | MiniImageNet):  # the user's own pictures
        with pytest.raises(InputError, match=f"there is no folder {name} .*; nothing is downloaded"):
            task.sample(task.sizes[0], 3, split="test", seed=0)
        return
    batch = task.sample(task.sizes[0], 3, split="test", seed=0)
    assert len(batch) == 3
    if isinstance(task, LabelTask):
        assert batch.inputs.shape[:2] == (3, task.in_channels)
        assert batch.inputs.dim() == 2 + task.spatial_dims
    if not isinstance(task, PuzzleTask):
        return
    codes = task.cells(batch.inputs[0], batch.targets[0].clamp(min=0), batch.targets[0])
    assert codes.ndim == 2
    assert codes.max() < len(task.legend.labels)
