"""Checks of two calls: is anything changed in place, drawn by chance, or remembered from one call to the next?"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from homeostat.engine.nest import flatten
from homeostat.models.conformance.case import Case, Untested, Wrong, shared_names
from homeostat.models.conformance.differences import copied, largest, named_leaves, rows_of

_SEED = 20_230_117


def in_place(case: Case) -> str:
    """No function changes what it is given."""
    case.need("encode", "initial_state")
    model = case.model
    state, context = copied(case.state), copied(case.context)
    bare = {"state": _bare(state, "state"), "context": _bare(context, "context")}
    calls: list[tuple[str, Callable[[], Any], dict[str, Any]]] = [
        ("encode", lambda: model.encode(case.inputs), {"inputs": case.inputs}),
        ("initial_state", lambda: case.start(context, range(case.rows)), {"context": context}),
        ("step", lambda: model.step(bare["state"], bare["context"]), bare),
        ("decode", lambda: model.decode(bare["state"], bare["context"]), bare),
        ("score", lambda: model.score(bare["state"], bare["context"]), bare),
    ]
    for function, call, given in calls:
        before = {role: copied(tree) for role, tree in given.items()}
        versions = {name: leaf._version for name, leaf in _tensors(given).items() if not leaf.is_inference()}
        with suppress(Exception):  # a call that fails has a check of its own, and may have written something before
            call()
        right = "it must return a new tensor and leave its input as it is"
        for role, tree in given.items():
            found = largest(tree, before[role], role, 0.0)
            if found.beyond:
                case.unsure.add(function)
                raise Wrong(f"{function} changes {found.leaf} in place; {right}", found)
        for name, leaf in _tensors(given).items():
            if name in versions and leaf._version != versions[name]:
                case.unsure.add(function)
                raise Wrong(f"{function} writes to {name} in place; {right}")
    return "inputs, state and context are left as they were"


def _bare(tree: Any, role: Literal["state", "context"]) -> Any:
    leaves, layout = flatten(tree, role)
    return layout.build(leaves)


def _tensors(given: dict[str, Any]) -> dict[str, Tensor]:
    found = {name: leaf for role, tree in given.items() for name, leaf in named_leaves(tree, role).items()}
    return {name: leaf for name, leaf in found.items() if isinstance(leaf, Tensor)}


def repeatable(case: Case) -> str:
    """The same call gives the same result; chance is said, and seeded."""
    case.need("encode", "initial_state")
    rows = range(case.rows)
    calls: dict[str, Callable[[], Any]] = {
        "encode": lambda: case.model.encode(case.inputs),
        "initial_state": lambda: case.start(case.context, rows),
        "step": lambda: case.step(case.state, case.context),
        "decode": lambda: case.read("decode", case.state, case.context),
        "score": lambda: case.read("score", case.state, case.context),
    }
    note = "the same twice"
    for function, call in calls.items():
        if function in case.unsure:
            continue
        free = largest(_seeded(call, _SEED), _seeded(call, _SEED + 1), _ROLES[function], case.rtol, exact=True)
        same = largest(_seeded(call, _SEED), _seeded(call, _SEED), _ROLES[function], case.rtol, exact=True)
        if same.beyond:
            case.random = True
            raise Wrong(
                f"{function} gives something else when it is called again with the same arguments and the same seed of "
                f"torch: {same}. Something is remembered between calls, or drawn elsewhere: make it a part of the "
                "state or the context",
                same,
            )
        if free.beyond:
            case.random = True
            if function != "step" or not case.model.stochastic:
                right = "say stochastic = True, or seed it by the state or the context" if function == "step" else (
                    "draw by the seed of the start that it is given (start.like)" if function == "initial_state" else
                    "take it out, or seed it by what it is given")  # fmt: skip
                raise Wrong(f"{function} draws from torch's global generator: {free}; {right}", free)
            note = "step draws random numbers, as it says; probes that compare two runs refuse that"
    if case.model.stochastic and not case.random:
        note = "the same twice, though stochastic says otherwise: then rows that have settled are run on for nothing"
    return note


_ROLES = {"encode": "context", "initial_state": "state", "step": "state", "decode": "outputs", "score": "score"}


def _seeded(call: Callable[[], Any], seed: int) -> Any:
    cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if cuda else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would leave a note for devices never used
        if cuda:
            torch.cuda.manual_seed_all(seed)
        return call()


def nothing_remembered(case: Case) -> str:
    """What was run in between makes no difference: other examples encoded, started, stepped, read."""
    case.need("encode", "initial_state", "step")
    if case.random:
        raise Untested("two calls differ anyway, see repeatable")
    if case.rows < 2:
        raise Untested("needs 2 examples")
    buffers = _weights(case.subject)
    before = {name: value.clone() for name, value in buffers.items()}
    rows = range(case.rows)

    def run() -> dict[str, Any]:
        found = {"initial_state": case.start(case.context, rows), "step": case.step(case.state, case.context)}
        for function in {"decode", "score"} - case.unsure:
            found[function] = case.read(function, case.state, case.context)
        return found

    first = run()
    other = rows_of(case.inputs, [*reversed(rows)])
    context = case.model.encode(other)
    state = case.start(context, [*reversed(rows)])
    for _ in range(2):
        state = case.step(state, context)
    if "decode" not in case.unsure:
        case.read("decode", state, context)
    second = run()
    for function, value in second.items():
        found = largest(value, first[function], _ROLES[function], case.rtol, exact=True)
        if found.beyond:
            raise Wrong(
                f"{function} gives something else after another batch was encoded and run in between: {found}. It "
                "reads what an earlier call left behind; put that into the context or the state",
                found,
            )
    for name, value in buffers.items():
        if not torch.equal(value, before[name]):
            raise Wrong(f"running the model changes its own {name}; it must stay as it is in evaluation mode")
    return "what is run in between makes no difference"


def _weights(subject: Any) -> dict[str, Tensor]:
    return (
        {**dict(subject.named_parameters()), **dict(subject.named_buffers())} if isinstance(subject, nn.Module) else {}
    )


def shared_is_shared(case: Case, part: Any, rows: list[int]) -> None:
    """What is marked `Shared` must not change with the examples."""
    whole, other = named_leaves(case.context, "context"), named_leaves(part, "context")
    for name in sorted(shared_names(case.context) & other.keys()):
        found = largest(other[name], whole[name], name, case.rtol)
        if found.beyond:
            raise Wrong(
                f"encode: {name} is marked Shared, and yet is another one for {len(rows)} of the {case.rows} examples: "
                f"{found}. What belongs to examples must be batch first and unmarked",
                found,
            )
