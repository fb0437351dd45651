"""Deep-thinking nets: against sums written out, and their files in the layout of their repository."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from homeostat.errors import CheckpointError, ContractError
from homeostat.models import Own, Projection
from homeostat.models.adapters import DeepThinkingNet, load_deep_thinking

WIDTH = 8


def state_dict(dims: int, *, recall: bool, channels: int = 2, prefix: str = "") -> dict[str, Tensor]:
    """The names of the repository, with random weights."""
    draw = torch.Generator().manual_seed(dims)

    def kernel(outputs: int, inputs: int) -> Tensor:
        return torch.randn(outputs, inputs, *[3] * dims, generator=draw) / (inputs * 3**dims) ** 0.5

    block = {(1, True): 2, (2, True): 1, (1, False): 0, (2, False): 0}[dims, recall]
    heads = {1: (WIDTH, WIDTH // 2), 2: (32, 8)}[dims]
    made = {"projection.0.weight": kernel(WIDTH, channels)}
    if recall:
        made["recur_block.0.weight"] = kernel(WIDTH, WIDTH + channels)
    for j, name in product(range(2), ("conv1", "conv2")):
        made[f"recur_block.{block}.{j}.{name}.weight"] = kernel(WIDTH, WIDTH)
    sizes = (WIDTH, *heads, 2)
    made |= {f"head.{2 * i}.weight": kernel(sizes[i + 1], sizes[i]) for i in range(3)}
    return {prefix + key: value for key, value in made.items()}


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A convolution of one example with zeros around it, as sums over the entries of the kernel."""
    dims = x.ndim - 1
    padded = np.pad(x, [(0, 0)] + [(1, 1)] * dims)
    found = np.zeros((len(kernel), *x.shape[1:]))
    for shift in product(range(3), repeat=dims):
        window = padded[(slice(None), *(slice(s, s + n) for s, n in zip(shift, x.shape[1:], strict=True)))]
        found += np.tensordot(kernel[(slice(None), slice(None), *shift)], window, axes=1)
    return found


def grouped(x: np.ndarray) -> np.ndarray:
    """Every quarter of the channels at mean 0 and variance 1."""
    groups = x.reshape(4, -1)
    groups = groups - groups.mean(1, keepdims=True)
    return (groups / np.sqrt((groups**2).mean(1, keepdims=True) + 1e-5)).reshape(x.shape)


def reference(weights: dict[str, np.ndarray], x: np.ndarray, steps: int, group_norm: bool) -> list[np.ndarray]:
    """The outputs after every step, for one example."""
    relu = lambda a: np.maximum(a, 0)  # noqa: E731
    norm = grouped if group_norm else lambda a: a
    thought = relu(convolved(x, weights["projection.0.weight"]))
    found = []
    for _ in range(steps):
        if "recur_block.0.weight" in weights:
            thought = convolved(np.concatenate([thought, x]), weights["recur_block.0.weight"])
            thought = relu(thought) if x.ndim == 2 else thought  # in two dimensions none follows
        for j in range(2):
            name = f".{j}.conv"
            first, second = (weights[key] for key in sorted(weights) if "recur" in key and name in key)
            thought = relu(thought + norm(convolved(relu(norm(convolved(thought, first))), second)))
        head = relu(convolved(thought, weights["head.0.weight"]))
        head = relu(convolved(head, weights["head.2.weight"]))
        found.append(convolved(head, weights["head.4.weight"]))
    return found


@pytest.mark.parametrize(("recall", "group_norm"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("dims", [1, 2])
def test_every_step_is_that_of_the_sums_written_out(dims: int, recall: bool, group_norm: bool, tmp_path: Path) -> None:
    made = state_dict(dims, recall=recall, prefix="module.")
    torch.save({"net": made, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "model_best.pth")
    net = load_deep_thinking(tmp_path / "model_best.pth", trained_steps=30, group_norm=group_norm).double()
    assert (net.recall, net.trained_steps, net.unit_cost) == (recall, 30, 1.0)
    x = torch.rand(2, 2, *([9] if dims == 1 else [5, 6]), dtype=torch.float64)
    weights = {key.removeprefix("module."): value.double().numpy() for key, value in made.items()}
    expected = [reference(weights, one, 3, group_norm) for one in x.numpy()]
    with torch.no_grad():
        state = net.initial_state(x, Own())
        for step in range(3):
            state = net.step(state, x)
            found = net.decode(state, x)
            assert found.shape == (2, 2, *x.shape[2:])
            np.testing.assert_allclose(found.numpy(), np.stack([one[step] for one in expected]), rtol=1e-10, atol=1e-12)


def test_the_projection_is_where_it_starts() -> None:
    net = DeepThinkingNet(dims=1, channels=1, width=WIDTH)
    x = torch.rand(3, 1, 10)
    assert torch.equal(net.initial_state(x, Own()), net.initial_state(x, Projection()))


@pytest.mark.parametrize("recall", [True, False])
def test_the_light_cone_is_exact(recall: bool) -> None:
    net = DeepThinkingNet(dims=1, channels=1, width=WIDTH, recall=recall).double()
    for parameter in net.parameters():  # so that nothing cancels out, and everything that can be heard is
        torch.nn.init.constant_(parameter, 0.1)
    span = 30
    x = torch.zeros(1, 1, 40, dtype=torch.float64)
    moved = x.clone()
    moved[0, 0, 0] = 1.0
    with torch.no_grad():
        states = [net.initial_state(one, Own()) for one in (x, moved)]
        steps = 0
        while torch.equal(*(net.decode(state, one)[..., span] for state, one in zip(states, (x, moved), strict=True))):
            states = [net.step(state, one) for state, one in zip(states, (x, moved), strict=True)]
            steps += 1
    assert steps == net.light_cone(span)


def test_answers_are_judged_cell_by_cell() -> None:
    net = DeepThinkingNet(dims=1, channels=1, width=WIDTH)
    outputs = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    assert net.answers(outputs).tolist() == [[1, 0]]
    assert net.correct(outputs, torch.tensor([[1, 0]])).tolist() == [True]
    assert net.symbols(outputs, torch.tensor([[1, 1]])).tolist() == [0.5]


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    def changed(**changes: Tensor | None) -> None:
        made = {**state_dict(1, recall=True), **{key.replace("__", "."): value for key, value in changes.items()}}
        torch.save({"net": {k: v for k, v in made.items() if v is not None}}, tmp_path / "x")
        load_deep_thinking(tmp_path / "x")

    with pytest.raises(CheckpointError, match=r"has no projection\.0\.weight and head, and is no deep-thinking net"):
        changed(projection__0__weight=None)
    with pytest.raises(CheckpointError, match=r"missing: recur_block\.2\.1\.conv2\.weight \(8, 8, 3\)"):
        changed(recur_block__2__1__conv2__weight=None)
    with pytest.raises(CheckpointError, match=r"wrong shape: head\.4\.weight is \(3, 4, 3\), not \(2, 4, 3\)"):
        changed(head__4__weight=torch.ones(3, 4, 3))
    with pytest.raises(CheckpointError, match=r"unexpected: more \(1,\)"):
        changed(more=torch.ones(1))
    with pytest.raises(ContractError, match="group_norm needs a width that 4 divides, not 6"):
        DeepThinkingNet(dims=1, channels=1, width=6, group_norm=True)
    with pytest.raises(ContractError, match="dims must be 1 or 2"):
        DeepThinkingNet(dims=3, channels=1, width=8)
