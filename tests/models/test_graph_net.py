"""The graph network against its formulas, written out edge by edge."""

import sys

import pytest
import torch
from pydantic import ValidationError

import homeostat as hs
from homeostat.errors import InputError
from homeostat.models import GraphConfig, GraphNet, Noise, Own
from homeostat.tasks import EdgeCopy

TASKS = [EdgeCopy(identifiers=3), EdgeCopy(identifiers=3, degree=2)]


def net(**changes) -> GraphNet:
    torch.manual_seed(0)
    model = GraphNet(GraphConfig(**{"features": 1, "identifiers": 3, "width": 6, "memory": 2} | changes)).double()
    torch.nn.init.normal_(model.keep.weight, std=0.3)
    return model


def inputs_of(task: EdgeCopy, size: int = 4, count: int = 3) -> dict[str, torch.Tensor]:
    inputs = task.sample(size, count, split="train", seed=0).inputs
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


def by_hand(model: GraphNet, state: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """One step of every graph, one edge after the other."""
    found = torch.zeros_like(state)
    for row, edges in enumerate(inputs["edges"].mT.tolist()):
        p = model.identify(inputs["nodes"][row])
        for number, (source, target) in enumerate(edges):
            arriving = [k for k, (_, t) in enumerate(edges) if t == target]
            loud = quiet = 0.0
            for k in arriving:
                wrong = inputs["features"][row, k] - state[row, k, :1]
                said = model.tell.weight @ torch.cat([wrong, state[row, k, 1:]])
                loud += torch.relu(p[edges[k][0]] + said) / len(arriving)
                quiet += torch.relu(p[edges[k][0]]) / len(arriving)
            mix = model.convolution.nn.weight
            heard = mix @ (loud + p[target]) - mix @ (quiet + p[target])
            read = model.read.weight @ (model.gate(p[source]) * heard)
            kept = model.keep.weight @ state[row, number, 1:]
            kept[0] += state[row, number, 0]
            found[row, number] = (kept + read).clamp(-1, 1)
    return found


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_step_is_what_its_formula_says(task):
    model, inputs = net(), inputs_of(task)
    context = model.encode(inputs)
    state = torch.rand(3, inputs["features"].shape[1], 3, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model.step(state, context), by_hand(model, state, inputs))
    assert torch.equal(model.decode(state, context), state[..., :1])


def test_the_right_answer_is_a_fixed_point():
    model, inputs = net(), inputs_of(TASKS[0])
    state = torch.cat([inputs["features"], torch.zeros(3, 16, 2)], dim=2)
    torch.testing.assert_close(model.step(state, model.encode(inputs)), state, rtol=0, atol=1e-14)


def test_an_edge_hears_of_its_feature_through_its_target_node_alone():
    model, inputs = net(), inputs_of(TASKS[0])
    features = inputs["features"].clone().requires_grad_()
    context = model.encode(inputs | {"features": features})
    state = model.initial_state(context, Own())
    answer = model.decode(model.step(state, context), context)
    (gradient,) = torch.autograd.grad(answer[1, 4 * 2 + 3, 0], features)  # the edge from node 2 to node 3 of graph 1
    reached = {(row, *inputs["edges"][row, :, k].tolist()) for row, k, _ in gradient.nonzero().tolist()}
    assert reached == {(1, source, 3) for source in range(4)}
    torch.nn.init.zeros_(model.convolution.nn.weight)  # nodes that hear nothing
    context = model.encode(inputs)
    assert (model.step(state, context) == 0).all()


def test_names_of_nodes_and_order_of_edges_do_not_matter():
    model, inputs = net(), inputs_of(TASKS[0], size=5)
    names, order = torch.randperm(5), torch.randperm(25)
    other = {
        "edges": names[inputs["edges"]][:, :, order],
        "features": inputs["features"][:, order],
        "nodes": inputs["nodes"][:, names.argsort()],
    }
    state = torch.rand(3, 25, 3, dtype=torch.float64)
    there = model.step(state[:, order], model.encode(other))
    torch.testing.assert_close(there, model.step(state, model.encode(inputs))[:, order])


def test_rows_that_leave_take_their_graph_with_them():
    model, inputs = net(), inputs_of(TASKS[1], size=6, count=4)
    context = model.encode(inputs)
    limits = torch.tensor([1, 5, 3, 2])
    with torch.no_grad():
        start = model.initial_state(context, Noise())
        stop = hs.Stop(rtol=0, max_steps=limits)
        together = hs.solve(model.step, start, context, method=hs.Picard(), stop=stop).state
        for row, limit in enumerate(limits.tolist()):
            alone = {name: x[row : row + 1] for name, x in context.items()}
            state = start[row : row + 1]
            for _ in range(limit):
                state = model.step(state, alone)
            torch.testing.assert_close(together[row : row + 1], state)


def test_states_are_bounded():
    model, inputs = net(), inputs_of(TASKS[0])
    context = model.encode(inputs)
    assert model.step(100 * model.initial_state(context, Noise()), context).abs().max() == 1


def test_sizes_of_a_task():
    assert GraphConfig.of(EdgeCopy(identifiers=7), width=9, memory=2) == GraphConfig(
        features=1, identifiers=7, width=9, memory=2
    )


@pytest.mark.parametrize("change", [{"features": 0}, {"identifiers": 0}, {"width": 0}, {"memory": 0}, {"depth": 2}])
def test_impossible_sizes(change):
    with pytest.raises(ValidationError):
        net(**change)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)  # what Python takes for "not there"
    with pytest.raises(InputError) as caught:
        net()
    assert str(caught.value) == (
        "graph networks need PyTorch Geometric, which is not installed: pip install 'homeostat[graphs]'"
    )
