"""States and contexts as nests: what is carried, what is shared, and errors that name the leaf."""

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch

import homeostat as hs
from homeostat import Carry, Shared, Status
from homeostat.errors import ContractError

# The plain loop: what these tests say about steps and states is said of its sequence.
solve = partial(hs.solve, method=hs.Picard())


class Pair(NamedTuple):
    left: Any
    right: Any


def test_nested_states_keep_their_structure():
    start = {
        "a": (torch.zeros(3, 2), [torch.zeros(3)]),
        "b": Pair(torch.zeros(3, 1, 1), torch.zeros(3, dtype=torch.int64)),
    }

    def step(s, _):
        (x, [y]), pair = s["a"], s["b"]
        return {"a": (x / 2 + 1, [y / 4 + 1]), "b": Pair(pair.left / 3 + 1, pair.right + 1)}

    solution = solve(step, start)
    assert isinstance(solution.state["b"], Pair)
    assert isinstance(solution.state["a"], tuple)
    assert isinstance(solution.state["a"][1], list)
    torch.testing.assert_close(solution.state["a"][0], torch.full((3, 2), 2.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(solution.state["a"][1][0], torch.full((3,), 4 / 3), rtol=1e-3, atol=0)
    assert torch.equal(solution.state["b"].right, solution.steps)


def test_integer_and_boolean_leaves_travel_with_their_rows():
    gain = torch.tensor([0.9, 0.1, 0.5])[:, None]
    start = {"z": torch.zeros(3, 2), "count": torch.tensor([10, 20, 30]), "odd": torch.zeros(3, 1, dtype=torch.bool)}
    solution = solve(lambda s, c: {"z": c * s["z"] + 1, "count": s["count"] + 1, "odd": ~s["odd"]}, start, gain)
    assert len(set(solution.steps.tolist())) == 3
    assert torch.equal(solution.state["count"], torch.tensor([10, 20, 30]) + solution.steps)
    assert torch.equal(solution.state["odd"][:, 0], solution.steps % 2 == 1)


@pytest.mark.parametrize("rewrap", [False, True])
@pytest.mark.parametrize("gradient", [hs.Implicit(), hs.Unrolled(), hs.Unrolled(last=2)])
def test_a_carried_leaf_is_not_measured_and_keeps_its_mark(rewrap, gradient):
    weight = torch.tensor(0.5, requires_grad=True)

    def step(s, _):
        counted = s[1] + 1
        return weight * s[0] + 1, (Carry(counted) if rewrap else counted)

    solution = solve(step, (torch.zeros(2, 3), Carry(torch.zeros(2))), gradient=gradient)
    assert (solution.status == Status.CONVERGED).all()
    assert isinstance(solution.state[1], Carry)
    assert torch.equal(solution.state[1].value, solution.steps.float())
    again = solve(step, solution.state, gradient=gradient)  # a warm start takes the mark as it is
    assert again.steps.tolist() == [1, 1]


def test_dictionaries_may_come_back_in_another_order():
    start = {"fast": torch.zeros(2, 1), "slow": torch.ones(2, 1)}
    solution = solve(lambda s, _: {"slow": 0.5 * s["slow"] + 2, "fast": 0.1 * s["fast"] + 9}, start)
    assert solution.state["fast"][0].item() == pytest.approx(10, rel=1e-3)
    assert solution.state["slow"][0].item() == pytest.approx(4, rel=1e-3)
    assert list(solution.state) == ["fast", "slow"]


def test_shared_parts_reach_every_row_whole():
    table = torch.tensor([0.9, 0.5, 0.1])  # as long as the batch: nothing may be inferred from its size
    seen: list[Any] = []

    def step(z, c):
        seen.append((c["table"], c["name"], c["none"]))
        return c["table"].mean() * z + c["x"]

    context = {"table": Shared(table), "name": Shared("text"), "none": None, "x": torch.tensor([[1.0], [1e3], [0.0]])}
    solution = solve(step, torch.zeros(3, 1), context)
    assert len(set(solution.steps.tolist())) > 1
    assert all(t is table and name == "text" and none is None for t, name, none in seen)
    torch.testing.assert_close(solution.state, 2 * context["x"], rtol=1e-3, atol=0)


def test_a_context_leaves_with_its_rows():
    shift = torch.arange(1.0, 7.0)[:, None]
    gain = torch.tensor([0.9, 0.1, 0.5, 0.7, 0.0, 0.3])[:, None]
    solution = solve(lambda z, c: c[0] * z + c[1]["x"], torch.zeros(6, 1), (gain, {"x": shift}))
    torch.testing.assert_close(solution.state, shift / (1 - gain), rtol=2e-3, atol=0)


START = {"z": torch.zeros(2, 3), "n": (torch.zeros(2, dtype=torch.int64),)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"z": s["z"][:, :2], "n": s["n"]}, r"step changed state\['z'\]: float32 \(2, 3\).*\(2, 2\)"),
        (lambda s: {"z": s["z"][:1], "n": s["n"]}, r"state\['z'\]: float32 \(2, 3\) on cpu became float32 \(1, 3\)"),
        (lambda s: {"z": s["z"].double(), "n": s["n"]}, r"state\['z'\]: float32 .* became float64"),
        (lambda s: {"z": s["z"].to("meta"), "n": s["n"]}, r"state\['z'\]: .* on cpu became .* on meta"),
        (lambda s: {"z": s["z"], "n": (s["n"][0].float(),)}, r"state\['n'\]\[0\]: int64 .* became float32"),
        (lambda s: {"z": s["z"], "n": (3,)}, r"state\['n'\]\[0\]: .* became an int"),
        (lambda s: {"z": (s["z"],), "n": s["n"]}, r"state\['z'\]: .* became a tuple"),
        (lambda s: {"z": s["z"]}, r"structure of its state: state\['n'\]\[0\] is missing"),
        (lambda s: {**s, "w": s["z"]}, r"structure of its state: state\['w'\] is new"),
        (lambda s: {"z": s["z"], "n": list(s["n"])}, "the containers differ"),
        (lambda s: s["z"], r"state\['z'\] is missing and state is new"),
        (lambda s: None, r"state\['z'\] is missing"),
    ],
)
def test_a_changed_leaf_is_named(change, message):
    with torch.no_grad(), pytest.raises(ContractError, match=message):
        solve(lambda s, _: change(s), START)


