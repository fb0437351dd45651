"""Matrix inversion against exact rational arithmetic, and a split that no ridge and no column order gets around."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from homeostat.errors import InputError
from homeostat.tasks import MatrixInversion
from homeostat.tasks.matrix_inversion import _hash
from homeostat.tasks.split import in_split

TASK = MatrixInversion()


def exact_inverse(matrix: torch.Tensor) -> np.ndarray:
    """Gauss-Jordan elimination in fractions: no rounding until the end."""
    n = len(matrix)
    rows = [[Fraction(x) for x in row] + [Fraction(i == j) for j in range(n)] for i, row in enumerate(matrix.tolist())]
    for i in range(n):
        pivot = rows[i][i]  # positive: the matrix is positive definite
        rows[i] = [x / pivot for x in rows[i]]
        for j in range(n):
            if j != i:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], rows[i], strict=True)]
    return np.array([[float(x) for x in row[n:]] for row in rows])


@pytest.mark.parametrize("size", [1, 2, 10, 1000])
def test_targets_are_the_inverses(size):
    inputs, targets = TASK.sample(size, 3, split="train", seed=size)
    assert (inputs.shape, inputs.dtype) == ((3, 10, 10), torch.float32)
    assert (targets.shape, targets.dtype) == ((3, 10, 10), torch.float32)
    for matrix, target in zip(inputs, targets, strict=True):
        truth = exact_inverse(matrix)
        assert np.linalg.norm(target.numpy() - truth) < 1e-6 * np.linalg.norm(truth)


def test_the_distribution_of_the_inputs():
    size, count = 4, 4_000
    inputs = TASK.sample(size, count, split="train", seed=0).inputs.double()
    assert torch.equal(inputs, inputs.mT)
    assert float(torch.linalg.eigvalsh(inputs)[:, 0].min()) >= 1 / size - 1e-5
    # E[A_ik A_jk] is 1/3 on the diagonal, so that E[2 R + r I] = 20/3 + r there and 0 elsewhere; var(A^2) = 4/45.
    mean = inputs.mean(0)
    assert (mean.diagonal() - (20 / 3 + 1 / size)).abs().max() < 5 * 2 * (10 * 4 / 45 / count) ** 0.5
    assert (mean - mean.diagonal().diag()).abs().max() < 5 * 2 * (10 / 9 / count) ** 0.5


def test_the_dial_makes_condition_numbers_worse():
    medians = []
    for size in (1, 2, 5, 10, 20):
        inputs = TASK.sample(size, 2_000, split="train", seed=3).inputs.double()
        medians.append(float(torch.linalg.cond(inputs).median()))
    assert medians == pytest.approx([20, 38, 87, 158, 267], rel=0.05)  # as the docstring says


def test_the_beginning_of_a_sample_does_not_depend_on_its_length():
    few, more = (TASK.sample(2, count, split="test", seed=4).inputs for count in (3, 40))
    assert torch.equal(few, more[:3])
    assert not torch.equal(few, TASK.sample(2, 3, split="test", seed=5).inputs)


def test_a_matrix_of_the_test_split_is_trained_on_with_no_ridge():
    task = MatrixInversion(side=1)  # R is the square of one number of 23 bits: meetings are possible
    grams = {}
    for split in ("train", "test"):
        found = [task._gram(np.arange(20_000, dtype=np.uint64) + np.uint64(20_000 * seed)) for seed in range(2)]
        gram = np.concatenate(found)
        grams[split] = gram[in_split(_hash(gram), split)]
    assert not np.isin(grams["train"], grams["test"]).any()
    assert len(grams["test"]) / 40_000 == pytest.approx(1 / 8, rel=0.1)
    for size in (2, 10):
        batch = MatrixInversion(side=3).sample(size, 200, split="train", seed=0).inputs.double()
        other = MatrixInversion(side=3).sample(2, 200, split="test", seed=0).inputs.double()
        ridgeless = [x - torch.eye(3, dtype=torch.float64) / s for x, s in ((batch, size), (other, 2))]
        assert float((ridgeless[0][:, None] - ridgeless[1]).abs().amax((2, 3)).min()) > 1e-5


def test_the_split_is_a_property_of_r_alone():
    factor = TASK._gram(np.arange(1, dtype=np.uint64))  # any exact matrix will do as a factor
    factor = np.round(factor * 2**10) / 2**10
    shuffled = factor[:, :, ::-1] * np.where(np.arange(10) % 2, -1, 1)
    one, other = (x @ x.swapaxes(1, 2) for x in (factor, shuffled))
    assert np.array_equal(_hash(one), _hash(other))
    assert not np.array_equal(_hash(one), _hash(2 * one))


def test_products_are_exact_in_any_order():
    keys = np.arange(2, dtype=np.uint64)
    gram = MatrixInversion(side=64)._gram(keys)
    scaled = gram * 2.0**44
    assert np.array_equal(scaled, np.round(scaled))
    assert np.abs(scaled).max() < 2**53


def test_judging():
    targets = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]] * 4)  # Frobenius norm 5, RMS 2.5
    outputs = targets.clone()
    outputs[1, 0, 1] = 0.04
    outputs[2, 0, 1] = 0.06
    outputs[3] = float("nan")
    assert TASK.correct(outputs, targets).tolist() == [True, True, False, False]
    assert TASK.symbols(outputs, targets).tolist() == [1.0, 0.75, 0.75, 0.0]
    assert MatrixInversion(tolerance=0.02).symbols(outputs, targets).tolist() == [1.0, 1.0, 0.75, 0.0]
    assert TASK.error(outputs, targets)[:3].tolist() == pytest.approx([0, 0.008, 0.012])
    assert TASK.loss(outputs, targets)[:3].tolist() == pytest.approx([0, 0.0004, 0.0009])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 0}, "side 0 is impossible: a whole number from 1 to 64"),
        ({"side": 65}, "side 65 is impossible: a whole number from 1 to 64"),
        ({"side": 2.5}, "side 2.5 is impossible: a whole number from 1 to 64"),
        ({"tolerance": 0}, "tolerance 0 is impossible: a relative error above 0, such as 0.01"),
        ({"tolerance": float("nan")}, "tolerance nan is impossible: a relative error above 0, such as 0.01"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(InputError) as caught:
        MatrixInversion(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize("size", [0, -1, 1001])
def test_impossible_ridges(size):
    with pytest.raises(InputError, match=f"size {size} is impossible for matrix-inversion: 1 to 1,000, the inverse r"):
        TASK.sample(size, 1, split="train", seed=0)
