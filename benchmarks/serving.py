"""`python -m benchmarks.serving`: `homeostat serve` under many clients on loopback, some of which misbehave.

Every answer is compared with what the same model says to the same puzzle in this process. Beside the honest clients
there are some that hang, that read nothing, that send garbage, and that leave while they wait.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, RemoteDisconnected
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from scipy import stats

from benchmarks.report import table
from benchmarks.results import Figure, Target, describe_machine, save
from homeostat.inference import Answer, Policy, answer_puzzles
from homeostat.models import load
from homeostat.tasks import PuzzleTask, get_task

RESULTS = Path(__file__).parent / "results" / "serving"
_FLAT = 2.0
"""MB a minute that count as flat: less than half a percent of what the process holds."""

# One pool of memory for all threads, given back as soon as it is free: what is left to grow would be a leak.
_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}


@dataclass(frozen=True)
class Truth:
    """A puzzle as text, and what the model answers to it."""

    text: str
    answer: str
    steps: int
    right: bool


@dataclass
class Seen:
    """What clients saw, over all of them."""

    outcomes: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str, count: int = 1) -> None:
        with self.lock:
            self.outcomes[outcome] += count

    def fault(self, what: str) -> None:
        with self.lock:
            self.outcomes["fault"] += 1
            if len(self.wrong) < 20:
                self.wrong.append(what)


def truths(model: str, sizes: tuple[int, ...], count: int, policy: Policy | None) -> list[Truth]:
    """Puzzles of several sizes, with the answers of the model, computed here."""
    checkpoint = load(model)
    task = get_task(checkpoint.config.task.name, **checkpoint.config.task.options)
    assert isinstance(task, PuzzleTask)
    texts = [text for size in sizes for text in _texts(task, size, count)]
    puzzles = [task.parse(text.encode(), name="made")[0] for text in texts]
    found = answer_puzzles(checkpoint, task, puzzles, policy=policy)
    return [_truth(task, text, answer) for text, answer in zip(texts, found, strict=True)]


def _truth(task: PuzzleTask, text: str, answer: Answer) -> Truth:
    return Truth(text, task.text(answer.puzzle.inputs, answer.answer).rstrip("\n"), answer.steps, answer.right)


def _texts(task: PuzzleTask, size: int, count: int) -> Iterator[str]:
    """Test instances as people would type them."""
    inputs, targets = task.sample(size, count, split="test", seed=0)
    for one, target in zip(inputs, targets, strict=True):
        if task.name == "prefix-sums":
            yield "".join("1" if bit > 0 else "0" for bit in one[0].tolist())
        elif task.name == "mazes":  # the solved maze without its path
            yield task.text(one, target).replace("*", " ")
        else:
            raise typer.BadParameter(f"this load has no text for puzzles of {task.name}")


class Server:
    """`homeostat serve` as a process of its own."""

    def __init__(self, options: list[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **_MALLOC}
        command = [sys.executable, "-m", "homeostat", "serve", *options, "--port", "0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("Serving"):
            raise RuntimeError(f"the service did not start: {self.process.communicate()[1]}")
        self.port = int(line.rsplit(":", 1)[1])
        self._errors: list[str] = []
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._errors.append(line)

    @property
    def errors(self) -> str:
        return "".join(self._errors)

    def rss(self) -> float:
        """Resident memory in MB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def get(self, path: str) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        lines = self.get("/metrics").decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def socket(self, data: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(data)
        return connection


def honest(server: Server, known: list[Truth], seen: Seen, draw: random.Random, over: threading.Event) -> None:
    """Ask for one to four puzzles at a time on a connection that stays open, and check every answer."""
    connection, used = HTTPConnection("127.0.0.1", server.port, timeout=90), False
    while not over.is_set():
        chosen = draw.choices(known, k=draw.choice((1, 1, 1, 2, 4)))
        began = time.perf_counter()
        try:
            connection.request("POST", "/v1/predict", json.dumps({"inputs": [one.text for one in chosen]}))
            response = connection.getresponse()
            status, record = response.status, json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            # A server may close a connection just as it is used again, and HTTP lets clients try anew; but not a new
            # one, nor in the middle of an answer.
            idle = isinstance(error, RemoteDisconnected | BrokenPipeError | ConnectionResetError) and used
            if not idle:
                seen.fault(f"no answer: {type(error).__name__}: {error}")
            seen.add("reconnected")
            connection.close()
            used = False
            continue
        used = True
        if status == 503:
            seen.add("queue full")
            time.sleep(0.05)
            continue
        if status != 200:
            seen.fault(f"status {status}: {record}")
            continue
        with seen.lock:
            seen.latencies.append(time.perf_counter() - began)
        check(chosen, record["answers"], seen)
    connection.close()


def check(chosen: list[Truth], answers: list[dict[str, Any]], seen: Seen) -> None:
    """Each answer must be the model's own to that very puzzle."""
    if len(answers) != len(chosen):
        seen.fault(f"{len(answers)} answers to {len(chosen)} puzzles")
        return
    for want, answer in zip(chosen, answers, strict=True):
        if answer["answer"] != want.answer or answer["right"] != want.right:
            seen.fault(f"another answer than that of the puzzle: {answer['answer'][:60]!r} for {want.text[:60]!r}")
        elif answer["steps"] != want.steps:
            seen.add("answered, other steps")  # rounding may move a residual across the tolerance
        else:
            seen.add("answered")


def hanging(server: Server, known: list[Truth], seen: Seen, draw: random.Random, over: threading.Event) -> None:
    """Send half of a request, or nothing, and wait until the server has had enough."""
    body = json.dumps({"inputs": [known[0].text]}).encode()
    whole = _head(len(body)) + body
    while not over.is_set():
        data = draw.choice((b"", whole[:20], whole[:-3]))
        _until_closed(server, data, seen, "hung and was let go", over)


def slow_reader(server: Server, known: list[Truth], seen: Seen, draw: random.Random, over: threading.Event) -> None:
    """Ask for much, again and again on one connection, and read nothing."""
    body = json.dumps({"inputs": [one.text for one in draw.choices(known, k=16)]}).encode()
    while not over.is_set():
        try:
            with server.socket(_head(len(body)) + body) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                for _ in range(3):
                    connection.sendall(_head(len(body)) + body)
                over.wait(draw.uniform(1, 6))
        except OSError:
            pass
        seen.add("read nothing")


def garbage(server: Server, known: list[Truth], seen: Seen, draw: random.Random, over: threading.Event) -> None:
    """Send what is no request: it must be refused, and never with 500."""
    bodies = (
        b"{", b"\xff\xfe\x00", b"[]", b"null", b'{"inputs": []}', b'{"inputs": [NaN]}', b'{"inputs": [1e999]}',
        b'{"inputs": [{"a": []}]}', b'{"inputs": ["no puzzle"]}', b'{"inputs": ["\\ud800"]}', b"[" * 50_000,
        b'{"inputs": ["' + b"0" * 900_000 + b'"]}', b'{"inputs": ["0"], "timeout": -1}', b'{"inputs": ["0"], "x": 1}',
        json.dumps({"inputs": [known[0].text] * 65}).encode(), b" " * 1_500_000,
    )  # fmt: skip
    heads = (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"A" * 100_000,
        os.urandom(3000) + b"\r\n\r\n",
    )
    while not over.is_set():
        if draw.random() < 0.4:
            _until_closed(server, draw.choice(heads), seen, "no HTTP, refused", over)
            continue
        body = draw.choice(bodies)
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        try:
            connection.request("POST", "/v1/predict", body)
            status = connection.getresponse().status
            if status in (413, 422):
                seen.add("garbage, refused")
            else:
                seen.fault(f"garbage got status {status}: {body[:40]!r}")
        except (OSError, HTTPException):  # closed before it was through
            seen.add("garbage, cut off")
        finally:
            connection.close()
        over.wait(0.02)


def leaving(server: Server, known: list[Truth], seen: Seen, draw: random.Random, over: threading.Event) -> None:
    """Ask, and leave before the answer; now and then with a reset."""
    while not over.is_set():
        body = json.dumps({"inputs": [one.text for one in draw.choices(known, k=8)]}).encode()
        try:
            connection = server.socket(_head(len(body)) + body)
            if draw.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            time.sleep(draw.uniform(0, 0.1))
            connection.close()
        except OSError:
            pass
        seen.add("left")
        over.wait(0.05)


def _head(length: int) -> bytes:
    return f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def _until_closed(server: Server, data: bytes, seen: Seen, outcome: str, over: threading.Event) -> None:
    try:
        with server.socket(data) as connection:
            connection.settimeout(0.5)
            end = time.monotonic() + 60
            while not over.is_set():
                try:
                    if not connection.recv(65536):
                        break
                except TimeoutError:
                    if time.monotonic() > end:
                        seen.fault(f"a connection with {data[:30]!r} was still open after a minute")
                        break
    except OSError:
        pass
    seen.add(outcome)


Behaviour = Callable[[Server, list[Truth], Seen, random.Random, threading.Event], None]

SHARES: tuple[tuple[Behaviour, float], ...] = (
    (hanging, 1 / 16),
    (slow_reader, 1 / 16),
    (garbage, 1 / 8),
    (leaving, 1 / 8),
)
"""Of all clients; the others are honest."""


def crew(clients: int) -> list[Behaviour]:
    """What each client does."""
    found: list[Behaviour] = []
    for behaviour, share in SHARES:
        found += [behaviour] * max(1, round(share * clients))
    return found + [honest] * max(1, clients - len(found))


@dataclass(frozen=True)
class Slope:
    """Growth of memory in MB a minute, with its 95 % interval (Theil and Sen)."""

    value: float
    low: float
    high: float
    samples: int


def slope_of(samples: list[tuple[float, float]]) -> Slope:
    """Of `(seconds, MB)`: the median of the slopes of all pairs."""
    times, sizes = np.array(samples).T
    slope, _, low, high = np.asarray(stats.theilslopes(sizes, times / 60, alpha=0.95), dtype=float).tolist()
    return Slope(slope, low, high, len(samples))


def measure(
    model: str, sizes: tuple[int, ...], clients: int, seconds: float, warm_up: float, policy: Path | None
) -> list[Figure]:
    """Run the service and its clients, and say what was seen. Answers are checked from the beginning; memory is judged
    after the warm-up, when caches and pools have filled.
    """
    known = truths(model, sizes, 40, None if policy is None else Policy.load(policy))
    server = Server([model, "--body-timeout", "4", *(() if policy is None else ("--policy", str(policy)))])
    seen, over = Seen(), threading.Event()
    try:
        threads = [
            threading.Thread(target=behaviour, args=(server, known, seen, random.Random(place), over))
            for place, behaviour in enumerate(crew(clients))
        ]
        memory, began = [], time.monotonic()
        for thread in threads:
            thread.start()
        while time.monotonic() - began < warm_up + seconds and server.process.poll() is None:
            memory.append((time.monotonic() - began, server.rss()))
            time.sleep(0.25)
        over.set()
        for thread in threads:
            thread.join(100)
        alive = server.process.poll() is None
        metrics = server.metrics() if alive else {}
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(60)
    finally:
        server.process.kill()
    late = [sample for sample in memory if sample[0] >= warm_up]
    figures = _figures(seen, late, metrics, alive, code, clients, warm_up + seconds, server.errors)
    return [figure.with_details(rss=memory) if figure.unit == "MB a minute" else figure for figure in figures]


def _figures(
    seen: Seen,
    memory: list[tuple[float, float]],
    metrics: dict[str, float],
    alive: bool,
    code: int,
    clients: int,
    seconds: float,
    errors: str,
) -> list[Figure]:
    counts = dict(seen.outcomes)
    answered = counts.get("answered", 0) + counts.get("answered, other steps", 0)
    faults = counts.get("fault", 0)
    slope = slope_of(memory)
    latency = np.quantile(seen.latencies, [0.5, 0.1, 0.9, 0.99]) if seen.latencies else [float("nan")] * 4
    kept = {name: value for name, value in metrics.items() if "_bucket" not in name and "_created" not in name}
    details = {"outcomes": counts, "faults": seen.wrong, "errors": errors[-2000:], "seconds": seconds}
    crashed = not alive or code != 0 or "Traceback" in errors
    return [
        Figure(
            "serving",
            f"{clients} clients, {seconds:g} s: lost or swapped answers",
            faults,
            "answers",
            target=Target(0),
            note=f"of {answered:,} checked",
            details=details,
        ),
        Figure("serving", "crashes", float(crashed), "crashes", target=Target(0), details={"exit": code}),
        Figure(
            "serving",
            "growth of memory",
            slope.value,
            "MB a minute",
            slope.low,
            slope.high,
            slope.samples,
            target=Target(_FLAT),
            note="after the warm-up; Theil-Sen slope and its 95 % interval",
        ),
        Figure("serving", "answers a second", answered / seconds, "answers/s"),
        Figure(
            "serving",
            "time to an answer, honest clients",
            1000 * latency[0],
            "ms",
            1000 * latency[1],
            1000 * latency[2],
            len(seen.latencies),
            details={"p99": 1000 * latency[3]},
        ),
        Figure(
            "serving",
            "slots filled in a round",
            100 * metrics.get("homeostat_occupancy", float("nan")),
            "%",
            details={"metrics": kept},
        ),
    ]


def main(
    clients: Annotated[int, typer.Option(min=8, help="Connections at the same time.")] = 64,
    seconds: Annotated[float, typer.Option(min=2, help="How long.")] = 60.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds of the same load before memory is judged.")] = 60.0,
    model: Annotated[str, typer.Option(help="A checkpoint of mazes or prefix sums.")] = "mazes",
    sizes: Annotated[str, typer.Option(help="Sizes of the puzzles.")] = "3,4,5",
    policy: Annotated[Path | None, typer.Option(help="Stop by this policy.")] = None,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = RESULTS / "serving.json",
) -> None:
    """Load `homeostat serve` with clients of every kind, and check every answer."""
    torch.set_num_threads(1)
    figures = measure(model, tuple(int(size) for size in sizes.split(",")), clients, seconds, warm_up, policy)
    machine = describe_machine("cpu")
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table(machine, figures))
    console.print(figures[0].details["outcomes"])
    for fault in figures[0].details["faults"]:
        console.print(fault, markup=False)
    save(output, machine, figures)
    sys.exit(int(any(figure.verdict == "not reached" for figure in figures)))


if __name__ == "__main__":
    typer.run(main)
