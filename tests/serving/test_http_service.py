"""The service through its application: answers, refusals, time, room, and models that crash."""

import asyncio
import inspect
import json
import math

import httpx
import pytest
import torch
from service_fixture import BOMB, STOP, Geometric, ask, figures, service_of, talk, until

import homeostat as hs


def test_every_answer_is_that_of_predict_and_goes_to_its_own_client() -> None:
    model = Geometric()
    gains = torch.rand(40, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    pairs = [[round(float(gain), 4), float(place + 100)] for place, gain in enumerate(gains)]
    service = service_of(model, slots=8)

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(ask(client, pair) for pair in pairs))

    responses = talk(service, conversation)
    wanted = hs.predict(model, torch.tensor(pairs), stop=STOP)
    for place, response in enumerate(responses):
        assert response.status_code == 200
        (answer,) = response.json()["answers"]
        gain, offset = pairs[place]
        assert answer["outputs"] == pytest.approx([offset / (1 - gain)], rel=1e-4)  # in closed form
        assert answer["outputs"] == wanted.outputs[place].tolist()
        assert answer["steps"] == wanted.steps[place]
        assert answer["residual"] == pytest.approx(float(wanted.residual[place]), rel=1e-4, abs=1e-12)
        assert answer["status"] == "CONVERGED"
        assert (answer["confidence"], answer["abstained"]) == (None, False)
    assert max(model.rows[:-40]) > 1, "examples never shared a batch"
    found = figures(service)
    assert found['requests_total{outcome="answered"}'] == 40
    assert found["examples_finished_total"] == found["steps_count"] == 40
    assert found["steps_sum"] == int(wanted.steps.sum())
    assert 0 < found["occupancy"] <= 1
    assert found["queue_depth"] == found["in_flight"] == 0


def test_several_examples_of_a_request_stay_in_their_order() -> None:
    pairs = [[0.9, 1.0], [0.0, 5.0], [0.5, 3.0]]
    response = talk(service_of(Geometric(), slots=2), lambda client: ask(client, *pairs))
    values = [answer["outputs"][0] for answer in response.json()["answers"]]
    assert values == pytest.approx([10.0, 5.0, 6.0], rel=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 422, "not JSON"),
        (b"{", 422, "not JSON"),
        (b"\xff\xfe{}", 422, "UTF-8"),
        (b'{"inputs": [[0.5, "\xed\xa0\x80"]]}', 422, "UTF-8"),
        (b"[" * 100_000, 422, "nested too deep"),
        (b'{"inputs": [[NaN, 1]]}', 422, "NaN"),
        (b'{"inputs": [[0.5, -Infinity]]}', 422, "-Infinity"),
        (b'{"inputs": [[0.5, 1e999]]}', 422, "not finite in float32"),
        (b'{"inputs": [[0.5, 1e39]]}', 422, "not finite in float32"),
        (b'{"inputs": [[0.5, ' + b"9" * 400 + b"]]}", 422, "cannot hold"),
        (b'{"inputs": [[0.5, ' + b"9" * 5000 + b"]]}", 422, "not JSON"),
        (b"[]", 422, "must be an object"),
        (b"null", 422, "not null"),
        (b"{}", 422, "inputs must be a list"),
        (b'{"inputs": []}', 422, "at least one"),
        (b'{"inputs": "0110"}', 422, "inputs must be a list"),
        (b'{"inputs": [[0.5, 1]], "input": 1}', 422, "it takes inputs and timeout"),
        (b'{"inputs": [[0.5, 1]], "timeout": 0}', 422, "timeout"),
        (b'{"inputs": [[0.5, 1]], "timeout": true}', 422, "timeout"),
        (b'{"inputs": [[0.5, 1], 3]}', 422, "inputs[1] has shape ()"),
        (b'{"inputs": [[0.5, 1, 2]]}', 422, "inputs[0] has shape (3,), the model takes (2,)"),
        (b'{"inputs": [[[0.5, 1]]]}', 422, "inputs[0] has shape (1, 2)"),
        (b'{"inputs": [[]]}', 422, "inputs[0] has shape (0,)"),
        (b'{"inputs": [[0.5, "1"]]}', 422, "inputs[0] must hold a number in every place, not a text"),
        (b'{"inputs": [[0.5, true]]}', 422, "not true"),
        (b'{"inputs": [[0.5, null]]}', 422, "not null"),
        (b'{"inputs": [{"a": 1}]}', 422, "inputs[0] has shape ()"),
        (b'{"inputs": [[0.5, [1]]]}', 422, "not a list"),
        (json.dumps({"inputs": [[0.5, 1]] * 65}).encode(), 413, "at most 64"),
        (json.dumps({"inputs": [[0.5] * 101]}).encode(), 413, "inputs[0] has 101 numbers; at most 100"),
        (b" " * 200_001, 413, "200,000 bytes"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(body: bytes, status: int, words: str) -> None:
    service = service_of(Geometric(), body=200_000, elements=100)
    response = talk(service, lambda client: client.post("/v1/predict", content=body))
    assert response.status_code == status, response.text
    message = response.json()["error"]
    assert words in message
    assert "\n" not in message
    outcome = "too large" if status == 413 else "refused"
    assert figures(service)[f'requests_total{{outcome="{outcome}"}}'] == 1
    assert len(service.queue) == 0


def test_a_body_without_a_declared_length_is_cut_off_too() -> None:
    async def parts():
        for _ in range(100):
            yield b" " * 1000

    response = talk(service_of(Geometric(), body=5000), lambda client: client.post("/v1/predict", content=parts()))
    assert (response.status_code, response.headers["connection"]) == (413, "close")


def test_other_addresses_and_methods() -> None:
    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get("/v1/predict"), await client.get("/nothing"), await client.get("/healthz")]

    wrong, absent, health = talk(service_of(Geometric()), conversation)
    assert (wrong.status_code, absent.status_code, health.status_code) == (405, 404, 200)
    assert "POST /v1/predict" in wrong.json()["error"]


