"""HTTP connections that hang are closed: a head that never ends, an answer that nobody reads."""

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_TICK = 1.0


def patient_protocol(idle_seconds: float, busy_seconds: float, most: int) -> type[H11Protocol]:
    """A protocol whose connections are aborted when they stand still, or when there are far too many.

    Uvicorn closes a connection that is silent between two requests. It waits without end for the rest of a head, and
    for a client to take its answer: such clients would hold their connection, and what is written to it, for ever.

    Args:
        idle_seconds: without a request, from the opening or from the end of the last answer.
        busy_seconds: for one request and its answer.
        most: connections beyond this many are closed without a word; uvicorn's own limit, which answers 503, should be
            well below.
    """

    class PatientProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _seen: Any = None
        _since = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
                return
            self._since = time.monotonic()
            self._timer = self.loop.call_later(_TICK, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            busy = self.cycle is not None and not self.cycle.response_complete
            now, seen = time.monotonic(), (self.cycle, busy)
            if seen != self._seen:
                self._seen, self._since = seen, now
            if now - self._since > (busy_seconds if busy else idle_seconds):
                self.transport.abort()
            else:
                self._timer = self.loop.call_later(_TICK, self._look)

    return PatientProtocol
