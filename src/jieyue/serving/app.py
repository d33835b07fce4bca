"""The application: which paths there are and what answers them. Only the models named at start exist.

POST /v1/chat/completions, /v1/completions    OpenAI's; streamed or whole
GET  /v1/models, /health, /metrics            what is served; whether it lives; Prometheus
POST /v1/read, /v1/title                      where a reading or a title model is served
GET  /, /read, /title                         web pages
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from jieyue.errors import MissingExtra

from .counters import Counters
from .guard import Guard
from .openai import Completion, model_list
from .page import load_page
from .readers import Reader
from .requests import Bounds, Refusal, parse_body, parse_chat, parse_completion
from .talkers import Talker

__all__ = ["Served", "build_app"]

Served = Talker | Reader
PATHS = (
    *("/", "/read", "/title", "/health", "/metrics", "/v1/models"),
    *("/v1/chat/completions", "/v1/completions", "/v1/read", "/v1/title"),
)


def build_app(
    models: Sequence[Served],
    *,
    hosts: frozenset[str],
    bounds: Bounds = Bounds(),
    key: str | None = None,
) -> Guard:
    """An ASGI application. ``hosts``: the ``Host`` values that are answered (``guard.allowed_hosts``); ``key``: bearer token."""
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse, Response
    except ImportError:
        raise MissingExtra("fastapi", "serve") from None
    counters, started = Counters(PATHS), int(time.time())
    by_name = {model.name: model for model in models}

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        for model in models:
            await asyncio.to_thread(model.stop)

    app = FastAPI(title="jieyue", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    pages = {"/": "chat", "/read": "read", "/title": "title"}
    kinds = {model.kind for model in models}
    for path, kind in pages.items():
        if kind in kinds or path == "/":
            app.add_api_route(path, _page_route(kind if kind in kinds else min(kinds)), methods=["GET"])

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        batchers = {name: model.batcher for name, model in by_name.items() if isinstance(model, Talker)}
        return Response(counters.text(batchers), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse(model_list(((model.name, model.kind) for model in models), started))

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        model = _named(by_name, name, None)
        return JSONResponse(model_list([(model.name, model.kind)], started)["data"][0])

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _complete(request, by_name, bounds, counters, is_chat=True)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await _complete(request, by_name, bounds, counters, is_chat=False)

    for kind in ("read", "title"):
        if kind in kinds:
            app.add_api_route(f"/v1/{kind}", _answer_route(by_name, kind), methods=["POST"])

    _add_errors(app)
    return Guard(app, hosts=hosts, bounds=bounds, key=key, counted=counters.request)


def _add_errors(app: Any) -> None:
    """Every mistake is answered in OpenAI's shape, whoever finds it."""
    from fastapi import Request
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        retry = {"retry-after": "1"} if refusal.status == 429 else {}
        return JSONResponse(refusal.body(), refusal.status, headers=retry)

    @app.exception_handler(HTTPException)
    async def not_found(_: Request, error: HTTPException) -> Response:
        said = {404: "there is nothing at this path", 405: "this path does not take that method"}
        text = said.get(error.status_code, "the request cannot be answered")
        return JSONResponse(Refusal(error.status_code, text).body(), error.status_code)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return JSONResponse(Refusal(500, f"the server failed: {type(error).__name__}").body(), 500)


def _named(models: Mapping[str, Served], name: str | None, kind: str | None) -> Served:
    """The model of that name and kind; without a name the first of the kind."""
    if name is None:
        found = next((model for model in models.values() if model.kind == kind), None)
    else:
        found = models.get(name)
    if found is None or (kind is not None and found.kind != kind):
        served = ", ".join(model.name for model in models.values() if kind in (None, model.kind)) or "none"
        shown = "" if name is None else f" {name[:80]!r}"
        raise Refusal(404, f"there is no model{shown} here; served: {served}", param="model", code="model_not_found")
    return found


async def _complete(
    request: Any, models: Mapping[str, Served], bounds: Bounds, counters: Counters, *, is_chat: bool
) -> Any:
    from fastapi.responses import JSONResponse, StreamingResponse

    body = parse_body(await request.body())
    asked = parse_chat(body, bounds) if is_chat else parse_completion(body, bounds)
    talker = _named(models, asked.model, "chat")
    assert isinstance(talker, Talker)
    talk = await talker.talk(asked)
    answer = Completion.of(asked, talk, talker.name)

    def count() -> None:
        for job in talk.jobs:
            if job.first is not None:
                counters.first_token(job.first)

    if asked.stream:

        async def events() -> AsyncIterator[bytes]:
            stream = answer.events()
            try:
                async for one in stream:
                    yield one
            finally:
                await stream.aclose()  # type: ignore[attr-defined]
                count()

        return StreamingResponse(events(), media_type="text/event-stream")
    whole = asyncio.create_task(answer.whole())
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            raise Refusal(499, "the client left")
        return JSONResponse(whole.result())
    finally:
        gone.cancel()
        whole.cancel()
        for job in talk.jobs:
            job.cancel()
        count()


async def _gone(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _page_route(name: str) -> Any:
    from fastapi.responses import Response

    page = load_page(name)

    async def show() -> Response:
        return Response(page.html, media_type="text/html", headers={"content-security-policy": page.policy})

    return show


def _answer_route(models: Mapping[str, Served], kind: str) -> Any:
    from fastapi import Request
    from fastapi.responses import JSONResponse, Response

    async def answer(request: Request) -> Response:
        body = parse_body(await request.body())
        name = body.pop("model", None)
        if name is not None and not isinstance(name, str):
            raise Refusal(400, "'model' is not text", param="model")
        model = _named(models, name, kind)
        assert isinstance(model, Reader)
        return JSONResponse(await model.answer(body))

    return answer
