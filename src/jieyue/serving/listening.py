"""The sockets that a server listens at, opened before anything slow, and the server that answers there until it is told to stop."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn

from jieyue.errors import InputError

from .bounds import Bounds
from .connections import Sparing, bounded_protocol
from .guard import Guard

__all__ = ["BoundedServer", "listen"]

_LOGGERS = ("uvicorn.error", "asyncio")


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to the host's addresses; port 0 takes a free one. ``InputError`` where that cannot be."""
    if not 0 <= port <= 65535:
        raise InputError("--port", str(port), "from 0 to 65535 (0 takes a free one)")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError("--host", repr(host), "an address of this machine") from error
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        own = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(_bound(family, kind, protocol, (address[0], own, *address[2:])))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(found) > 1:
                continue  # such as ::1 of localhost where there is no IPv6
            for one in sockets:
                one.close()
            why = (error.strerror or type(error).__name__).lower()
            raise InputError(
                f"--port {port}: cannot listen at {host} ({why}); name another --port or --host"
            ) from error
    if not sockets:
        raise InputError("--host", repr(host), "an address of this machine")
    return sockets


def _bound(family: int, kind: int, protocol: int, address: tuple[str | int, ...]) -> socket.socket:
    one = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(1)  # so that a second server on this port is found out now, not when its models are loaded
    except OSError:
        one.close()
        raise
    return one


class BoundedServer(uvicorn.Server):
    """Serves an application on these sockets within ``bounds``.

    ``run`` returns after SIGINT or SIGTERM (``signal_number`` says which), when what was begun is finished, for at most 30
    seconds. A second signal calls ``abandon`` and ends at once. ``ready()`` is called when connections are answered.
    """

    def __init__(
        self, app: Guard, bounds: Bounds, *, ready: Callable[[], None], abandon: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded_protocol(bounds),
                backlog=bounds.backlog,
                log_level="error",
                access_log=False,
                server_header=False,
                ws="none",
                proxy_headers=False,
                timeout_keep_alive=max(1, round(bounds.idle_seconds)),
                timeout_graceful_shutdown=30,
                h11_max_incomplete_event_size=2**16,
            )
        )
        self.signal_number: int | None = None
        self._ready, self._abandon, self._sparing = ready, abandon, Sparing()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops gracefully, the second at once. Neither is raised again when all is done."""
        if self.should_exit:
            self.force_exit = self._sparing.muted = True
            self._abandon()
        self.should_exit = True
        self.signal_number = sig if self.signal_number is None else self.signal_number

    def run(self, sockets: Sequence[socket.socket] | None = None) -> None:
        with self._spared():
            super().run(None if sockets is None else list(sockets))

    @contextmanager
    def _spared(self) -> Iterator[None]:
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._sparing)
        try:
            yield
        finally:
            for name in _LOGGERS:
                logging.getLogger(name).removeFilter(self._sparing)

    @property
    def is_interrupted(self) -> bool:
        """Ended by Ctrl-C, not by SIGTERM."""
        return self.signal_number == signal.SIGINT
