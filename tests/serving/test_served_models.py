"""What is served: puzzles in their text form, own models in theirs, by a tolerance or by a policy."""

import asyncio
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from service_fixture import Geometric, ask, service_of, talk
from torch import Tensor

import homeostat as hs
from homeostat.cli import main
from homeostat.engine import PENDING
from homeostat.errors import ContractError, InputError, PolicyError
from homeostat.inference import answer_puzzles, predict_stream
from homeostat.inference.puzzles import most_steps
from homeostat.models import load
from homeostat.serving import Limits, PuzzleSubject, ResidualStream
from homeostat.serving.app import Service
from homeostat.serving.arrays import ArraySubject
from homeostat.tasks import get_task

BITS = ["1101", "0", "110100101", "11111", "0110", "10101010101010", "1101"]


def served_bits(folder: Path) -> Service:
    checkpoint = load(folder)
    subject = PuzzleSubject(checkpoint, get_task("prefix-sums"))

    def stop(inputs: Tensor) -> hs.Stop:
        return hs.Stop(rtol=1e-3, max_steps=most_steps(checkpoint.config, inputs.shape[2]))

    open_stream = partial(ResidualStream, checkpoint.model, stop=stop, batch_size=4)
    return Service(subject, open_stream, pending=PENDING, limits=Limits(slots=4, elements=20))


def test_puzzles_are_answered_as_on_the_command_line(bits_checkpoint: Path) -> None:
    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(ask(client, bits) for bits in BITS), ask(client, *BITS))

    *single, together = talk(served_bits(bits_checkpoint), conversation)
    task = get_task("prefix-sums")
    wanted = answer_puzzles(bits_checkpoint, task, task.parse("\n".join(BITS).encode(), name="bits"))
    for responses in (single, [together]):
        answers = [answer for response in responses for answer in response.json()["answers"]]
        for answer, want in zip(answers, wanted, strict=True):
            assert answer["answer"] == task.text(want.puzzle.inputs, want.answer)
            assert (answer["steps"], answer["status"]) == (want.steps, want.status.name)
            assert answer["right"] == want.right
            assert answer["residual"] == pytest.approx(want.residual, rel=1e-3)


@pytest.mark.parametrize(
    ("entry", "status", "words"),
    [
        ("012", 422, "inputs[0], line 1, column 3: '2' is not a bit"),
        ("", 422, "inputs[0]: no bit string found"),
        ("01\n10", 422, "inputs[0] holds 2 puzzles"),
        ("\ud800", 422, "not UTF-8"),
        (5, 422, "must be a puzzle as text, not a whole number"),
        (["0", "1"], 422, "not a list"),
        ("0" * 21, 413, "21 numbers; at most 20"),
        ("0" * 5000, 413, "5,000 characters"),
    ],
)
def test_what_is_no_puzzle_is_refused(bits_checkpoint: Path, entry: Any, status: int, words: str) -> None:
    body = json.dumps({"inputs": [entry]})
    response = talk(served_bits(bits_checkpoint), lambda client: client.post("/v1/predict", content=body))
    assert (response.status_code, words in response.json()["error"]) == (status, True), response.text


class Nest:
    """Inputs that are a nest: a whole number, a float and a bool; outputs that are one."""

    name = "nest"
    trained_steps = 2

    def __init__(self) -> None:
        flags = torch.tensor([[True], [False]])
        self.examples = [({"n": torch.tensor([3, 4]), "pair": (torch.ones(2, 2, 3), flags)}, None)]

    def encode(self, inputs: Any) -> Any:
        return inputs

    def initial_state(self, context: Any) -> Tensor:
        return torch.zeros(len(context["n"]))

    def step(self, state: Tensor, context: Any) -> Tensor:
        values, flag = context["pair"]
        return 0.5 * state + values.sum((1, 2)) * torch.where(flag[:, 0], 1, -1)

    def decode(self, state: Tensor, context: Any) -> dict[str, Tensor]:
        return {"sum": state, "n": context["n"] + 1}

    def answers(self, outputs: dict[str, Tensor]) -> Tensor:
        return outputs["n"]