def test_rows_that_do_not_match_are_named():
    with pytest.raises(ContractError, match=r"state\[1\] has 3 rows, state\[0\] has 2"):
        solve(lambda s, _: s, (torch.zeros(2, 1), torch.zeros(3, 1)))
    with pytest.raises(ContractError, match=r"context\['x'\] has 3 rows, state has 2; mark it homeostat.Shared"):
        solve(lambda s, _: s, torch.zeros(2, 1), {"x": torch.zeros(3, 1)})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((torch.zeros(2, 1), 3.0), r"state\[1\] is a float, not a tensor"),
        (torch.tensor(1.0), "state has no batch dimension"),
        (torch.zeros(2, dtype=torch.int64), "no floating leaf"),
        (Carry(torch.zeros(2)), "no floating leaf"),
        ({"z": Shared(torch.zeros(2))}, r"state\['z'\] is marked Shared"),
        ((torch.zeros(2), torch.zeros(2, dtype=torch.complex64)), r"state\[1\] is complex"),
        ((), "no floating leaf"),
    ],
)
def test_impossible_states_are_refused(state, message):
    with pytest.raises(ContractError, match=message):
        solve(lambda s, _: s, state)


@pytest.mark.parametrize("context", [0.5, "text", torch.tensor(0.5)])
def test_an_unmarked_context_part_is_refused_with_a_hint(context):
    with pytest.raises(ContractError, match=r"context\['gain'\] .*homeostat.Shared"):
        solve(lambda s, _: s, torch.zeros(2, 1), {"gain": context})


@pytest.mark.parametrize("name", ["rtol", "max_steps"])
def test_options_by_row_need_an_entry_a_row(name):
    with pytest.raises(ContractError, match=rf"stop.{name} has 3 entries, the state has 2 rows"):
        solve(lambda s, _: s, torch.zeros(2, 1), stop=hs.Stop(**{name: torch.ones(3, dtype=torch.int64)}))


@pytest.mark.parametrize("gradients", [False, True])
def test_a_step_in_place_is_refused_rather_than_called_converged(gradients):
    # The state from before the step would be the state after it, and every residual 0.
    start = torch.zeros(2, 3)
    with torch.set_grad_enabled(gradients), pytest.raises(ContractError, match="step changed state in place"):
        solve(lambda z, _: z.mul_(0.5).add_(1), start)


def test_autocast_hands_back_the_dtype_of_the_state():
    layer = torch.nn.Linear(4, 4).requires_grad_(False)
    seen: list[torch.dtype] = []

    def step(z, _):
        after = 0.1 * layer(z)
        seen.append(after.dtype)
        return after

    with torch.autocast("cpu", dtype=torch.bfloat16):
        solution = solve(step, torch.zeros(2, 4), stop=hs.Stop(rtol=1e-2))
    assert set(seen) == {torch.bfloat16}
    assert solution.state.dtype == torch.float32
    assert (solution.status == Status.CONVERGED).all()
