"""Sinusoids against the formula, their distribution, and a split that no number of shots gets around."""

import math

import numpy as np
import pytest
import torch

from homeostat.errors import InputError
from homeostat.tasks import Sinusoids, get_task
from homeostat.tasks.random_words import candidate_keys

TASK = Sinusoids()


def curves(batch) -> torch.Tensor:
    """`(batch, 2)`: amplitude and phase, found from the samples alone by least squares on sine and cosine."""
    x = torch.cat([batch.inputs["support_inputs"], batch.inputs["query_inputs"]], 1).double()
    y = torch.cat([batch.inputs["support_targets"], batch.targets], 1).double()
    both = torch.linalg.lstsq(torch.cat([x.sin(), -x.cos()], -1), y).solution[..., 0]
    return torch.stack([both.norm(dim=1), torch.atan2(both[:, 1], both[:, 0])], 1)


def test_every_sample_lies_on_one_sinusoid_of_the_distribution():
    batch = TASK.sample(10, 2000, split="train", seed=0)
    found = curves(batch)
    x = torch.cat([batch.inputs["support_inputs"], batch.inputs["query_inputs"]], 1).double()
    y = torch.cat([batch.inputs["support_targets"], batch.targets], 1).double()
    assert (found[:, :1, None] * torch.sin(x - found[:, 1:, None]) - y).abs().max() < 1e-6
    for values, low, high in ((found[:, 0], 0.1, 0.5), (found[:, 1], 0.5, math.pi), (x.flatten(), -5.0, 5.0)):
        assert low - 1e-5 <= values.min() <= low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) <= values.max() <= high + 1e-5
        error = (high - low) / math.sqrt(12 * len(values))
        assert abs(values.mean() - (low + high) / 2) < 4 * error


def test_shapes_and_types():
    inputs, targets = Sinusoids(queries=7).sample(3, 5, split="test", seed=1)
    assert {name: tuple(x.shape) for name, x in inputs.items()} == {
        "support_inputs": (5, 3, 1),
        "support_targets": (5, 3, 1),
        "query_inputs": (5, 7, 1),
    }
    assert tuple(targets.shape) == (5, 7, 1)
    assert {x.dtype for x in (*inputs.values(), targets)} == {torch.float32}


def test_samples_are_reproducible_and_begin_alike():
    few, many = (TASK.sample(10, n, split="train", seed=3) for n in (4, 9))
    assert torch.equal(few.targets, many.targets[:4])
    assert not torch.equal(few.targets, TASK.sample(10, 4, split="train", seed=4).targets)


def test_a_sinusoid_belongs_to_one_split_whatever_the_shots():
    keys = candidate_keys(0, 500, seed=0, size=10, split=0)
    from homeostat.tasks.sinusoids import _hash

    hashes = _hash(TASK._curves(keys))
    for size in (1, 10, 100):
        for split in ("train", "test"):
            drawn = TASK.sample(size, 64, split=split, seed=7)
            assert len(drawn) == 64
    test = (hashes % np.uint64(8) == 0).mean()
    assert 0.06 < test < 0.19
    # One bit of the phase is another sinusoid.
    curve = TASK._curves(keys)
    other = curve.copy()
    other[:, 1] = np.nextafter(other[:, 1], np.float32(9))
    assert (_hash(other) != hashes).all()


def test_the_splits_do_not_meet():
    found = [
        {tuple(row) for row in curves(TASK.sample(10, 3000, split=split, seed=0)).round(decimals=5).tolist()}
        for split in ("train", "test")
    ]
    assert len(found[0]) > 2990
    assert not found[0] & found[1]


def test_judging():
    targets = torch.zeros(3, 4, 1)
    outputs = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.19, 0.0, 0.0, 0.0], [0.3, 0.0, 0.0, 0.05]])[..., None]
    torch.testing.assert_close(TASK.loss(outputs, targets), torch.tensor([0.0, 0.19**2 / 4, (0.09 + 0.0025) / 4]))
    assert TASK.correct(outputs, targets).tolist() == [True, True, False]
    assert TASK.symbols(outputs, targets).tolist() == [1.0, 0.75, 0.75]
    assert not TASK.correct(torch.full((1, 4, 1), torch.nan), targets[:1]).any()


def test_options():
    task = get_task("sinusoids", amplitude=[0.1, 5], phase=[0, math.pi], queries=3)
    assert task == Sinusoids(amplitude=(0.1, 5.0), phase=(0.0, math.pi), queries=3)
    assert curves(task.sample(10, 300, split="train", seed=0))[:, 0].max() > 4.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "queries 0 is impossible"),
        ({"queries": True}, "queries True is impossible"),
        ({"amplitude": (0.5, 0.1)}, "amplitude (0.5, 0.1) is impossible"),
        ({"phase": 3}, "phase 3 is impossible"),
        ({"phase": (0, math.inf)}, "phase (0, inf) is impossible"),
        ({"tolerance": 0}, "tolerance 0 is impossible"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(InputError) as caught:
        Sinusoids(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("size", [0, 1001])
def test_impossible_sizes_are_named(size):
    with pytest.raises(InputError, match="1 to 1,000 shots"):
        TASK.sample(size, 1, split="train", seed=0)
