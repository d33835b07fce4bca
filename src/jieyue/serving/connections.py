"""Connections that cannot pile up: uvicorn's HTTP/1.1, with an end for those that say nothing and a bound on their number.

A connection is *idle* while no request of its own is being answered. An idle one has ``idle_seconds`` until the head of its
next request is complete, however slowly bytes trickle in. At the bound the one that has been idle longest goes, and
where none is idle the newcomer is told 503. A client that does not read its answer is given up after ``stalled_seconds``.

uvicorn itself has no time limit for heads, and its limit on concurrency counts silent sockets against those who ask.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from pathlib import Path

from uvicorn.protocols.http.h11_impl import H11Protocol

from .bounds import Bounds, Refusal

__all__ = ["BoundedProtocol", "Sparing", "bounded_protocol", "room_for_connections"]

_SPARE = 32  # open files that stay free for anything else


class BoundedProtocol(H11Protocol):
    """One connection. ``bounded_protocol`` makes the class that a server uses: with its bounds, and what is open."""

    bounds: Bounds
    most: int
    open: dict[BoundedProtocol, None]
    idle: dict[BoundedProtocol, None]  # oldest first
    deadline: asyncio.TimerHandle | None = None
    stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.open[self] = None
        self._rest()
        if len(self.open) > self.most:
            oldest = next(iter(self.idle))
            if oldest is self:
                self._write(Refusal(503, "too many connections; try again in a moment", code="too_many_connections"))
            oldest._drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """As uvicorn's; notices that the head of a request is complete."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.idle.pop(self, None)
            self._stop(self.deadline)

    def on_response_complete(self) -> None:
        if self in self.open:
            self._rest()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop(self.stalled)
        self.stalled = self.loop.call_later(self.bounds.stalled_seconds, self._drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop(self.stalled)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered in the shape of every other error."""
        self._write(Refusal(400, f"{msg.rstrip('.')}; expected HTTP/1.1"))
        self.transport.close()

    def _rest(self) -> None:
        self.idle.pop(self, None)
        self.idle[self] = None
        self._stop(self.deadline)
        self.deadline = self.loop.call_later(self.bounds.idle_seconds, self._drop)

    def _drop(self) -> None:
        self._forget()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _forget(self) -> None:
        self.open.pop(self, None)
        self.idle.pop(self, None)
        self._stop(self.deadline)
        self._stop(self.stalled)

    def _write(self, refusal: Refusal) -> None:
        """A whole answer, past the application."""
        text = json.dumps(refusal.body()).encode()
        head = f"HTTP/1.1 {refusal.status} {'Bad Request' if refusal.status == 400 else 'Service Unavailable'}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode("ascii") + text)

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def bounded_protocol(bounds: Bounds) -> type[BoundedProtocol]:
    """The protocol of one server (``uvicorn.Config(http=…)``)."""
    most = room_for_connections(bounds)
    return type("Protocol", (BoundedProtocol,), {"bounds": bounds, "most": most, "open": {}, "idle": {}})


def room_for_connections(bounds: Bounds) -> int:
    """``bounds.connections``, or what the system's limit on open files leaves for them; at least 4."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
    except ImportError:  # not on Windows
        return bounds.connections
    limit, _ = getrlimit(RLIMIT_NOFILE)
    if limit == RLIM_INFINITY:
        return bounds.connections
    files = Path("/proc/self/fd")
    taken = len(os.listdir(files)) if files.is_dir() else 64
    return max(
        4, min(bounds.connections, limit - taken - 2 * bounds.backlog - _SPARE)
    )  # two backlogs: just taken, just left


class Sparing(logging.Filter):
    """Lets ``most`` records a minute through, so that nobody can fill a disk by sending nonsense; none while ``muted``."""

    def __init__(self, most: int = 20) -> None:
        super().__init__()
        self.most, self.muted = most, False
        self._minute, self._count = 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        if self.muted or (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)):
            return False
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._count = minute, 0
        self._count += 1
        return self._count <= self.most
