"""From a model to a running service: what is served, by which policy, and the server around it."""

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from homeostat.errors import InputError

if TYPE_CHECKING:
    from homeostat.serving.app import Service


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        InputError: the address cannot be used, or another process has it.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port must be from 0 to 65535, not {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"cannot listen at {host}, port {port}: {getattr(error, 'strerror', None) or error}"
        ) from error


def run(service: "Service", where: socket.socket, *, stop_seconds: float = 10.0) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is in flight for up to `stop_seconds`; a second signal ends it
    at once.

    Raises:
        InputError: FastAPI or uvicorn is not installed.
    """
    needs_packages()
    import uvicorn

    from homeostat.serving.app import make_app
    from homeostat.serving.connection import patient_protocol

    limits = service.limits
    config = uvicorn.Config(
        make_app(service),
        http=patient_protocol(limits.body_seconds, limits.seconds + 2 * limits.body_seconds, 2 * limits.connections),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=max(1, round(stop_seconds)),
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a line for every bad request would fill disks
    server = uvicorn.Server(config)
    with _ended_by_signal():
        server.run(sockets=[where])


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """A signal is how a service ends, no error: the server hands it on when it is done, and here it goes nowhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.signal(kind, lambda *_: None) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def needs_packages() -> None:
    """Say what to install where an optional package is missing.

    Raises:
        InputError: one of them is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"serving needs {error.name}: pip install 'homeostat[serve]'") from error
