"""Who may come in, and with how much: checked before any route, and the headers that close a page to strangers.

A request must name the served address as its ``Host`` (a page of another site that has its name point here is refused), carry
no foreign ``Origin`` and not say that another site's page sent it (``Sec-Fetch-Site``), no body above the bound (counted as it
comes, whatever ``Content-Length`` says), and under ``/v1``, ``/metrics`` and ``/load_model`` the key where there is one. A CORS
header is sent to an origin that was allowed by name, and to no other. A plain ASGI wrapper, so that it sees every byte.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jieyue.errors import InputError

from .bounds import Bounds, Refusal

__all__ = ["HEADERS", "Guard", "allowed_hosts", "allowed_origins", "refuse"]

Headers = dict[str, list[str]]

HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
TOLD = "retry-after, x-jieyue-ignored, x-jieyue-clamped"
_KEYED = ("/v1", "/metrics", "/load_model")  # paths that want the key
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")
_ASKED_HEADERS = re.compile(r"[A-Za-z0-9-]+(?:\s*,\s*[A-Za-z0-9-]+)*")


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


def allowed_origins(origins: Collection[str], key: str | None) -> frozenset[str]:
    """Origins of other sites' pages that may ask, as browsers write them; ``*`` is any, and never goes with a key.

    >>> sorted(allowed_origins(["https://App.example", "http://localhost:3000/"], None))
    ['http://localhost:3000', 'https://app.example']
    """
    found = frozenset(origin.lower().removesuffix("/") for origin in origins)
    if "*" in found and key is not None:
        raise InputError("--allow-origin", "* beside a key", "the origins by name", "leave one of the two out")
    for origin in found - {"*"}:
        if not _ORIGIN.fullmatch(origin):
            raise InputError("--allow-origin", repr(origin[:80]), "a whole origin such as https://app.example:8443")
    return found


class Guard:
    """Wraps the application. ``key``: the bearer token, None = open. ``counted(path, status)`` is told of every answer.

    ``origins``: pages of other sites that may ask (``allowed_origins``). ``pages``: paths that a link may lead to.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: frozenset[str],
        bounds: Bounds,
        key: str | None,
        counted: Callable[[str, int], None],
        origins: frozenset[str] = frozenset(),
        pages: frozenset[str] = frozenset(),
    ) -> None:
        self.app, self.hosts, self.bounds, self.counted = app, hosts, bounds, counted
        self.origins, self.pages = origins, pages
        self.own = frozenset(f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts)
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started, headers = False, _read(scope)
        shared = self._shared(headers)

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.counted(str(scope["path"]), int(message["status"]))
                present = {name.lower() for name, _ in message.get("headers", [])}
                extra = [(n.encode(), v.encode()) for n, v in (HEADERS | shared).items() if n.encode() not in present]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        try:
            self._check_sender(scope, headers)
            if shared and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _preflight(headers, answer)
                return
            self._check_key(scope, headers)
            body = await self._body(headers, receive)
            await self.app(scope, _replayed(body, receive), answer)
        except Refusal as refusal:
            if started:
                raise
            await refuse(refusal, answer)
        except Exception as error:
            if not started:
                await refuse(Refusal(500, f"the server failed: {type(error).__name__}"), answer)
            raise

    def _shared(self, headers: Headers) -> dict[str, str]:
        """What lets an allowed page of another site read the answer."""
        found = headers.get("origin", [])
        if len(found) != 1 or not ({found[0].lower(), "*"} & self.origins):
            return {}
        allowed = found[0] if found[0].lower() in self.origins else "*"
        return {"access-control-allow-origin": allowed, "access-control-expose-headers": TOLD, "vary": "origin"}

    def _check_sender(self, scope: Scope, headers: Headers) -> None:
        host = [value.lower() for value in headers.get("host", [])]
        if len(host) != 1 or host[0] not in self.hosts:
            shown = ", ".join(host)[:80] or "none"
            what = f"Host is {shown}, expected the served address; start the server with --allow-host to permit another"
            raise Refusal(403, what, code="wrong_host")
        origins = [value.lower() for value in headers.get("origin", [])]
        if all(one in self.own for one in origins):
            sites = [value.strip().lower() for value in headers.get("sec-fetch-site", [])]
            follows = headers.get("sec-fetch-mode") == ["navigate"] and scope["method"] == "GET"
            if "cross-site" not in sites or (follows and not origins and scope["path"] in self.pages):
                return
        elif len(origins) == 1 and ({origins[0], "*"} & self.origins):
            return
        what = "the request comes from a page of another site; start the server with --allow-origin to permit one"
        raise Refusal(403, what, code="foreign_origin")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if self.key is None or not scope["path"].startswith(_KEYED):
            return
        kind, _, token = headers.get("authorization", [""])[0].partition(" ")
        if not (kind.lower() == "bearer" and hmac.compare_digest(token.strip().encode("latin-1"), self.key)):
            raise Refusal(401, "no valid key; expected 'Authorization: Bearer KEY'", code="invalid_api_key")

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, in time and within the bound."""
        length = headers.get("content-length", ["0"])[0]
        if length.isdigit() and int(length[:20]) > self.bounds.body_bytes:
            raise self._too_large()
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


def _read(scope: Scope) -> Headers:
    headers: Headers = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return headers


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body again, then whatever comes (the client's leaving)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _preflight(headers: Headers, send: Send) -> None:
    """What a browser asks before a page of an allowed origin may ask; the key comes with the request itself."""
    asked = headers.get("access-control-request-headers", [""])[0].strip()
    allowed = asked if _ASKED_HEADERS.fullmatch(asked) and len(asked) <= 1000 else "authorization, content-type"
    told = {
        "access-control-allow-methods": "GET, HEAD, POST, OPTIONS",
        "access-control-allow-headers": allowed,
        "access-control-max-age": "600",
    }
    await send(
        {"type": "http.response.start", "status": 204, "headers": [(n.encode(), v.encode()) for n, v in told.items()]}
    )
    await send({"type": "http.response.body", "body": b""})


async def refuse(refusal: Refusal, send: Send) -> None:
    """A refusal as the whole answer."""
    text = json.dumps(refusal.body(), ensure_ascii=False).encode("utf-8", "replace")
    headers = {"content-type": "application/json", "content-length": str(len(text)), **refusal.headers}
    listed = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": listed})
    await send({"type": "http.response.body", "body": text})