def test_the_model_describes_itself() -> None:
    found = talk(service_of(Geometric(), slots=3), lambda client: client.get("/v1/model")).json()
    assert found["name"] == "geometric"
    assert found["inputs"] == {"shape": [2], "dtype": "float32"}
    assert found["trained_steps"] == 4
    assert found["limits"]["slots"] == 3


def test_a_request_that_takes_too_long_ends_and_frees_its_slot() -> None:
    service = service_of(Geometric(), hs.Stop(rtol=1e-6, max_steps=10_000_000), slots=2)

    async def conversation(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        slow = await ask(client, [1.0, 1.0], [0.5, 1.0], timeout=0.2)  # the first one grows for ever
        await asyncio.to_thread(until, lambda: figures(service)["examples_dropped_total"] == 1)
        return slow, await ask(client, [0.5, 1.0])

    slow, quick = talk(service, conversation)
    assert slow.status_code == 504
    assert slow.json() == {"error": "no answer within 0.2 s"}
    assert quick.json()["answers"][0]["outputs"] == pytest.approx([2.0], rel=1e-4)
    found = figures(service)
    assert found['requests_total{outcome="timed out"}'] == 1
    assert not service.solver.alive, "what nobody waits for kept the service from its end"


def test_a_full_queue_says_come_back() -> None:
    model = Geometric()
    model.open.clear()
    service = service_of(model, slots=1, queue=3, examples=3)

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = asyncio.create_task(ask(client, [0.5, 1.0]))
        await asyncio.to_thread(until, lambda: service.solver.in_flight == 1)
        waiting = asyncio.create_task(ask(client, [0.5, 2.0], [0.5, 3.0]))
        await asyncio.to_thread(until, lambda: len(service.queue) == 2)
        refused = await ask(client, [0.5, 4.0], [0.5, 5.0])  # one would fit: it is all or nothing
        model.open.set()
        return [await first, await waiting, refused]

    first, waiting, refused = talk(service, conversation)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "waiting already" in refused.json()["error"]
    assert [answer["outputs"][0] for answer in waiting.json()["answers"]] == pytest.approx([4.0, 6.0], rel=1e-4)
    assert first.status_code == 200
    assert figures(service)['requests_total{outcome="queue full"}'] == 1


def test_a_crash_costs_only_the_example_that_caused_it() -> None:
    model = Geometric()
    model.open.clear()
    service = service_of(model, slots=8)

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        offsets = [1.0, BOMB, 2.0, BOMB, 3.0]
        tasks = [asyncio.create_task(ask(client, [0.5, offset])) for offset in offsets]
        mixed = asyncio.create_task(ask(client, [0.5, 8.0], [0.5, BOMB]))
        await asyncio.to_thread(until, lambda: service.solver.in_flight + len(service.queue) == 7)
        model.open.set()
        before = await asyncio.gather(*tasks)
        return [*before, await mixed, await ask(client, [0.5, 4.0])]

    *responses, mixed, after = talk(service, conversation)
    assert [response.status_code for response in responses] == [200, 500, 200, 500, 200]
    for response, offset in zip(responses, (1.0, None, 2.0, None, 3.0), strict=True):
        if offset is None:
            assert response.json()["error"] == "the model failed on inputs[0]: RuntimeError"
        else:
            assert response.json()["answers"][0]["outputs"] == pytest.approx([2 * offset], rel=1e-4)
    assert mixed.status_code == 500
    kept, lost = mixed.json()["answers"]
    assert kept["outputs"] == pytest.approx([16.0], rel=1e-4)
    assert lost is None
    assert after.json()["answers"][0]["outputs"] == pytest.approx([8.0], rel=1e-4)
    found = figures(service)
    assert found["examples_failed_total"] == 3
    assert found["restarts_total"] >= 1


@pytest.mark.parametrize("where", ["encode", "initial_state", "decode"])
def test_a_crash_anywhere_in_the_model_is_isolated(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Geometric()
    sound = getattr(model, where)

    def crash(*given: torch.Tensor) -> torch.Tensor:
        if any(isinstance(one, torch.Tensor) and 99 in one for one in given):
            raise SystemExit  # whatever it is
        return sound(*given)

    crash.__signature__ = inspect.signature(sound)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, where, crash)

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(ask(client, [0.5, offset]) for offset in (1.0, 99.0, 2.0)))

    first, bad, last = talk(service_of(model, slots=4), conversation)
    assert (first.status_code, bad.status_code, last.status_code) == (200, 500, 200)
    assert bad.json()["error"] == "the model failed on inputs[0]: SystemExit"


