"""Edge copy: its graphs, its split and its checker, against definitions spelled out."""

import numpy as np
import pytest
import torch

from homeostat.errors import InputError
from homeostat.tasks import EdgeCopy
from homeostat.tasks.split import in_split, instance_hash

THIN = EdgeCopy(degree=3)


def test_complete_graphs_have_every_ordered_pair_once():
    inputs, targets = EdgeCopy(identifiers=5).sample(4, 6, split="train", seed=0)
    pairs = [(i, j) for i in range(4) for j in range(4)]
    for edges in inputs["edges"]:
        assert [tuple(pair) for pair in edges.T.tolist()] == pairs
    assert inputs["features"].shape == targets.shape == (6, 16, 1)
    assert inputs["nodes"].shape == (6, 4, 5)
    assert torch.equal(inputs["features"], targets)


def test_every_node_of_a_thin_graph_has_that_many_sources():
    inputs, _ = THIN.sample(7, 50, split="train", seed=1)
    assert inputs["edges"].shape == (50, 2, 21)
    for sources, targets in inputs["edges"].tolist():
        assert sorted(targets) == sorted(list(range(7)) * 3)
        assert len(set(zip(sources, targets, strict=True))) == 21


def test_sources_of_thin_graphs_are_chosen_evenly():
    inputs, _ = THIN.sample(7, 2_000, split="train", seed=2)
    sources, targets = inputs["edges"].unbind(1)
    counts = torch.zeros(7, 7).index_put_((sources.flatten(), targets.flatten()), torch.ones(()), accumulate=True)
    # Each of the 49 pairs is an edge with chance 3/7: five standard deviations of 2,000 draws.
    assert (counts - 2_000 * 3 / 7).abs().max() < 5 * np.sqrt(2_000 * 3 / 7 * 4 / 7)


def test_features_and_identifiers_are_uniform():
    inputs, _ = EdgeCopy().sample(10, 200, split="train", seed=3)
    for values in (inputs["features"], inputs["nodes"]):
        values = values.double().flatten()
        assert values.abs().max() < 1
        places = values.sort().values
        uniform = torch.linspace(-1, 1, len(values), dtype=torch.float64)
        # Kolmogorov-Smirnov on -1 to 1: twice the distance of distribution functions, at p about 1e-6.
        assert (places - uniform).abs().max() < 2 * 2.7 / np.sqrt(len(values))
    assert abs(float(torch.corrcoef(torch.stack([inputs["features"][:, 0, 0], inputs["nodes"][:, 0, 0]]))[0, 1])) < 0.35


@pytest.mark.parametrize("task", [EdgeCopy(), THIN, EdgeCopy(identifiers=2)], ids=repr)
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_split_is_a_hash_of_what_the_network_sees(task, split):
    inputs, _ = task.sample(5, 40, split=split, seed=4)
    # Features are odd multiples of 2**-24: this takes the 24 bits back out of the tensor.
    bits = ((inputs["features"].double() + 1) * 2**23 - 0.5)[..., 0].numpy()
    assert (bits == bits.round()).all()
    edges = inputs["edges"].numpy()
    packed = (edges[:, 0] * 2**48 + edges[:, 1] * 2**32 + bits.astype(np.int64)).astype("<u8")
    hashes = instance_hash(np.unpackbits(packed.view(np.uint8), axis=1, bitorder="little").astype(bool))
    assert in_split(hashes, split).all()


@pytest.mark.parametrize("task", [EdgeCopy(), THIN], ids=repr)
def test_samples_begin_the_same_however_many_are_drawn(task):
    few, more = (task.sample(6, count, split="test", seed=5) for count in (3, 40))
    for name, values in few.inputs.items():
        assert torch.equal(values, more.inputs[name][:3]), name
    assert not torch.equal(few.targets, task.sample(6, 3, split="test", seed=6).targets)
    assert not torch.equal(few.targets, task.sample(6, 3, split="train", seed=5).targets)


def test_the_judgement_by_hand():
    task = EdgeCopy(tolerance=0.25)
    targets = torch.zeros(3, 4, 1)
    outputs = torch.tensor([[0.25, -0.25, 0, 0], [0.26, 0, 0, 0], [1, 1, -1, float("nan")]])[..., None]
    assert task.correct(outputs, targets).tolist() == [True, False, False]
    assert task.symbols(outputs, targets).tolist() == [1, 0.75, 0]
    torch.testing.assert_close(task.loss(outputs[:2], targets[:2]), torch.tensor([2 * 0.0625 / 4, 0.26**2 / 4]))
    assert task.loss(outputs, targets)[2].isnan()


def test_zeros_cost_a_third():
    _, targets = EdgeCopy().sample(10, 300, split="test", seed=7)
    loss = EdgeCopy().loss(torch.zeros_like(targets), targets)
    # The variance of a square of a uniform number is 4/45.
    assert abs(float(loss.mean()) - 1 / 3) < 5 * np.sqrt(4 / 45 / targets.numel())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degree": 0}, "degree 0 is impossible: None, or a whole number from 1 to 1,024"),
        ({"degree": 2.5}, "degree 2.5 is impossible: None, or a whole number from 1 to 1,024"),
        ({"identifiers": 0}, "identifiers 0 is impossible: a whole number from 1 to 1,024"),
        ({"tolerance": 0}, "tolerance 0 is impossible: an error above 0, such as 0.1"),
        ({"tolerance": float("nan")}, "tolerance nan is impossible: an error above 0, such as 0.1"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(InputError) as caught:
        EdgeCopy(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(("task", "size"), [(EdgeCopy(), 1), (EdgeCopy(), 1_025), (THIN, 2)])
def test_impossible_sizes(task, size):
    least = 3 if task is THIN else 2
    with pytest.raises(InputError, match=f"size {size} is impossible for edge-copy: {least} to 1,024 nodes"):
        task.sample(size, 1, split="train", seed=0)
