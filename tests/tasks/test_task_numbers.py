"""Options of tasks take NumPy's numbers and keep them as plain ones: they are written into checkpoints as JSON."""

import dataclasses
import json

import numpy as np
import pytest

from homeostat.errors import InputError
from homeostat.tasks import get_task

half, three = np.float32(0.5), np.int64(3)


@pytest.mark.parametrize(
    ("name", "options", "plain"),
    [
        ("mazes", {"percolation": half, "longest_of": three}, {"percolation": 0.5, "longest_of": 3}),
        ("sudoku", {"givens": three}, {"givens": 3}),
        ("matrix-inversion", {"side": three, "tolerance": half}, {"side": 3, "tolerance": 0.5}),
        ("sinusoids", {"queries": three, "phase": (half, three)}, {"queries": 3, "phase": (0.5, 3.0)}),
        ("edge-copy", {"degree": three, "tolerance": half}, {"degree": 3, "tolerance": 0.5}),
        ("blurry-digits", {"noise": half}, {"noise": 0.5}),
    ],
)
def test_numpy_numbers_in_a_task(name, options, plain):
    made = get_task(name, **options)
    assert made == get_task(name, **plain)
    json.dumps(dataclasses.asdict(made))
    with pytest.raises(InputError):
        get_task(name, **{key: np.bool_(True) for key in options})