def test_a_client_that_leaves_frees_what_it_held() -> None:
    model = Geometric()
    model.open.clear()
    service = service_of(model, slots=1)

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        held = asyncio.create_task(ask(client, [0.5, 1.0]))
        await asyncio.to_thread(until, lambda: service.solver.in_flight == 1)
        leaving = asyncio.create_task(ask(client, *[[0.5, 2.0]] * 5))
        await asyncio.to_thread(until, lambda: len(service.queue) == 5)
        leaving.cancel()
        held.cancel()
        await asyncio.gather(leaving, held, return_exceptions=True)
        assert len(service.queue) == 0
        model.open.set()
        return await ask(client, [0.5, 3.0])

    assert talk(service, conversation).json()["answers"][0]["outputs"] == pytest.approx([6.0], rel=1e-4)
    found = figures(service)
    assert found["examples_dropped_total"] == 1
    assert found["examples_finished_total"] == 1


def test_answers_that_are_not_finite_are_null() -> None:
    response = talk(service_of(Geometric()), lambda client: ask(client, [3.0, 1e38]))
    (answer,) = response.json()["answers"]
    assert answer["status"] == "DIVERGED"
    assert answer["residual"] is None or math.isfinite(answer["residual"])


def test_nothing_is_taken_after_the_end() -> None:
    service = service_of(Geometric())

    async def conversation(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        assert service.solver.stop(5)
        return await ask(client, [0.5, 1.0]), await client.get("/healthz")

    refused, health = talk(service, conversation)
    assert (refused.status_code, refused.json()["error"]) == (503, "the service is stopping")
    assert health.status_code == 503
