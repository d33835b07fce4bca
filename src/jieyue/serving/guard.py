"""Who may come in, and with how much: checked before any route, and the headers that close a page to strangers.

A request must name the served address as its ``Host`` (a page of another site that has its name point here is refused), carry
no foreign ``Origin``, no body above the bound (counted as it comes, whatever ``Content-Length`` says), and under ``/v1`` and
``/metrics`` the key where there is one. No CORS header is ever sent. A plain ASGI wrapper, so that it sees every byte.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from .requests import Bounds, Refusal

__all__ = ["HEADERS", "Guard", "allowed_hosts"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def allowed_hosts(host: str, port: int, also: Collection[str] = ()) -> frozenset[str]:
    """The ``Host`` values that mean this server: the bound address, loopback's names where that is it, and ``also``.

    >>> sorted(allowed_hosts("127.0.0.1", 8000, ["chat.example"]))
    ['127.0.0.1:8000', '[::1]:8000', 'chat.example', 'chat.example:8000', 'localhost:8000']
    """
    names = set(also)
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    loopback = shown in _LOOPBACK or shown.startswith("127.")
    own = {*_LOOPBACK, shown} if loopback else {shown, *_LOOPBACK}
    found = {f"{name}:{port}" for name in own} | names | {f"{name}:{port}" for name in names}
    return frozenset(name.lower() for name in found | (own if port == 80 else set()))


class Guard:
    """Wraps the application. ``key``: the bearer token, None = open. ``counted(path, status)`` is told of every answer."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        hosts: frozenset[str],
        bounds: Bounds,
        key: str | None,
        counted: Callable[[str, int], None],
    ) -> None:
        self.app, self.hosts, self.bounds, self.counted = app, hosts, bounds, counted
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = False

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.counted(str(scope["path"]), int(message["status"]))
                present = {name.lower() for name, _ in message.get("headers", [])}
                extra = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in present]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        try:
            self._check(scope)
            body = await self._body(receive)
            await self.app(scope, _replayed(body, receive), answer)
        except Refusal as refusal:
            if started:
                raise
            await refuse(refusal, answer)

    def _check(self, scope: Scope) -> None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        host = [value.decode("latin-1").lower() for value in headers.get(b"host", [])]
        if len(host) != 1 or host[0] not in self.hosts:
            shown = ", ".join(host)[:80] or "none"
            raise Refusal(403, f"Host is {shown}, expected the served address", code="wrong_host")
        for origin in (value.decode("latin-1").lower() for value in headers.get(b"origin", [])):
            if origin.split("://")[-1] not in self.hosts or not origin.startswith(("http://", "https://")):
                raise Refusal(403, "the request comes from a page of another site", code="foreign_origin")
        if self.key is not None and (scope["path"].startswith("/v1") or scope["path"] == "/metrics"):
            given = headers.get(b"authorization", [b""])[0]
            kind, _, token = given.partition(b" ")
            if not (kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.key)):
                raise Refusal(401, "no valid key; expected 'Authorization: Bearer KEY'", code="invalid_api_key")
        length = headers.get(b"content-length", [b"0"])[0]
        if length.isdigit() and int(length[:20]) > self.bounds.body_bytes:
            raise self._too_large()

    async def _body(self, receive: Receive) -> bytes:
        """The whole body, in time and within the bound."""
        parts, total = [], 0
        deadline = asyncio.get_running_loop().time() + self.bounds.seconds
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise Refusal(408, "the request did not arrive in time") from None
            if message["type"] == "http.disconnect":
                return b""
            parts.append(message.get("body", b""))
            total += len(parts[-1])
            if total > self.bounds.body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> Refusal:
        return Refusal(
            413, f"the body is too large, expected at most {self.bounds.body_bytes} bytes", code="body_too_large"
        )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body again, then whatever comes (the client's leaving)."""
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def refuse(refusal: Refusal, send: Send) -> None:
    """A refusal as the whole answer."""
    text = json.dumps(refusal.body(), ensure_ascii=False).encode("utf-8", "replace")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    if refusal.status == 429:
        headers.append((b"retry-after", b"1"))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
