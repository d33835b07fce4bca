"""The application: which paths there are and what answers them. Only the models named at start exist.

POST /v1/chat/completions, /v1/completions    OpenAI's; streamed or whole
GET  /v1/models, /health, /metrics            what is served; whether it lives; Prometheus
POST /v1/read, /v1/title, /v1/classify, /v1/tag   where such a model is served
POST /load_model                              what ``transformers chat`` asks first: whether a model is there; loads none
GET  /openapi.json                            the schema of all of these
GET  /, /read, /title, /classify, /tag        web pages
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import JsonValue
from starlette.exceptions import HTTPException

from .answering import BODIES, AnsweringModel
from .bounds import Bounds, Refusal
from .chat_model import ChatModel
from .counters import Counters
from .guard import Guard
from .openai import Completion, event, model_list
from .page import load_page
from .requests import Asked, parse_body, parse_chat, parse_completion
from .schema import schema

__all__ = ["Served", "build_app"]

Served = ChatModel | AnsweringModel
Parse = Callable[[Mapping[str, JsonValue], Bounds], Asked]
T = TypeVar("T")

PAGES = {"/": "chat", "/read": "read", "/title": "title", "/classify": "classify", "/tag": "tag"}
PATHS = (
    *(
        *PAGES,
        "/health",
        "/metrics",
        "/openapi.json",
        "/load_model",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
    ),
    *(f"/v1/{kind}" for kind in BODIES),
)
_SOON = 2**15  # bytes of a body that are parsed at once; larger ones away from the event loop


def build_app(
    models: Sequence[Served],
    *,
    hosts: frozenset[str],
    bounds: Bounds = Bounds(),
    key: str | None = None,
    origins: frozenset[str] = frozenset(),
) -> Guard:
    """An ASGI application. ``hosts``: the ``Host`` values that are answered (``guard.allowed_hosts``); ``key``: bearer token.

    ``origins``: of other sites' pages that may ask (``guard.allowed_origins``).
    """
    counters, started = Counters(PATHS), int(time.time())
    by_name = {model.name: model for model in models}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.gather(*(asyncio.to_thread(model.stop) for model in models))

    app = FastAPI(title="jieyue", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    kinds = {model.kind for model in models}
    pages = {
        path: kind if kind in kinds else min(kinds) for path, kind in PAGES.items() if path == "/" or kind in kinds
    }

    def get(path: str, route: Callable[..., Awaitable[Response]]) -> None:
        app.add_api_route(path, route, methods=["GET", "HEAD"])

    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics() -> Response:
        batchers = {name: model.batcher for name, model in by_name.items() if isinstance(model, ChatModel)}
        return Response(counters.text(batchers), media_type="text/plain; version=0.0.4")

    async def list_models() -> Response:
        return JSONResponse(model_list(((model.name, model.kind) for model in models), started))

    async def one_model(name: str) -> Response:
        model = _named(models, name, None)
        return JSONResponse(
            {"object": "model", "id": model.name, "created": started, "owned_by": "jieyue", "kind": model.kind}
        )

    async def told_schema() -> Response:
        return JSONResponse(schema(kinds))

    for path, name in pages.items():
        get(path, _page_route(name))
    routes = {"/health": health, "/metrics": metrics, "/openapi.json": told_schema, "/v1/models": list_models}
    for path, route in routes.items():
        get(path, route)
    get("/v1/models/{name:path}", one_model)
    for path, parse in (("/v1/chat/completions", parse_chat), ("/v1/completions", parse_completion)):
        app.add_api_route(path, _completion_route(models, bounds, counters, parse), methods=["POST"])
    app.add_api_route("/load_model", _ready_route(models), methods=["POST"])
    for kind in kinds & set(BODIES):
        app.add_api_route(f"/v1/{kind}", _answer_route(models, kind), methods=["POST"])
    _add_errors(app)
    return Guard(
        app, hosts=hosts, bounds=bounds, key=key, counted=counters.request, origins=origins, pages=frozenset(pages)
    )


def _add_errors(app: FastAPI) -> None:
    """Every mistake is answered in OpenAI's shape, whoever finds it."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)

    @app.exception_handler(HTTPException)
    async def not_found(_: Request, error: HTTPException) -> Response:
        said = {404: "there is nothing at this path", 405: "this path does not take that method"}
        text = said.get(error.status_code, "the request cannot be answered")
        return JSONResponse(Refusal(error.status_code, text).body(), error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return JSONResponse(Refusal(500, f"the server failed: {type(error).__name__}").body(), 500)


def _named(models: Sequence[Served], name: str | None, kind: str | None) -> Served:
    """The model of that name and kind; without a name the first of the kind."""
    fitting = [model for model in models if kind in (None, model.kind)]
    found = next((model for model in fitting if name in (None, model.name)), None)
    if found is None:
        served = ", ".join(model.name for model in fitting) or "none"
        shown = "" if name is None else f" {name[:80]!r}"
        raise Refusal(404, f"there is no model{shown} here; served: {served}", param="model", code="model_not_found")
    return found


def _completion_route(
    models: Sequence[Served], bounds: Bounds, counters: Counters, parse: Parse
) -> Callable[[Request], Awaitable[Response]]:
    async def complete(request: Request) -> Response:
        raw = await request.body()
        asked = await _soon(len(raw), lambda: parse(parse_body(raw), bounds))
        asked = replace(asked, client=f"{request.client.host if request.client else ''} {asked.client}")
        model = _named(models, asked.model, "chat")
        assert isinstance(model, ChatModel)
        talk = await model.talk(asked)
        answer = Completion.of(asked, talk, model)

        def count() -> None:
            for job in talk.jobs:
                if job.first is not None:
                    counters.first_token(job.first)

        if asked.stream:
            return StreamingResponse(
                _events(answer, count), media_type="text/event-stream", headers=dict(asked.headers)
            )
        try:
            return JSONResponse(await _unless_gone(request, answer.whole()), headers=dict(asked.headers))
        finally:
            talk.cancel()
            count()

    return complete


def _ready_route(models: Sequence[Served]) -> Callable[[Request], Awaitable[Response]]:
    async def ready(request: Request) -> Response:
        name = parse_body(await request.body()).get("model")
        if not isinstance(name, str):
            raise Refusal(400, "'model' is not text, expected a model's name", param="model")
        found = _named(models, name, "chat").name
        return Response(event({"status": "ready", "model": found, "cached": True}), media_type="text/event-stream")

    return ready


async def _events(answer: Completion, count: Callable[[], None]) -> AsyncIterator[bytes]:
    stream = answer.events()
    try:
        async for one in stream:
            yield one
    finally:
        await stream.aclose()
        count()


async def _soon(num_bytes: int, work: Callable[[], T]) -> T:
    """Small work at once, large work in a thread."""
    return work() if num_bytes <= _SOON else await asyncio.to_thread(work)


async def _unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """The answer, unless its client leaves before."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    whole, gone = asyncio.ensure_future(answer), asyncio.create_task(leaving())
    try:
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            raise Refusal(499, "the client left")
        return whole.result()
    finally:
        gone.cancel()
        whole.cancel()


def _page_route(name: str) -> Callable[[], Awaitable[Response]]:
    page = load_page(name)

    async def show() -> Response:
        return Response(page.html, media_type="text/html", headers={"content-security-policy": page.policy})

    return show


def _answer_route(models: Sequence[Served], kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        raw = await request.body()
        body = await _soon(len(raw), lambda: parse_body(raw))
        name = body.pop("model", None)
        if name is not None and not isinstance(name, str):
            raise Refusal(400, "'model' is not text, expected a model's name", param="model")
        model = _named(models, name, kind)
        assert isinstance(model, AnsweringModel)
        found, ignored = await model.answer(body)
        return JSONResponse(found, headers={"x-jieyue-ignored": ", ".join(ignored)} if ignored else {})

    return answer
