"""A service around a small model whose answers are known in closed form, and ways to hold it up or to make it fail."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import torch
from torch import Tensor

import homeostat as hs
from homeostat.engine import PENDING
from homeostat.serving import Limits, ResidualStream
from homeostat.serving.app import Service, make_app
from homeostat.serving.arrays import ArraySubject
from homeostat.studies.bring_your_own import OwnModel

BOMB = 13.0
"""The offset on which the model raises."""


class Geometric:
    """z <- gain z + offset, which ends at offset / (1 - gain): inputs `(batch, 2)` are gain and offset."""

    name = "geometric"
    trained_steps = 4

    def __init__(self) -> None:
        self.examples = [(torch.tensor([[0.5, 1.0]]), torch.tensor([[2.0]]))]
        self.open = threading.Event()
        self.open.set()
        self.rows: list[int] = []

    def encode(self, inputs: Tensor) -> Tensor:
        return inputs

    def initial_state(self, context: Tensor) -> Tensor:
        return torch.zeros_like(context[:, :1])

    def step(self, state: Tensor, context: Tensor) -> Tensor:
        assert self.open.wait(20)
        self.rows.append(len(state))
        if bool((context[:, 1] == BOMB).any()):
            raise RuntimeError("boom")
        return context[:, :1] * state + context[:, 1:]

    def decode(self, state: Tensor, context: Tensor) -> Tensor:
        return state


STOP = hs.Stop(rtol=1e-6, max_steps=500)


def service_of(model: Any, stop: hs.Stop = STOP, **limits: Any) -> Service:
    chosen = Limits(**limits)
    own = OwnModel(model, model.examples, path=None)  # type: ignore[arg-type]
    subject = ArraySubject(model, own.examples, device=torch.device("cpu"), blame=_nothing)

    def open_stream(examples: Any) -> ResidualStream:
        return ResidualStream(subject.model, examples, stop=lambda inputs: stop, batch_size=chosen.slots)

    return Service(subject, open_stream, pending=PENDING, limits=chosen)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


@asynccontextmanager
async def client_of(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(service)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as found,
    ):
        yield found


def talk(service: Service, conversation: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with client_of(service) as client:
            return await conversation(client)

    return asyncio.run(run())


async def ask(client: httpx.AsyncClient, *inputs: Any, **more: Any) -> httpx.Response:
    return await client.post("/v1/predict", json={"inputs": list(inputs), **more})


def figures(service: Service) -> dict[str, float]:
    """The metrics by name, with their labels."""
    lines = service.metrics.text()[0].decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name.removeprefix("homeostat_"): float(value) for name, value in pairs}


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)
