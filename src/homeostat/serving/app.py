"""The service as an ASGI application: requests in, answers out, and what is wrong said in one line of JSON."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from homeostat.checks import plain_number
from homeostat.serving.limits import Limits
from homeostat.serving.metrics import Metrics
from homeostat.serving.queue import Queue, Ticket
from homeostat.serving.refusal import Outcome, Refusal
from homeostat.serving.solver import Failed, OpenStream, Solver
from homeostat.serving.subject import Question, Subject, kind

_LOG = logging.getLogger("homeostat.serving")

_SMALL = 32_768
"""Bodies up to so many bytes are read where they arrive; larger ones on another thread, not to hold up the others."""

_STOP_SECONDS = 1.0

# After a body that was not read to its end, the connection cannot be used again.
_HEADERS: dict[Outcome, dict[str, str]] = {
    "queue full": {"retry-after": "1"},
    "stopping": {"retry-after": "1"},
    "too large": {"connection": "close"},
    "slow": {"connection": "close"},
}


class Service:
    """A model, the limits it is served with, and the thread that solves.

    Args:
        subject: the model with the form of its examples.
        open_stream: from inputs of one example after the other to a stream of what is found.
        pending: see `Solver`.
        limits: what is accepted.
        about: what `/v1/model` says beside the subject's own words: the policy, the hash.
    """

    def __init__(
        self,
        subject: Subject,
        open_stream: OpenStream,
        *,
        pending: object,
        limits: Limits,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.subject, self.limits, self.about = subject, limits, about or {}
        # One thread: many would each keep what the largest body has taken.
        self.reader = ThreadPoolExecutor(1, "reader")
        self.queue = Queue(limits.queue)
        self.metrics = Metrics(limits.slots)
        self.solver = Solver(open_stream, self.queue, pending, self.metrics.found)
        self.metrics.watch(self.queue, self.solver)

    def read(self, body: bytes) -> tuple[list[Question], float]:
        """The questions of a request, and how many seconds its client waits for the answer.

        Raises:
            Refusal: it cannot be read, or it asks for too much.
        """
        record = _json(body)
        if not isinstance(record, dict):
            raise Refusal("refused", f'the body must be an object such as {{"inputs": [...]}}, not {kind(record)}')
        unknown = [name for name in record if name not in ("inputs", "timeout")]
        if unknown:
            raise Refusal("refused", f"the body has {unknown[0][:80]!r}; it takes inputs and timeout")
        entries = record.get("inputs")
        if not isinstance(entries, list) or not entries:
            raise Refusal("refused", "inputs must be a list with at least one example")
        if len(entries) > self.limits.examples:
            raise Refusal("too large", f"{len(entries):,} examples; at most {self.limits.examples:,} a request")
        seconds = record.get("timeout", self.limits.seconds)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise Refusal("refused", "timeout must be a number of seconds above 0")
        questions = [
            self.subject.read(entry, f"inputs[{place}]", self.limits.elements) for place, entry in enumerate(entries)
        ]
        return questions, float(min(seconds, self.limits.seconds))

    def write(self, question: Question, found: Any) -> dict[str, Any]:
        """One answer."""
        residual = float(found.residual)
        confidence = None if found.confidence is None else float(found.confidence)
        return {
            **self.subject.write(question, found.outputs),
            "steps": int(found.steps),
            "residual": residual if abs(residual) < float("inf") else None,
            "status": str(found.status),
            "confidence": confidence if confidence is None or abs(confidence) < float("inf") else None,
            "abstained": bool(found.abstained),
        }

    def describe(self) -> dict[str, Any]:
        """What `/v1/model` says."""
        model = self.subject.model
        return {
            "name": self.subject.name,
            **self.subject.describe(),
            "trained_steps": plain_number(model.trained_steps),
            "unit_cost": plain_number(model.unit_cost),
            **self.about,
            "limits": {name: getattr(self.limits, name) for name in self.limits.__dataclass_fields__},
        }


def make_app(service: Service) -> FastAPI:
    """The application. The solver runs from its start to its shutdown."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.solver.start()
        yield
        # The server has waited for its requests: whatever is still in flight is for nobody.
        if not await asyncio.to_thread(service.solver.stop, _STOP_SECONDS):
            _LOG.warning("%d examples were still in flight at the end", service.solver.in_flight)
        service.reader.shutdown(wait=False, cancel_futures=True)

    # Pages that load scripts from elsewhere are not offered.
    app = FastAPI(title="homeostat", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(HTTPException)
    async def not_here(request: Request, raised: HTTPException) -> Response:
        there = "there are POST /v1/predict, GET /v1/model, /healthz and /metrics"
        return _error(raised.status_code, f"{request.method} {request.url.path}: {raised.detail}; {there}")

    @app.post("/v1/predict")
    async def predict(request: Request) -> Response:
        began = time.perf_counter()
        outcome: Outcome = "failed"
        try:
            answers = await _answers(service, request, began)
            response = JSONResponse({"model": service.subject.name, "answers": answers})
            outcome = "answered"
            return response
        except Refusal as refusal:
            outcome = refusal.outcome
            return _error(refusal.status, refusal.message, _HEADERS.get(outcome))
        except _Incomplete as incomplete:
            return _error(500, incomplete.message, answers=incomplete.answers)
        except asyncio.CancelledError:
            outcome = "stopping"
            raise
        except Exception as failure:  # of the functions of a model that write its answers
            _LOG.exception("an answer could not be written")
            return _error(500, f"the answer could not be written: {type(failure).__name__}")
        finally:
            service.metrics.request(outcome, time.perf_counter() - began)

    @app.get("/healthz")
    async def health() -> Response:
        if service.queue.closed or not service.solver.alive:
            return _error(503, "stopping" if service.queue.closed else "nothing is being solved")
        return JSONResponse({"status": "ok"})

    @app.get("/v1/model")
    async def model() -> Response:
        return JSONResponse(service.describe())

    @app.get("/metrics")
    async def metrics() -> Response:
        data, content = service.metrics.text()
        return Response(data, media_type=content)

    return app


def _error(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    return JSONResponse({"error": " ".join(message.split()), **more}, status_code=status, headers=headers)


class _Incomplete(Exception):
    """Some examples of a request failed; the others have answers."""

    def __init__(self, message: str, answers: list[Any]) -> None:
        super().__init__(message)
        self.message, self.answers = message, answers


async def _answers(service: Service, request: Request, began: float) -> list[Any]:
    body = await _body(request, service.limits)
    if len(body) > _SMALL:
        questions, seconds = await asyncio.get_running_loop().run_in_executor(service.reader, service.read, body)
    else:
        questions, seconds = service.read(body)
    del body
    loop, settled = asyncio.get_running_loop(), asyncio.Event()

    def done() -> None:  # called from the thread that solves
        try:
            loop.call_soon_threadsafe(settled.set)
        except RuntimeError:  # the loop is closed: nobody waits
            _LOG.info("an answer came after the end")

    ticket = Ticket(questions, done)
    service.queue.admit(ticket)
    try:
        await _settled(request, settled, seconds - (time.perf_counter() - began), seconds)
        found = list(ticket.found)
    finally:
        if ticket.open:
            service.solver.forget(ticket)
    failed = [place for place, one in enumerate(found) if isinstance(one, Failed)]
    answers = [
        None if isinstance(one, Failed) else service.write(question, one)
        for question, one in zip(questions, found, strict=True)
    ]
    if failed:
        places = ", ".join(f"inputs[{place}]" for place in failed)
        raise _Incomplete(f"the model failed on {places}: {found[failed[0]]}", answers)
    return answers


async def _settled(request: Request, settled: asyncio.Event, left: float, seconds: float) -> None:
    """Wait until all is found, the time is over, or the client has gone."""
    tasks = [asyncio.ensure_future(settled.wait()), asyncio.ensure_future(_gone(request))]
    try:
        await asyncio.wait(tasks, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    if settled.is_set():
        return
    if tasks[1].done() and not tasks[1].cancelled():
        raise Refusal("disconnected", "the client has gone")
    raise Refusal("timed out", f"no answer within {seconds:g} s")


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, which must not be too long nor arrive too slowly."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.body:
        raise _too_large(limits)
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body:
                    raise _too_large(limits)
                parts.append(part)
    except TimeoutError:
        raise Refusal("slow", f"the body did not arrive within {limits.body_seconds:g} s") from None
    except ClientDisconnect:
        raise Refusal("disconnected", "the client has gone") from None
    return b"".join(parts)


def _too_large(limits: Limits) -> Refusal:
    # Made where it is raised: an exception kept in a variable of the frame that raises it keeps that frame, with the
    # body, until the garbage collector comes by.
    return Refusal("too large", f"the body has more than {limits.body:,} bytes")


def _json(body: bytes) -> Any:
    def constant(name: str) -> Any:
        raise Refusal("refused", f"the body holds {name}, which is no number in JSON")

    try:
        return json.loads(body.decode(), parse_constant=constant)  # bytes would be taken for UTF-16 too
    except UnicodeDecodeError as error:
        raise Refusal("refused", f"the body is not UTF-8: byte {error.start + 1}") from None
    except RecursionError:
        raise Refusal("refused", "the body is nested too deep") from None
    except ValueError as error:  # JSONDecodeError, and whole numbers of thousands of digits
        raise Refusal("refused", f"the body is not JSON: {error}") from None
