"""`homeostat serve` as a process on a loopback port: clients that hang, send garbage and leave, and a signal."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

MODEL = """
import time
import torch

class Slow:
    name = "slow"
    trained_steps = 4
    examples = [(torch.tensor([[0.5, 1.0]]), torch.tensor([[2.0]]))]

    def encode(self, x):
        return x

    def initial_state(self, x):
        return torch.zeros_like(x[:, :1])

    def step(self, z, x):
        time.sleep(0.002)
        return x[:, :1] * z + x[:, 1:]

    def decode(self, z, x):
        return z

def build():
    return Slow()
"""


class Server:
    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url
        self.port = int(url.rsplit(":", 1)[1])

    def ask(self, gain: float, offset: float, **more: float) -> httpx.Response:
        body = {"inputs": [[gain, offset]], **more}
        return httpx.post(f"{self.url}/v1/predict", json=body, timeout=20, trust_env=False)

    def send(self, data: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.sendall(data)
        return connection

    def metrics(self) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics", timeout=20, trust_env=False).text
        pairs = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("served") / "slow.py"
    path.write_text(MODEL)
    options = ["--port", "0", "--body-timeout", "1", "--slots", "4", "--max-body", "2000", "--rtol", "1e-6"]
    options += ["--max-steps", "400"]
    command = [sys.executable, "-m", "homeostat", "serve", "--model", f"{path}:build", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving slow at http://127.0.0.1:"), line
        yield Server(process, line.split()[-1])
    finally:
        process.kill()
        process.communicate()


def rest_of(connection: socket.socket) -> bytes:
    parts = []
    with connection:
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_each_client_gets_its_own_answer(server: Server) -> None:
    pairs = [(0.5 if place % 3 else 0.9, float(place)) for place in range(1, 25)]
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda pair: server.ask(*pair), pairs))
    for (gain, offset), response in zip(pairs, responses, strict=True):
        assert response.json()["answers"][0]["outputs"] == pytest.approx([offset / (1 - gain)], rel=1e-4)


def test_clients_that_hang_are_let_go(server: Server) -> None:
    silent = server.send(b"")
    half_head = server.send(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-")
    half_body = server.send(b'POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"inputs": ')
    began = time.monotonic()
    assert rest_of(half_body).startswith(b"HTTP/1.1 408")
    for connection in (silent, half_head):
        with contextlib.suppress(ConnectionError):  # a reset or an end of file, as the kernel has it
            assert rest_of(connection) == b""
    assert time.monotonic() - began < 6
    assert server.ask(0.5, 3.0).status_code == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 garbage\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", b"400"),
        (b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n", b"413"),
        (b"A" * 200_000, b"400"),
    ],
)
def test_what_is_no_request_is_told_so(server: Server, data: bytes, status: bytes) -> None:
    try:
        found = rest_of(server.send(data))
    except ConnectionError:
        assert len(data) > 100_000  # it did not wait for the rest of what it will not read
    else:
        assert found.split(b" ")[1] == status
    assert server.ask(0.5, 3.0).status_code == 200


def test_a_client_that_leaves_is_forgotten(server: Server) -> None:
    body = json.dumps({"inputs": [[0.99, 1.0]] * 40}).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    before = server.metrics()['homeostat_requests_total{outcome="disconnected"}']
    server.send(head + body).close()
    end = time.monotonic() + 10
    while server.metrics()['homeostat_requests_total{outcome="disconnected"}'] == before:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert server.metrics()["homeostat_queue_depth"] == 0


def test_a_signal_lets_those_in_flight_finish(server: Server) -> None:  # the last one: it ends the server
    found: list[httpx.Response] = []
    client = threading.Thread(target=lambda: found.append(server.ask(0.9, 1.0)))  # a quarter of a second
    client.start()
    end = time.monotonic() + 10
    while server.metrics()["homeostat_in_flight"] == 0:
        assert time.monotonic() < end
    server.process.send_signal(signal.SIGTERM)
    client.join(20)
    assert found[0].json()["answers"][0]["outputs"] == pytest.approx([10.0], rel=1e-4)
    assert server.process.wait(20) == 0
    with pytest.raises(httpx.ConnectError):
        server.ask(0.5, 1.0)
    assert server.process.stderr is not None
    assert "Traceback" not in server.process.stderr.read()