def test_nests_go_in_and_out() -> None:
    service = service_of(Nest())
    entry = {"n": 7, "pair": [[[1, 2, 3], [4, 5, 6.5]], [False]]}
    (answer,) = talk(service, lambda client: ask(client, entry)).json()["answers"]
    assert answer["outputs"]["sum"] == pytest.approx(-43, rel=1e-4)  # twice the sum
    assert answer["outputs"]["n"] == answer["answer"] == 8
    inputs = service.describe()["inputs"]
    assert inputs["n"] == {"shape": [], "dtype": "int64"}
    assert inputs["pair"][0] == {"shape": [2, 3], "dtype": "float32"}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"n": 1}, "inputs[0] must be an object with n, pair, not with 'n'"),
        ([1, 2], "must be an object with n, pair, not 2"),
        ({"n": 1, "pair": [1]}, "inputs[0].pair must be a list of 2 parts, not 1"),
        ({"n": 1.0, "pair": [[[1, 2, 3], [4, 5, 6]], [True]]}, "inputs[0].n must hold a whole number"),
        ({"n": 2**70, "pair": [[[1, 2, 3], [4, 5, 6]], [True]]}, "that int64 cannot hold"),
        ({"n": 1, "pair": [[[1, 2, 3], [4, 5, 6]], [1]]}, "inputs[0].pair[1] must hold true or false"),
        ({"n": 1, "pair": [[[1, 2, 3], [4, 5]], [True]]}, "inputs[0].pair[0] is ragged"),
    ],
)
def test_nests_that_do_not_fit(entry: Any, words: str) -> None:
    response = talk(service_of(Nest()), lambda client: ask(client, entry))
    assert response.status_code == 422
    assert words in response.json()["error"]


def test_dimensions_in_which_the_examples_differ_may_have_any_size() -> None:
    model = Geometric()
    batches = {"short": [(torch.ones(2, 3, 5), None)], "long": [(torch.ones(4, 3, 9), None)]}
    subject = ArraySubject(model, batches, device=torch.device("cpu"), blame=_nothing)
    assert subject.describe() == {"inputs": {"shape": [3, None], "dtype": "float32"}}
    assert subject.read([[1] * 7] * 3, "it", 100).inputs.shape == (1, 3, 7)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


@pytest.mark.parametrize(
    ("examples", "error", "words"),
    [
        ([], InputError, "no batch"),
        ([("text", None)], InputError, "must be real tensors, batch first; 'all examples' has str"),
        ([(torch.tensor(1.0), None)], InputError, "a tensor of 0 dimensions"),
        ([({}, None)], InputError, "these hold none"),
        ({"a": [(torch.ones(2), None)], "b": [(torch.ones(2, 1), None)]}, ContractError, "another structure"),
    ],
)
def test_models_that_cannot_be_served(examples: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ArraySubject(Geometric(), examples, device=torch.device("cpu"), blame=_nothing)


def test_a_policy_stops_them_and_abstains() -> None:
    model = Geometric()
    policy = hs.Policy(conditions=(hs.Condition("residual", 1e-2),), max_steps=20, reads="none")
    service = service_of(model, slots=4)
    service.solver._open = partial(predict_stream, model, policy=policy, batch_size=4)
    pairs = [[0.5, 1.0], [0.95, 2.0], [0.0, 3.0], [-0.5, 4.0]]

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(ask(client, pair) for pair in pairs))

    wanted = hs.predict(model, torch.tensor(pairs), policy=policy)
    answers = [response.json()["answers"][0] for response in talk(service, conversation)]
    assert [answer["steps"] for answer in answers] == wanted.steps.tolist()
    assert [answer["abstained"] for answer in answers] == [False, True, False, False]
    assert answers[1]["status"] == "MAX_STEPS"
    assert [answer["outputs"] for answer in answers] == wanted.outputs.tolist()
    assert answers[0]["confidence"] is None  # its outputs are no logits


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    monkeypatch.setattr(sys, "argv", ["homeostat", "serve", *options])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_a_policy_of_another_model_is_an_error_at_the_start(
    bits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = hs.Policy(conditions=(hs.Condition("residual", 1e-2),), max_steps=20, model="mazes", model_hash="ab" * 32)
    path = policy.save(tmp_path / "policy.json")
    with pytest.raises(PolicyError):
        policy.check(load(bits_checkpoint).model)
    err = command(monkeypatch, capsys, str(bits_checkpoint), "--policy", str(path), "--port", "0")
    assert "this policy was made for mazes" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give either a checkpoint or --model"),
        (["mazes", "--model", "x.py:build"], "give either a checkpoint or --model"),
        (["mazes", "--policy", "none.json"], "cannot read none.json"),
        (["mazes", "--policy", "none.json", "--max-steps", "5"], "leave --max-steps away"),
        (["mazes", "--timeout", "0"], "seconds must be a number above 0"),
        (["mazes", "--timeout", "nan"], "seconds must be a number above 0"),
        (["mazes", "--queue", "1"], "examples must be at most queue"),
        (["mazes", "--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid"),
    ],
)
def test_impossible_options(
    options: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in command(monkeypatch, capsys, *options)


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from homeostat.serving.run import listen

    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen at 127.0.0.1, port {port}" in command(monkeypatch, capsys, "mazes", "--port", port)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'homeostat[serve]'" in command(monkeypatch, capsys, "mazes", "--port", "0")


def test_the_package_needs_none_of_them() -> None:
    import subprocess

    code = "import sys, homeostat.cli; assert not {'fastapi', 'uvicorn', 'prometheus_client'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
